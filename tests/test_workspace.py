"""Files on the way to a dataset: the same in a folder and in a store, and none of them stays."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from raylm.data.dataset import open_dataset
from raylm.data.options import PrepareOptions
from raylm.data.prepare import prepare
from raylm.data.runners import in_processes
from raylm.data.workspace import FolderWorkspace, StoreWorkspace, Workspace, open_workspace
from raylm.errors import UserError

SMALL = PrepareOptions(tokenizer="whitespace", split_bytes=500, chunk_tokens=64, shard_tokens=256)


@pytest.fixture(params=["folder", "file", "s3"])
def place(request: pytest.FixtureRequest, bucket: str, tmp_path: Path) -> str:
    """An output: a folder, a folder as a URI, and a place in an object store."""
    name = tmp_path.name
    return {"folder": str(tmp_path / "out"), "file": (tmp_path / "out").as_uri(), "s3": bucket.format(name)}[
        request.param
    ]


def names_at(place: str) -> list[str]:
    """Every file at a place, relative to it."""
    filesystem, path = pafs.FileSystem.from_uri(place if "://" in place else Path(place).as_uri())
    found = filesystem.get_file_info(pafs.FileSelector(path.rstrip("/"), recursive=True, allow_not_found=True))
    return sorted(entry.path.removeprefix(path.rstrip("/") + "/") for entry in found if entry.is_file)


def make(place: str, staging: Path) -> Workspace:
    staging.mkdir()
    return open_workspace(place, staging)


def put(work: Workspace, name: str, data: bytes) -> None:
    with work.scratch() as folder:
        (folder / "any").write_bytes(data)
        work.put(folder / "any", name)


def test_what_is_put_can_be_read_by_another_process_and_put_again(place: str, tmp_path: Path) -> None:
    work = make(place, tmp_path / "staging")
    other: Workspace = pickle.loads(pickle.dumps(work))
    assert (other, hash(other)) == (work, hash(work))
    for data in (b"first", b"second"):
        put(work, "a-0.arrow", data)
        assert other.read("a-0.arrow") == data
    work.discard()
    with pytest.raises(UserError):
        work.read("a-0.arrow")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(b"".join(b"the line %d of all\n" % n for n in range(200)) + b"caf\xe9\n")
    return path


def test_a_dataset_is_the_same_wherever_it_is_made_and_nothing_else_is_left(
    place: str, text: Path, tmp_path: Path
) -> None:
    result = prepare([text], place, SMALL)
    here = prepare([text], tmp_path / "here", SMALL)
    assert result.dataset_id == here.dataset_id == open_dataset(place).dataset_id
    assert names_at(place) == names_at(str(tmp_path / "here"))
    assert len(names_at(place)) > 8
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_where_preparing_fails_nothing_is_left(place: str, text: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    for wrong in ({"malformed": "error"}, {"max_reject_fraction": 0.0}):
        with pytest.raises(UserError, match="not UTF-8"):
            prepare([text], place, SMALL.model_copy(update=wrong), run=in_processes(1))
        assert names_at(place) == []
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "out"] == before


def test_what_was_placed_in_a_store_before_a_failure_is_taken_back_and_no_other_file(
    bucket: str, tmp_path: Path
) -> None:
    work = StoreWorkspace(bucket.format("shared"), ".work-1")
    put(StoreWorkspace(bucket.format("shared"), "of-another"), "precious", b"x")
    put(work, "0.arrow", b"shard")
    work.place([("0.arrow", "shards/00000.arrow")])
    assert names_at(bucket.format("shared")) == [".work-1/0.arrow", "of-another/precious", "shards/00000.arrow"]
    work.discard()
    assert names_at(bucket.format("shared")) == ["of-another/precious"]


def test_a_folder_that_a_worker_does_not_see_is_one_clear_line(tmp_path: Path) -> None:
    work = FolderWorkspace(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"elsewhere/work/counts: cannot be read .*must reach this folder"):
        work.read("counts")
    with pytest.raises(UserError, match=r"elsewhere/work: cannot be written"), work.scratch():
        pass
