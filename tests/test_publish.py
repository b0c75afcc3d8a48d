"""A prepared corpus goes into the store of its run, once."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from raylm.data.corpora import find_corpus
from raylm.data.dataset import open_dataset
from raylm.data.prepare import prepare_corpus
from raylm.data.publish import publish
from raylm.data.remote import connect


def test_the_datasets_are_copied_once_and_again_where_one_is_not_whole(bucket: str, tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("the cat saw the dog\n" * 50)
    said: list[str] = []
    corpus = find_corpus((str(tmp_path),), data_dir=None, cache_dir=tmp_path / "cache", say=said.append)
    prepared = asdict(prepare_corpus(corpus, tmp_path / "cache" / "datasets", said.append))
    said.clear()
    uris = publish(prepared, bucket.format("runs"), said.append)
    assert {split: open_dataset(uri).dataset_id for split, uri in uris.items()} == {
        split: open_dataset(path).dataset_id for split, path in prepared.items()
    }
    assert len(said) == 3
    assert not any("hidden" in line for line in said)
    assert publish(prepared, bucket.format("runs/"), said.append) == uris
    assert len(said) == 3
    store, path = connect(uris["valid"])
    store.delete_file(f"{path}/vocab.arrow")
    publish(prepared, bucket.format("runs"), said.append)
    assert len(said) == 4
    assert open_dataset(uris["valid"]).tokens == open_dataset(prepared["valid"]).tokens


def test_the_endpoint_that_the_environment_names_is_used(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = re.findall(r"endpoint_override=([\d.:]+)", bucket)[0]
    for name, value in {"ENDPOINT_URL": f"http://{address}", "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    store, path = connect("s3://bucket/here")
    with store.open_output_stream(path) as stream:
        stream.write(b"1")
    other, same = connect(bucket.format("here"))
    assert other.get_file_info(same).size == 1
