"""Text from an object store, and datasets to one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from raylm.data.dataset import open_dataset
from raylm.data.options import PrepareOptions
from raylm.data.prepare import prepare
from raylm.data.upload import refuse_existing_remote, upload_dataset
from raylm.errors import UserError

OPTIONS = PrepareOptions(tokenizer="whitespace", split_bytes=500, chunk_tokens=64, shard_tokens=256)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"the line {n} of all\n" for n in range(200)))
    return path


def put(uri: str, data: bytes) -> str:
    filesystem, path = pafs.FileSystem.from_uri(uri)
    with filesystem.open_output_stream(path) as stream:
        stream.write(data)
    return uri


def test_a_store_gives_and_takes_the_same_dataset_as_the_disk(bucket: str, text: Path, tmp_path: Path) -> None:
    source = put(bucket.format("in/text.txt"), text.read_bytes())
    local = prepare([text], tmp_path / "local", OPTIONS)
    remote = prepare([source], bucket.format("out/train"), OPTIONS)
    assert remote.dataset_id == local.dataset_id
    dataset = open_dataset(bucket.format("out/train"))
    assert dataset.read(0, 50).tolist() == open_dataset(tmp_path / "local").read(0, 50).tolist()
    held_out = prepare([text], tmp_path / "valid", PrepareOptions(vocab=bucket.format("out/train")))
    assert held_out.vocabulary == local.vocabulary


def test_credentials_are_never_shown_or_kept(bucket: str, text: Path, tmp_path: Path) -> None:
    source = put(bucket.format("in/bad.txt"), text.read_bytes() + b"\xff\n")
    said = [prepare([source], bucket.format("out/kept"), OPTIONS).output]
    manifest = open_dataset(bucket.format("out/kept")).manifest
    said += [json.dumps(dict(manifest.provenance))]
    for wrong in (
        OPTIONS.model_copy(update={"malformed": "error"}),
        OPTIONS.model_copy(update={"max_reject_fraction": 0.0}),
    ):
        with pytest.raises(UserError, match=r"s3://bucket/in/bad\.txt.*line 201") as error:
            prepare([source], tmp_path / "out", wrong)
        said.append(str(error.value))
    with pytest.raises(UserError, match=r"s3://bucket/in/none ") as error:
        prepare([bucket.format("in/none")], tmp_path / "out", OPTIONS)
    said.append(str(error.value))
    assert not any("hidden" in line for line in said)


def test_a_dataset_that_is_there_is_not_overwritten(bucket: str, text: Path) -> None:
    uri = bucket.format("out/once")
    prepare([text], uri, OPTIONS)
    with pytest.raises(UserError, match="s3://bucket/out/once: there is a dataset already"):
        prepare([text], uri, OPTIONS)


def test_a_store_that_is_gone_is_one_clear_line_and_soon(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    gone = "s3://key:hidden@bucket/x?endpoint_override=127.0.0.1:9&scheme=http"
    begin = time.monotonic()
    for ask in (lambda: refuse_existing_remote(gone), lambda: upload_dataset(tmp_path, gone, waits=(0.01,))):
        with pytest.raises(UserError, match="s3://bucket/x: the store cannot be used") as error:
            ask()
        assert "hidden" not in str(error.value)
    assert time.monotonic() - begin < 5
