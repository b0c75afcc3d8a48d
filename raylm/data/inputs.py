"""Inputs: plain, gzip and zstd text, and Parquet, cut into splits and read as blocks of whole lines.

A split is a piece of an input that can be worked on alone: a range of bytes of a plain file (a line belongs to the
split it begins in), row groups of a Parquet file, the whole of a compressed file. The cut depends on the inputs only.
What a file is, its first bytes say, not its name.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raylm.errors import UserError

SPLIT_BYTES = 1 << 26
BLOCK_BYTES = 1 << 22
LONGEST_LINE = 1 << 28
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Format = Literal["text", "gzip", "zstd", "parquet"]


class ByteStream(Protocol):
    """What a plain file and a decompressed one have in common."""

    def read(self, size: int, /) -> bytes: ...

    def readline(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Split:
    """One piece of the inputs. `start` and `stop` are bytes (text), row groups (Parquet) or 0 and 0 (the whole)."""

    index: int
    source: str
    format: Format
    start: int = 0
    stop: int = 0


@dataclass(frozen=True)
class Block:
    """Whole lines of one split, divided by b"\\n".

    data: the lines.
    first_line: number of the first line, from 0 at the split's beginning.
    offset: place of the first byte in the (uncompressed) source; -1 where that means nothing (Parquet).
    numbers: int64 [lines], number of each line where they do not simply count up (a Parquet row with line ends in
        it is several lines of one number); else None.
    lines: how many numbers this block takes up.
    """

    data: bytes
    first_line: int
    offset: int
    lines: int
    numbers: NDArray[np.int64] | None = None

    def number(self, line: int) -> int:
        """The number, in its split and from 0, of the block's line (from 0)."""
        return self.first_line + line if self.numbers is None else int(self.numbers[line])


def plan_splits(sources: Sequence[str | Path], *, split_bytes: int = SPLIT_BYTES) -> tuple[Split, ...]:
    """The splits of all sources, in order.

    Raises:
        UserError: a source is missing, is a folder or cannot be read.
    """
    splits: list[Split] = []
    for source in sources:
        path = Path(source)
        with opening(path):
            kind = _format(path)
            if kind == "text":
                cuts = list(range(0, path.stat().st_size, split_bytes))
                ranges = list(zip(cuts, [*cuts[1:], path.stat().st_size], strict=True))
            elif kind == "parquet":
                groups = pq.ParquetFile(path).metadata.num_row_groups
                ranges = [(group, group + 1) for group in range(groups)]
            else:
                ranges = [(0, 0)]
        splits += [Split(len(splits) + n, str(path), kind, *piece) for n, piece in enumerate(ranges)]
    return tuple(splits)


def read_split(split: Split, *, text_column: str = "text", block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The blocks of a split, in order; memory holds one block, or the longest line where that is longer.

    Raises:
        UserError: the source is missing, cannot be read, is truncated or corrupt, or has no such column; a line is
            longer than 256 MiB.
    """
    path = Path(split.source)
    with opening(path):
        if split.format == "parquet":
            yield from _parquet_blocks(split, text_column)
        elif split.format == "text":
            with path.open("rb") as file:
                yield from _range_blocks(file, split, block_bytes)
        elif split.format == "gzip":
            with gzip.open(path, "rb") as stream:
                yield from _blocks(stream, split.source, block_bytes)
        else:
            with path.open("rb") as file, closing(pa.CompressedInputStream(file, "zstd")) as stream:
                yield from _blocks(stream, split.source, block_bytes)


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Turns what can go wrong in reading a path into one clear UserError."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name the files in it") from None
    except PermissionError:
        raise UserError(f"{path} may not be read (permission denied)") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowInvalid) as error:
        raise UserError(f"{path} is truncated or corrupt: {_first_line(error)}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {_first_line(error)}") from None


def check_utf8(block: Block, source: str, lines_before: int = 0) -> None:
    """Passes text through.

    Raises:
        UserError: a byte is not UTF-8; names file, line and byte offset.
    """
    try:
        block.data.decode()
    except UnicodeDecodeError as error:
        line = lines_before + block.number(block.data.count(b"\n", 0, error.start)) + 1
        raise UserError(
            f"{source} is not UTF-8: line {line}, byte offset {block.offset + error.start} "
            f"(0x{block.data[error.start]:02x}); save the text as UTF-8"
        ) from None


def _format(path: Path) -> Format:
    with path.open("rb") as file:
        first = file.read(4)
    if first[:2] == b"\x1f\x8b":
        return "gzip"
    if first == b"\x28\xb5\x2f\xfd":
        return "zstd"
    return "parquet" if first == b"PAR1" else "text"


def _range_blocks(file: IO[bytes], split: Split, block_bytes: int) -> Iterator[Block]:
    """Blocks of the lines that begin in [start, stop) of a plain file."""
    start = split.start
    if start:
        file.seek(start - 1)
        start += len(_read_line(file, split.source)) - 1
    file.seek(start)
    yield from _blocks(file, split.source, block_bytes, start, split.stop)


def _blocks(
    stream: ByteStream, source: str, block_bytes: int, offset: int = 0, stop: int | None = None
) -> Iterator[Block]:
    line = 0
    while stop is None or offset < stop:
        data = stream.read(block_bytes if stop is None else min(block_bytes, stop - offset))
        if not data:
            return
        if data[-1:] != b"\n":
            data = data + _read_line(stream, source)
        lines = data.count(b"\n") + (data[-1:] != b"\n")
        mark = len(_BYTE_ORDER_MARK) if offset == 0 and data.startswith(_BYTE_ORDER_MARK) else 0
        yield Block(data[mark:], line, offset + mark, lines)
        line += lines
        offset += len(data)


def _read_line(stream: ByteStream, source: str) -> bytes:
    """The rest of a line, to its end."""
    pieces: list[bytes] = []
    size = 0
    while not (pieces and pieces[-1].endswith(b"\n")):
        if size > LONGEST_LINE:
            raise UserError(f"{source} has a line of more than {LONGEST_LINE >> 20} MiB; divide it into lines")
        piece = stream.readline(BLOCK_BYTES)
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def _parquet_blocks(split: Split, text_column: str) -> Iterator[Block]:
    file = pq.ParquetFile(split.source)
    schema = file.schema_arrow
    if text_column not in schema.names:
        raise UserError(
            f"{split.source} has no column {text_column!r}; its columns are {', '.join(schema.names)} (--text-column)"
        )
    row = 0
    groups = list(range(split.start, split.stop))
    for batch in file.iter_batches(batch_size=8192, row_groups=groups, columns=[text_column]):
        column = batch.column(0)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if not (_is_text(column.type)):
            raise UserError(f"{split.source}: column {text_column!r} holds {column.type}, not text")
        values = [value or b"" for value in column.cast(pa.large_binary()).to_pylist()]
        per_value = np.fromiter((value.count(b"\n") + 1 for value in values), np.int64, len(values))
        numbers = row + np.repeat(np.arange(len(values)), per_value)
        yield Block(b"\n".join(values), row, -1, len(values), numbers)
        row += len(values)


def _is_text(kind: pa.DataType) -> bool:
    return any(
        test(kind)
        for test in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
        )
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
