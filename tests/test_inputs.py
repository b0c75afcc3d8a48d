"""Inputs: every line is read exactly once, wherever they are cut, and a bad file is one clear line."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.data.inputs import lines_before, plan_splits, read_piece
from raylm.data.lines import blocks_of_lines, without_malformed
from raylm.errors import UserError


def lines_of(paths: list[Path], split_bytes: int = 1 << 26) -> list[tuple[str, int, bytes]]:
    """Source, number in the source (from 0) and content of every line."""
    found = []
    for split in plan_splits(paths, split_bytes=split_bytes):
        for piece in split.pieces:
            before = lines_before(piece)
            for block in read_piece(piece):
                lines = block.data.split(b"\n")
                lines = lines[:-1] if block.data.endswith(b"\n") and block.numbers is None else lines
                found += [(piece.source, before + block.number(n), line) for n, line in enumerate(lines)]
    return found


@settings(max_examples=150, deadline=None)
@given(
    text=st.lists(st.sampled_from([b"", b"a", b"bc d", b"\n", b"\n\n", b"efgh\n", b"x" * 9]), max_size=12),
    split_bytes=st.integers(1, 12),
    block_bytes=st.integers(1, 8),
)
def test_every_line_is_in_exactly_one_piece(text: list[bytes], split_bytes: int, block_bytes: int) -> None:
    whole = b"".join(text)
    read = b""
    for start in range(0, len(whole), split_bytes):
        stream = io.BytesIO(whole)
        stream.seek(max(start - 1, 0))
        stop = min(start + split_bytes, len(whole))
        line = 0
        for block in blocks_of_lines(stream, "text", start=start, stop=stop, block_bytes=block_bytes):
            assert block.offset == len(read)
            assert block.first_line == line
            read += block.data
            line += block.lines
    assert read == whole


@pytest.mark.parametrize("split_bytes", [1, 7, 40, 1000])
def test_lines_keep_their_numbers_wherever_files_are_cut(split_bytes: int, tmp_path: Path) -> None:
    paths = []
    for name in ("a.txt", "b.txt"):
        paths.append(tmp_path / name)
        paths[-1].write_bytes(b"".join(b"%d of %s\n" % (n, name.encode()) for n in range(23)) + b"last")
    expected = [
        (str(path), n, b"%d of %s" % (n, path.name.encode()) if n < 23 else b"last")
        for path in paths
        for n in range(24)
    ]
    assert lines_of(paths, split_bytes) == expected


def test_many_small_files_share_a_split(tmp_path: Path) -> None:
    paths = []
    for n in range(50):
        paths.append(tmp_path / f"{n:02d}.txt")
        paths[-1].write_text("ten bytes\n")
    assert [len(split.pieces) for split in plan_splits(paths, split_bytes=100)] == [10] * 5


def test_what_a_file_is_its_first_bytes_say(tmp_path: Path) -> None:
    text = b"".join(b"line %d\n" % n for n in range(1000))
    plain = tmp_path / "plain.gz"
    plain.write_bytes(text)
    zipped = tmp_path / "zipped.txt"
    zipped.write_bytes(gzip.compress(text[:100]) + gzip.compress(text[100:]))
    zstandard = tmp_path / "zstandard"
    zstandard.write_bytes(pa.Codec("zstd").compress(text, asbytes=True))
    table = tmp_path / "table"
    pq.write_table(pa.table({"text": text.decode().splitlines()}), table, row_group_size=300)
    for path in (plain, zipped, zstandard, table):
        assert [line for _, _, line in lines_of([path])] == text.splitlines(), path
        assert [number for _, number, _ in lines_of([path])] == list(range(1000)), path


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\ntwo\n".encode())
    assert [line for _, _, line in lines_of([tmp_path / "a.txt"])] == [b"one", b"two"]


def test_rows_of_parquet_may_be_null_or_several_lines(tmp_path: Path) -> None:
    column = pa.array(["one\ntwo", None, "three"]).dictionary_encode()
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    found = [(number, line) for _, number, line in lines_of([tmp_path / "a.parquet"])]
    assert found == [(0, b"one"), (0, b"two"), (1, b""), (2, b"three")]


def test_lines_that_are_not_utf8_are_emptied_and_located() -> None:
    data = b"good\n" + b"b\xe9d\n" + "naïve\n".encode() + b"\xff"
    (block,) = blocks_of_lines(io.BytesIO(data), "text")
    clean, malformed = without_malformed(block)
    assert clean.data == "good\n\nnaïve\n".encode()
    assert [(line.line, line.reason) for line in malformed] == [
        (1, "not UTF-8: byte offset 6 (0xe9)"),
        (3, "not UTF-8: byte offset 16 (0xff)"),
    ]


def test_inputs_that_cannot_be_read_are_one_clear_line(tmp_path: Path) -> None:
    def refused(path: Path, match: str) -> None:
        with pytest.raises(UserError, match=match) as error:
            lines_of([path])
        assert "\n" not in str(error.value)

    refused(tmp_path / "nothing", "nothing does not exist")
    refused(tmp_path, "is a folder")
    text = os.urandom(300_000)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(text)[:-1000])
    refused(tmp_path / "cut.gz", r"cut\.gz is truncated or corrupt")
    (tmp_path / "bad.gz").write_bytes(b"\x1f\x8b\x08 not really")
    refused(tmp_path / "bad.gz", r"bad\.gz is truncated or corrupt")
    (tmp_path / "cut.zst").write_bytes(pa.Codec("zstd").compress(text, asbytes=True)[:-1000])
    refused(tmp_path / "cut.zst", r"cut\.zst (is truncated or corrupt|cannot be read)")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but no more")
    refused(tmp_path / "bad.parquet", r"bad\.parquet is truncated or corrupt")
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), tmp_path / "other.parquet")
    refused(tmp_path / "other.parquet", r"no column 'text' but body, n.*--text-column")
    pq.write_table(pa.table({"text": [1]}), tmp_path / "numbers.parquet")
    refused(tmp_path / "numbers.parquet", "holds int64, not text")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("secret\n")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(UserError, match="permission denied"):
        lines_of([tmp_path / "a.txt"])


def test_a_line_without_end_is_refused_before_memory_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raylm.data.lines.LONGEST_LINE", 1 << 17)
    with pytest.raises(UserError, match="endless has a line of more than"):
        list(blocks_of_lines(io.BytesIO(b"x" * (1 << 20)), "endless", block_bytes=1 << 10))
