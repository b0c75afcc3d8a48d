"""Promises of looking into a dataset: every fault is found and located, every count is right."""

from __future__ import annotations

import hashlib
import math
import time
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_datasets import counting_dataset, make_dataset, random_rows, words

from raylm.data.dataset import Dataset, open_dataset
from raylm.data.description import describe
from raylm.data.manifest import FileRecord, dump_manifest
from raylm.data.provenance import sample_rows, where
from raylm.data.sentences import Sentences
from raylm.data.shard import INDEX_SCHEMA
from raylm.data.streams import Streams
from raylm.data.verify import verify_dataset
from raylm.data.writer import DatasetWriter
from raylm.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokens, lengths = random_rows(400)
    with DatasetWriter(tmp_path / "d", words(100), chunk_tokens=256, shard_tokens=1024) as writer:
        writer.append(tokens, lengths)
        writer.reject("a.txt", 7, "not UTF-8")
        writer.commit()
    return tmp_path / "d"


def flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def test_a_whole_dataset_has_no_fault_and_progress_reaches_the_end(folder: Path) -> None:
    said: list[tuple[int, int]] = []
    found = verify_dataset(folder, lambda done, total: said.append((done, total)))
    assert found.faults == ()
    assert found.dataset_id == open_dataset(folder).dataset_id
    on_disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert found.bytes == on_disk - (folder / "manifest.json").stat().st_size
    assert said[-1] == (found.bytes, found.bytes)


def test_a_flipped_byte_anywhere_in_a_shard_is_found_and_located(folder: Path) -> None:
    path = folder / "shards/00001.arrow"
    index = open_dataset(folder).index
    numbers = np.flatnonzero(index.shard == 1)
    for byte in range(0, path.stat().st_size, 37):
        flip(path, byte)
        (fault,) = verify_dataset(folder).faults
        inside = [n for n in numbers if index.offset[n] <= byte < index.offset[n] + index.length[n]]
        where_it_is = f"chunk {inside[0]}, bytes {index.offset[inside[0]]}" if inside else "outside its chunks"
        assert fault.startswith(f"{path}: ")
        assert where_it_is in fault
        flip(path, byte)


def test_every_fault_is_listed(folder: Path) -> None:
    index = open_dataset(folder).index
    for chunk in (1, 2, 7):
        flip(folder / f"shards/{index.shard[chunk]:05d}.arrow", int(index.offset[chunk]) + 100)
    flip(folder / "rejects/rejects.jsonl", 3)
    faults = verify_dataset(folder).faults
    assert len(faults) == 4
    for chunk, fault in zip((1, 2, 7), faults, strict=False):
        assert f"chunk {chunk}," in fault
    assert "rejects.jsonl: expected SHA-256" in faults[3]


def test_a_missing_list_of_rejects_is_a_fault_but_does_not_stop_training(folder: Path) -> None:
    (folder / "rejects/rejects.jsonl").unlink()
    (fault,) = verify_dataset(folder).faults
    assert "rejects.jsonl: the file is missing" in fault
    open_dataset(folder)


@pytest.mark.parametrize("name", ["index.arrow", "vocab.arrow", "manifest.json"])
def test_a_flipped_byte_that_stops_opening_is_one_fault(folder: Path, name: str) -> None:
    flip(folder / name, 40)
    (fault,) = verify_dataset(folder).faults
    assert name in fault


def test_the_faults_of_several_files_are_listed_though_no_dataset_can_be_opened(folder: Path) -> None:
    flip(folder / "index.arrow", 40)
    (folder / "shards/00000.arrow").unlink()
    with (folder / "shards/00002.arrow").open("ab") as file:
        file.truncate(100)
    flip(folder / "shards/00001.arrow", 500)
    index, missing, flipped, short = verify_dataset(folder).faults
    assert "00000.arrow: the file is missing" in missing
    assert "00001.arrow: expected SHA-256" in flipped
    assert "somewhere in bytes 0 to" in flipped
    assert "00002.arrow: expected" in short
    assert "found 100: it is truncated" in short
    assert "index.arrow: expected SHA-256" in index


