"""Promises of the object store: read by ranges at once, kept whole in a bounded cache, repaired where it can be."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest
from made_datasets import make_dataset, random_rows

from raylm.data.dataset import Dataset, open_dataset
from raylm.data.manifest import FileRecord
from raylm.data.remote import RemoteStorage, connect, without_secrets
from raylm.data.sentences import Sentences
from raylm.data.shardcache import ShardCache
from raylm.data.streams import Streams
from raylm.data.upload import upload_dataset
from raylm.data.verify import verify_dataset
from raylm.errors import UserError

moto_server = pytest.importorskip("moto.server", reason="moto[server] (in raylm[dev]) plays the object store")


@dataclass
class Store:
    """An S3 server on loopback that can be stopped and started again with what it holds."""

    server: object
    port: int

    def uri(self, path: str) -> str:
        options = f"endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"
        return f"s3://key:secret@bucket/{path}?{options}"

    def stop(self) -> None:
        self.server.stop()  # type: ignore[attr-defined]

    def start(self) -> None:
        self.server = moto_server.ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self.server.start()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    found = Store(server, server.get_host_and_port()[1])
    options = f"endpoint_override=127.0.0.1:{found.port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    filesystem, _ = pafs.FileSystem.from_uri(f"s3://key:secret@bucket/?{options}")
    filesystem.create_dir("bucket")
    yield found
    found.stop()


@pytest.fixture
def local(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path / "local", *random_rows(3000), 100)


@pytest.fixture
def uri(store: Store, local: Dataset, tmp_path: Path) -> str:
    uri = store.uri(tmp_path.name)
    upload_dataset(tmp_path / "local", uri)
    return uri


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache")


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def shards(dataset: Dataset) -> list[FileRecord]:
    return [record for name, record in dataset.manifest.files.items() if name.startswith("shards/")]


def all_cached(cache: ShardCache, dataset: Dataset) -> bool:
    return all(cache.find(record) for record in shards(dataset))


def corrupt(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def test_streams_and_sentences_from_a_store_are_those_of_the_files(uri: str, local: Dataset, cache: ShardCache) -> None:
    remote = open_dataset(uri, cache)
    assert remote.dataset_id == local.dataset_id
    np.testing.assert_array_equal(remote.read(0, remote.tokens), local.read(0, local.tokens))
    for here, there in (
        (
            Streams(local, lanes=9, window=7, seed=1, order="chunk"),
            Streams(remote, lanes=9, window=7, seed=1, order="chunk"),
        ),
        (Sentences(local, rows=9, seed=1), Sentences(remote, rows=9, seed=1)),
    ):
        cursor = here.start()
        for _ in range(50):
            expected, after = here.read(cursor)
            found, cursor = there.read(cursor)
            assert cursor == after
            np.testing.assert_array_equal(found.targets, expected.targets)


def test_once_the_shards_are_here_the_store_is_not_needed(
    store: Store, uri: str, local: Dataset, cache: ShardCache
) -> None:
    remote = open_dataset(uri, cache)
    for start in range(0, remote.tokens, 500):
        remote.read(start, start + 1)
    until(lambda: all_cached(cache, remote))
    again = open_dataset(uri, cache)
    store.stop()
    try:
        np.testing.assert_array_equal(again.read(0, again.tokens), local.read(0, local.tokens))
    finally:
        store.start()


def test_a_store_that_comes_back_is_waited_for(store: Store, uri: str, local: Dataset, cache: ShardCache) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            store.start()

    dataset = open_dataset(uri, cache)
    storage = RemoteStorage(uri, cache, waits=(0.1, 0.2, 0.4, 0.8), wait=wait)
    store.stop()
    found = storage.read("vocab.arrow")
    assert len(found) == dataset.manifest.files["vocab.arrow"].bytes
    assert waits == [0.1, 0.2, 0.4]


def test_a_store_that_stays_away_is_one_clear_line_without_secrets(store: Store, uri: str, cache: ShardCache) -> None:
    storage = RemoteStorage(uri, cache, waits=(0.0,), wait=lambda seconds: None)
    store.stop()
    try:
        with pytest.raises(UserError, match=r"s3://bucket/.*/vocab.arrow: cannot be read") as told:
            storage.read("vocab.arrow")
    finally:
        store.start()
    assert "secret" not in str(told.value)
    assert "\n" not in str(told.value)


def test_a_damaged_copy_in_the_cache_is_fetched_again_from_the_store(
    uri: str, local: Dataset, cache: ShardCache
) -> None:
    remote = open_dataset(uri, cache)
    remote.read(0, 1)
    until(lambda: cache.find(shards(remote)[0]) is not None)
    path = cache.find(shards(remote)[0])
    assert path is not None
    corrupt(path, int(remote.index.offset[0]) + 40)
    again = open_dataset(uri, cache)
    np.testing.assert_array_equal(again.read(0, 200), local.read(0, 200))
    assert not path.exists()


def test_damage_in_the_store_itself_is_told_after_a_second_look(
    store: Store, uri: str, tmp_path: Path, cache: ShardCache
) -> None:
    corrupt(tmp_path / "local/shards/00000.arrow", 600)
    upload_dataset(tmp_path / "local", uri)
    remote = open_dataset(uri, cache)
    with pytest.raises(UserError, match=r"s3://bucket/.*00000.arrow: chunk 0, bytes .* expected CRC-32"):
        remote.read(0, remote.tokens)
    until(lambda: bool(remote.storage.problems))  # type: ignore[attr-defined]
    assert cache.find(shards(remote)[0]) is None
    assert len(verify_dataset(uri, lambda done, total: None).faults) >= 1


def test_an_empty_or_truncated_store_is_refused(store: Store, uri: str, tmp_path: Path, cache: ShardCache) -> None:
    with pytest.raises(UserError, match=r"s3://bucket/nothing: no dataset can be opened here: .* missing"):
        open_dataset(store.uri("nothing"), cache)
    shard = tmp_path / "local/shards/00001.arrow"
    shard.write_bytes(shard.read_bytes()[:-8])
    upload_dataset(tmp_path / "local", uri)
    with pytest.raises(UserError, match=r"00001.arrow: expected .* bytes, found .*truncated"):
        open_dataset(uri, cache)


@pytest.mark.parametrize("wrong", ["ftp://x/y", "s3://bucket/x?nonsense=1", "s3://bucket/x?region", "s3:///x"])
def test_a_uri_that_cannot_be_used_is_refused(wrong: str, cache: ShardCache) -> None:
    with pytest.raises(UserError, match="use a path, s3:// or gs://"):
        open_dataset(wrong, cache)


def test_the_waits_for_a_store_of_google_s_are_ours_too() -> None:
    limits = [connect(f"gs://anonymous@bucket/x{rest}")[0] for rest in ("", "?scheme=http", "?retry_limit_seconds=9")]
    options = [store.__reduce__()[1][0] for store in limits]
    assert [each["retry_time_limit"].total_seconds() for each in options] == [2, 2, 9]


def test_secrets_are_not_shown() -> None:
    shown = without_secrets("s3://key:secret@bucket/path/?endpoint_override=127.0.0.1:1&scheme=http")
    assert shown == "s3://bucket/path"


def test_what_a_reader_holds_is_bounded(uri: str, local: Dataset, cache: ShardCache) -> None:
    remote = open_dataset(uri, cache)
    remote.storage.memory_limit = 3000
    np.testing.assert_array_equal(remote.read(0, remote.tokens), local.read(0, local.tokens))
    held = [number for number in range(len(remote.index.shard)) if number in remote._chunks]
    assert sum(int(remote.index.length[number]) for number in held) <= 3000


def record_of(content: bytes) -> FileRecord:
    return FileRecord(len(content), hashlib.sha256(content).hexdigest())


def test_the_cache_keeps_within_its_limit_and_drops_what_was_not_used(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "c", limit=250)
    contents = [bytes([number]) * 100 for number in range(3)]
    records = [record_of(content) for content in contents]
    for place in (0, 1):
        assert cache.add(records[place], [contents[place]])
        time.sleep(0.01)
    assert cache.find(records[0])
    time.sleep(0.01)
    assert cache.add(records[2], [contents[2]])
    assert [cache.find(record) is not None for record in records] == [True, False, True]
    assert not cache.holds(FileRecord(251, ""))


def test_the_cache_takes_nothing_that_is_not_what_it_should_be(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "c")
    record = record_of(b"right")
    assert not cache.add(record, [b"wrong"])
    assert cache.find(record) is None

    def broken() -> Iterator[bytes]:
        yield b"ri"
        raise OSError("the line went down")

    with pytest.raises(OSError, match="went down"):
        cache.add(record, broken())
    assert list((tmp_path / "c").iterdir()) == []


def test_the_remains_of_a_killed_fetch_are_cleared_away(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "c")
    (tmp_path / "c").mkdir()
    for name, age in (("old", 7200), ("new", 0)):
        path = tmp_path / f"c/.{name}.partial"
        path.touch()
        os.utime(path, (time.time() - age, time.time() - age))
    cache.add(record_of(b"x"), [b"x"])
    assert {path.name for path in (tmp_path / "c").iterdir()} == {".new.partial", record_of(b"x").sha256}
