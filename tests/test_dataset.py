"""Promises of the dataset format: what is written is what is read, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raylm.data.caching import storing
from raylm.data.dataset import open_dataset
from raylm.data.manifest import MANIFEST, load_manifest
from raylm.data.vocabulary import Vocabulary
from raylm.data.writer import DatasetWriter
from raylm.errors import UserError

WORDS = Vocabulary(("<eos>", "<unk>", *(f"w{number}" for number in range(98))))


def rows(count: int, seed: int = 0, longest: int = 12) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, count)
    return random.integers(0, len(WORDS), int(lengths.sum())), lengths


def write(path: Path, count: int = 500, seed: int = 0, **sizes: int) -> str:
    tokens, lengths = rows(count, seed)
    with DatasetWriter(path, WORDS, **{"chunk_tokens": 256, "shard_tokens": 1024, **sizes}) as writer:
        writer.append(tokens, lengths)
        return writer.commit()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tokens, lengths = rows(500)
    dataset_id = write(tmp_path / "d")
    dataset = open_dataset(tmp_path / "d")
    assert (dataset.dataset_id, dataset.tokens, dataset.rows) == (dataset_id, len(tokens), 500)
    assert dataset.unknowns == np.count_nonzero(tokens == 1)
    assert dataset.vocabulary == WORDS
    np.testing.assert_array_equal(dataset.read(0, dataset.tokens), tokens)
    found = np.concatenate([np.diff(dataset.chunk(n).row_offsets) for n in range(dataset.manifest.totals.chunks)])
    np.testing.assert_array_equal(found, lengths)


def test_every_range_is_right_at_chunk_and_shard_borders(tmp_path: Path) -> None:
    tokens, _ = rows(60)
    write(tmp_path / "d", count=60, chunk_tokens=40, shard_tokens=80)
    dataset = open_dataset(tmp_path / "d")
    assert len(dataset.manifest.files) > 5
    for start in range(len(tokens) + 1):
        for stop in range(start, min(start + 90, len(tokens) + 1)):
            np.testing.assert_array_equal(dataset.read(start, stop), tokens[start:stop])
    with pytest.raises(IndexError):
        dataset.read(0, len(tokens) + 1)


@pytest.mark.parametrize("rows_at_a_time", [1, 7, 500])
def test_how_rows_are_handed_over_changes_no_byte(tmp_path: Path, rows_at_a_time: int) -> None:
    expected = write(tmp_path / "whole")
    tokens, lengths = rows(500)
    ends = np.cumsum(lengths)
    with DatasetWriter(tmp_path / "d", WORDS, chunk_tokens=256, shard_tokens=1024) as writer:
        for row in range(0, 500, rows_at_a_time):
            part = lengths[row : row + rows_at_a_time]
            first = int(ends[row] - lengths[row])
            writer.append(tokens[first : first + part.sum()], part)
        assert writer.commit() == expected


def test_provenance_and_rejects_do_not_change_the_dataset_id(tmp_path: Path) -> None:
    expected = write(tmp_path / "plain")
    tokens, lengths = rows(500)
    provenance = {"source": "elsewhere"}
    with DatasetWriter(tmp_path / "d", WORDS, chunk_tokens=256, shard_tokens=1024, provenance=provenance) as writer:
        writer.append(tokens, lengths)
        writer.reject("a.txt", 3, "not UTF-8")
        assert writer.commit() == expected
    manifest = open_dataset(tmp_path / "d").manifest
    assert (manifest.provenance, manifest.rejected) == (provenance, 1)
    assert (tmp_path / "d/rejects/rejects.jsonl").read_text() == (
        '{"source": "a.txt", "line": 3, "reason": "not UTF-8"}\n'
    )


def test_a_row_longer_than_a_chunk_is_a_chunk_of_its_own(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "d", WORDS, chunk_tokens=4, shard_tokens=8) as writer:
        writer.append(np.arange(30), np.array([2, 25, 1, 2]))
        writer.commit()
    dataset = open_dataset(tmp_path / "d")
    assert dataset.index.tokens.tolist() == [2, 25, 3]
    np.testing.assert_array_equal(dataset.read(0, 30), np.arange(30))


def test_large_vocabularies_have_four_byte_ids(tmp_path: Path) -> None:
    words = Vocabulary(("<eos>", *(f"w{number}" for number in range(1 << 16))))
    with DatasetWriter(tmp_path / "d", words) as writer:
        writer.append(np.array([1 << 16, 0, 5, 0]), np.array([2, 2]))
        writer.commit()
    dataset = open_dataset(tmp_path / "d")
    assert dataset.read(0, 4).dtype == np.uint32
    assert dataset.read(0, 4).tolist() == [1 << 16, 0, 5, 0]


def test_shards_are_plain_arrow_files(tmp_path: Path) -> None:
    tokens, _ = rows(500)
    write(tmp_path / "d", shard_tokens=1 << 24)
    table = pa.ipc.open_file(tmp_path / "d/shards/00000.arrow").read_all()
    assert table.schema.field("tokens").type == pa.list_(pa.field("item", pa.uint16(), nullable=False))
    assert table.num_rows == 500
    np.testing.assert_array_equal(table.column(0).combine_chunks().flatten(), tokens)


def test_leaving_without_commit_leaves_nothing(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "d", WORDS, chunk_tokens=16) as writer:
        writer.append(*rows(100))
        writer.reject("a.txt", 1, "empty")
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_without_rows_is_refused(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path / "d", WORDS)
    with writer, pytest.raises(UserError, match="not one row"):
        writer.commit()
    assert list(tmp_path.iterdir()) == []


def test_a_taken_destination_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/precious").touch()
    with pytest.raises(UserError, match="something already"):
        DatasetWriter(tmp_path / "d", WORDS)


def test_two_writers_of_the_same_dataset_both_succeed(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "d", WORDS, chunk_tokens=256, shard_tokens=1024) as writer:
        writer.append(*rows(500))
        first = write(tmp_path / "d")
        assert writer.commit() == first
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_another_dataset_that_came_first_is_kept(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "d", WORDS) as writer:
        writer.append(*rows(500))
        first = write(tmp_path / "d", seed=1)
        with pytest.raises(UserError, match="cannot be written"):
            writer.commit()
    assert open_dataset(tmp_path / "d").dataset_id == first


@pytest.mark.parametrize(("tokens", "lengths"), [([1, 2], [1]), ([1], [1, 0]), ([100], [1]), ([-1], [1])], ids=str)
def test_wrong_rows_are_refused(tmp_path: Path, tokens: list[int], lengths: list[int]) -> None:
    with DatasetWriter(tmp_path / "d", WORDS) as writer, pytest.raises(ValueError, match="ids"):
        writer.append(np.array(tokens), np.array(lengths))


def test_bad_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="chunk_tokens"):
        DatasetWriter(tmp_path / "d", WORDS, chunk_tokens=0)


def test_a_destination_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        DatasetWriter(tmp_path / "file" / "d", WORDS)


def test_a_full_disk_is_one_clear_line() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("a full disk is /dev/full here, which this system has not (Linux has)")
    with pytest.raises(UserError, match="No space left"), storing(full), full.open("wb", buffering=0) as file:
        file.write(b"x")


def flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 0x10
    path.write_bytes(data)


def read_all(path: Path) -> None:
    dataset = open_dataset(path)
    dataset.read(0, dataset.tokens)


def test_a_flipped_byte_in_any_chunk_is_found_at_first_touch(tmp_path: Path) -> None:
    write(tmp_path / "d")
    index = open_dataset(tmp_path / "d").index
    for number in range(len(index.shard)):
        path = tmp_path / f"d/shards/{index.shard[number]:05d}.arrow"
        for byte in (0, int(index.length[number]) // 2, int(index.length[number]) - 1):
            at = int(index.offset[number]) + byte
            flip(path, at)
            end = int(index.offset[number] + index.length[number])
            where = rf"{path}: chunk {number}, bytes {index.offset[number]} to {end}: expected CRC-32 "
            with pytest.raises(UserError, match=where):
                read_all(tmp_path / "d")
            flip(path, at)
    read_all(tmp_path / "d")


@pytest.mark.parametrize("name", ["vocab.arrow", "index.arrow", "manifest.json"])
def test_a_flipped_byte_outside_the_shards_is_found_on_opening(tmp_path: Path, name: str) -> None:
    write(tmp_path / "d")
    path = tmp_path / "d" / name
    for byte in range(0, path.stat().st_size, 7):
        flip(path, byte)
        with pytest.raises(UserError, match=name):
            open_dataset(tmp_path / "d")
        flip(path, byte)
    open_dataset(tmp_path / "d")


@pytest.mark.parametrize("name", ["shards/00001.arrow", "vocab.arrow", "index.arrow"])
def test_a_truncated_or_missing_file_is_found_on_opening(tmp_path: Path, name: str) -> None:
    write(tmp_path / "d")
    path = tmp_path / "d" / name
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(UserError, match=rf"{name}: expected {len(data):,} bytes, found {len(data) - 1:,}"):
        open_dataset(tmp_path / "d")
    path.unlink()
    with pytest.raises(UserError, match=rf"{name}: the file is missing"):
        open_dataset(tmp_path / "d")


@pytest.mark.parametrize(("name", "what"), [("index.arrow", "index"), ("vocab.arrow", "vocabulary")])
def test_an_index_or_vocabulary_of_another_dataset_is_refused(tmp_path: Path, name: str, what: str) -> None:
    write(tmp_path / "d")
    other = Vocabulary(tuple(reversed(WORDS.words)))
    tokens, lengths = rows(500)
    with DatasetWriter(tmp_path / "other", other, chunk_tokens=256, shard_tokens=1024) as writer:
        writer.append((tokens + 1) % 100, lengths)
        writer.commit()
    (tmp_path / "d" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(UserError, match=rf"{name}: expected SHA-256 .* the {what} is damaged or of another"):
        open_dataset(tmp_path / "d")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "d")
    path = tmp_path / "d" / MANIFEST
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(UserError, match="format version 2, this raylm reads up to version 1; upgrade"):
        open_dataset(tmp_path / "d")


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"content": {}}', b"\xff\xfe", b""], ids=repr)
def test_a_manifest_that_is_none_is_refused(text: bytes) -> None:
    with pytest.raises(UserError, match="expected"):
        load_manifest(text, "manifest.json")


def test_a_folder_without_a_dataset_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no dataset can be opened here"):
        open_dataset(tmp_path)
    with pytest.raises(UserError, match="no dataset can be opened here"):
        open_dataset(tmp_path / "nowhere")