def test_a_place_without_a_dataset_is_a_mistake_and_no_fault(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no dataset can be opened here"):
        verify_dataset(tmp_path)


def forge(folder: Path, change: dict[str, int], token: int | None = None) -> Dataset:
    """Rewrite chunk 0 with another first token or index entry, every checksum made to fit."""
    dataset = open_dataset(folder)
    path = folder / "shards/00000.arrow"
    index = dataset.index
    offset, length = int(index.offset[0]), int(index.length[0])
    data = bytearray(path.read_bytes())
    if token is not None:
        size = -(-int(index.tokens[0]) * 2 // 8) * 8
        data[offset + length - size : offset + length - size + 2] = token.to_bytes(2, "little")
        path.write_bytes(data)
    table = {name: getattr(index, name).copy() for name in INDEX_SCHEMA.names}
    table["crc32"][0] = zlib.crc32(data[offset : offset + length])
    for name, value in change.items():
        table[name][0] = value
    rewrite_index(folder, dataset, table)
    return open_dataset(folder)


def rewrite_index(folder: Path, dataset: Dataset, table: dict[str, np.ndarray]) -> None:
    with pa.ipc.new_file(str(folder / "index.arrow"), INDEX_SCHEMA) as writer:
        writer.write_table(pa.table(table, schema=INDEX_SCHEMA))
    files = {}
    for name in dataset.manifest.files:
        data = (folder / name).read_bytes()
        files[name] = FileRecord(len(data), hashlib.sha256(data).hexdigest())
    (folder / "manifest.json").write_bytes(dump_manifest(replace(dataset.manifest, files=files)))


@pytest.mark.parametrize("planted", [100, 65535])
def test_an_id_outside_the_vocabulary_is_found_even_where_every_checksum_fits(folder: Path, planted: int) -> None:
    dataset = forge(folder, {"max_id": planted}, token=planted)
    size = -(-int(dataset.index.tokens[0]) * 2 // 8) * 8
    byte = int(dataset.index.offset[0] + dataset.index.length[0]) - size
    told = rf"00000.arrow: chunk 0, .*expected ids up to 99 .*found id {planted} at token 0, byte {byte};"
    with pytest.raises(UserError, match=told):
        dataset.read(0, 10)
    (fault,) = verify_dataset(folder).faults
    assert f"found id {planted}" in fault


@pytest.mark.parametrize("change", [{"unknowns": 99}, {"min_id": 50}], ids=str)
def test_an_index_that_lies_about_ids_is_a_fault(folder: Path, change: dict[str, int]) -> None:
    forge(folder, change)
    (fault,) = verify_dataset(folder).faults
    assert "chunk 0: expected smallest and largest id" in fault


def test_an_index_that_lies_about_rows_or_tokens_is_found_on_first_touch(folder: Path) -> None:
    dataset = open_dataset(folder)
    table = {name: getattr(dataset.index, name).copy() for name in INDEX_SCHEMA.names}
    table["tokens"][:2] += [1, -1]
    rewrite_index(folder, dataset, table)
    with pytest.raises(UserError, match=r"chunk 0, .*expected .* tokens in .* rows, found"):
        open_dataset(folder).read(0, 10)


def test_an_index_whose_totals_differ_is_refused(folder: Path) -> None:
    dataset = open_dataset(folder)
    table = {name: getattr(dataset.index, name).copy() for name in INDEX_SCHEMA.names}
    table["rows"][0] += 1
    rewrite_index(folder, dataset, table)
    with pytest.raises(UserError, match="it is of another dataset"):
        open_dataset(folder)


def test_bytes_that_are_no_batch_are_refused(folder: Path) -> None:
    dataset = open_dataset(folder)
    table = {name: getattr(dataset.index, name).copy() for name in INDEX_SCHEMA.names}
    table["offset"][0] += 8
    data = (folder / "shards/00000.arrow").read_bytes()
    offset, length = int(table["offset"][0]), int(table["length"][0])
    table["crc32"][0] = zlib.crc32(data[offset : offset + length])
    rewrite_index(folder, dataset, table)
    with pytest.raises(UserError, match=r"chunk 0, .*not a batch of sentences"):
        open_dataset(folder).read(0, 10)


def test_a_description_counts_everything(tmp_path: Path) -> None:
    tokens, lengths = random_rows(400)
    found = describe(make_dataset(tmp_path / "d", tokens, lengths, 100), most_frequent=3)
    counts = Counter(tokens.tolist())
    shares = np.array(list(counts.values())) / len(tokens)
    assert found.entropy == pytest.approx(-(shares * np.log(shares)).sum())
    assert found.unigram_perplexity == pytest.approx(math.exp(found.entropy))
    assert [frequency.count for frequency in found.most_frequent] == [n for _, n in counts.most_common(3)]
    assert found.most_frequent[0].word == "<eos>"
    assert found.most_frequent[0].share == pytest.approx(400 / len(tokens))
    assert found.unknown_rate == pytest.approx(counts[1] / len(tokens))
    assert found.distinct_words == len(counts)
    assert (found.shortest_row, found.longest_row) == (1, 12)
    assert found.mean_row == pytest.approx(len(tokens) / 400)
    assert found.rows_without_target == np.count_nonzero(lengths == 1)
    assert [(bin.first, bin.last) for bin in found.row_lengths] == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16)]
    for bin in found.row_lengths:
        assert bin.rows == np.count_nonzero((lengths >= bin.first) & (lengths <= bin.last))


@pytest.fixture
def counting(tmp_path: Path) -> Dataset:
    return counting_dataset(tmp_path / "c", [1 + (7 * row) % 11 for row in range(34)])


def test_sampled_rows_are_rows_of_the_dataset(counting: Dataset) -> None:
    lengths = [1 + (7 * row) % 11 for row in range(34)]
    starts = np.cumsum([0, *lengths])
    rows = sample_rows(counting, 10, seed=3)
    assert rows == sample_rows(counting, 10, seed=3)
    assert rows != sample_rows(counting, 10, seed=4)
    assert len({row.number for row in rows}) == 10
    for row in sample_rows(counting, 1000, seed=3):
        expected = counting.vocabulary.decode(range(starts[row.number], starts[row.number + 1]))
        assert row.text == expected
        assert (counting.index.row_starts[row.chunk] <= row.number) & (
            row.number < counting.index.row_starts[row.chunk + 1]
        )


@pytest.mark.parametrize("kind", ["sequential", "chunk", "sentences"])
def test_where_says_what_each_lane_reads(counting: Dataset, kind: str) -> None:
    reader: Streams | Sentences
    if kind == "sentences":
        reader = Sentences(counting, rows=5, seed=1, buckets=(3, 6), pool_chunks=2)
    else:
        reader = Streams(counting, lanes=5, window=7, seed=1, order="chunk" if kind == "chunk" else "sequential")
    starts = np.cumsum([0, *(1 + (7 * row) % 11 for row in range(34))])
    cursor = reader.start()
    while cursor.epoch < 2:
        position = cursor.position
        window, cursor = reader.read(cursor)
        readings = where(reader, position)
        assert [reading.lane for reading in readings] == np.flatnonzero(window.weights.any(axis=1)).tolist()
        for reading in readings:
            size = int((window.weights[reading.lane] > 0).sum())
            ids = [*window.inputs[reading.lane, :size], window.targets[reading.lane, size - 1]]
            assert reading.text == counting.vocabulary.decode(ids)
            assert (reading.first_token, reading.targets) == (ids[0], size)
            assert starts[reading.row] <= ids[1] < starts[reading.row + 1]
            assert reading.shard == f"shards/{counting.index.shard[reading.chunk]:05d}.arrow"
            assert counting.index.token_starts[reading.chunk] <= ids[1] < counting.index.token_starts[reading.chunk + 1]


def test_a_negative_position_is_refused(counting: Dataset) -> None:
    with pytest.raises(UserError, match="positions count from 0"):
        where(Streams(counting, lanes=2, window=3, seed=0), -1)


def test_a_whole_copy_in_the_cache_hides_no_damage_in_the_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
    remote = open_dataset(folder.as_uri())
    remote.read(0, 1)
    end = time.monotonic() + 20
    while not list((folder.parent / "cache").rglob(remote.manifest.files["shards/00000.arrow"].sha256 + "*")):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert verify_dataset(folder.as_uri()).faults == ()
    flip(folder / "shards/00000.arrow", 500)
    assert len(verify_dataset(folder.as_uri()).faults) == 1
