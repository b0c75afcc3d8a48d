"""Inputs: plain, gzip and zstd text, and Parquet, cut into splits that can be worked on alone.

A split is one or more pieces: ranges of bytes of plain files (a line belongs to the piece it begins in), row groups
of Parquet files, compressed files whole. The cut depends on the inputs only, never on who works on them. What a file
is, its first bytes say, not its name. Sources are paths, or URIs that `pyarrow.fs` knows (`s3://`, `gs://`).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raylm.data.lines import Block, blocks_of_lines
from raylm.data.remote import connect, without_secrets
from raylm.errors import UserError

SPLIT_BYTES = 1 << 26
_ROWS_AT_ONCE = 8192
_COMPRESSION = 4  # text is about so many times as large as its gzip or zstd; only the cut's balance depends on it

Format = Literal["text", "gzip", "zstd", "parquet"]


@dataclass(frozen=True)
class Piece:
    """A part of one source: bytes [start, stop) of plain text, row groups [start, stop) of Parquet, else the whole.

    bytes: about how much text it is.
    """

    source: str
    format: Format
    start: int
    stop: int
    bytes: int

    @property
    def place(self) -> str:
        """The source, as it may be shown."""
        return shown(self.source)


@dataclass(frozen=True)
class Split:
    """Pieces that are worked on together, in this order."""

    index: int
    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> int:
        """About how much text it is."""
        return sum(piece.bytes for piece in self.pieces)


def plan_splits(sources: Sequence[str | Path], *, split_bytes: int = SPLIT_BYTES) -> tuple[Split, ...]:
    """The splits of all sources, in order, of about `split_bytes` where the inputs can be cut so.

    Raises:
        UserError: a source is missing, is a folder, cannot be read or is corrupt.
    """
    splits: list[Split] = []
    together: list[Piece] = []
    size = 0
    for source in sources:
        for piece in _pieces(str(source), split_bytes):
            if together and size + piece.bytes > split_bytes:
                splits.append(Split(len(splits), tuple(together)))
                together, size = [], 0
            together.append(piece)
            size += piece.bytes
    return (*splits, Split(len(splits), tuple(together))) if together else tuple(splits)


def read_piece(piece: Piece, *, text_column: str = "text") -> Iterator[Block]:
    """The blocks of a piece, in order; memory holds one block, or the longest line where that is longer.

    Raises:
        UserError: the source is missing, cannot be read, is truncated or corrupt, or has no such column; a line is
            longer than 256 MiB.
    """
    with opening(piece.source), ExitStack() as stack:
        file = stack.enter_context(_open(piece.source))
        if piece.format == "parquet":
            yield from _parquet_blocks(piece, file, text_column)
        elif piece.format == "text":
            file.seek(max(piece.start - 1, 0))
            yield from blocks_of_lines(file, piece.place, start=piece.start, stop=piece.stop)
        elif piece.format == "gzip":
            yield from blocks_of_lines(stack.enter_context(gzip.GzipFile(fileobj=file)), piece.place)
        else:
            yield from blocks_of_lines(stack.enter_context(pa.CompressedInputStream(file, "zstd")), piece.place)


def lines_before(piece: Piece) -> int:
    """Lines of the source before a piece: read and counted, so only for a message about to be shown."""
    with opening(piece.source), _open(piece.source) as file:
        if piece.format == "parquet":
            metadata = pq.ParquetFile(file).metadata
            return sum(int(metadata.row_group(group).num_rows) for group in range(piece.start))
        lines, offset = 0, 0
        while offset < piece.start and (data := file.read(min(1 << 22, piece.start - offset))):
            lines += data.count(b"\n")
            offset += len(data)
        # A line that is cut by the piece's beginning belongs to the piece before.
        return lines + (bool(offset) and not data.endswith(b"\n"))


@contextmanager
def opening(source: str | Path) -> Iterator[None]:
    """Turns what can go wrong in reading a source into one clear UserError."""
    source = shown(source)
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{source} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{source} is a folder; name the files in it") from None
    except PermissionError:
        raise UserError(f"{source} may not be read (permission denied)") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowInvalid) as error:
        raise UserError(f"{source} is truncated or corrupt: {_first_line(error)}") from None
    except OSError as error:
        raise UserError(f"{source} cannot be read: {_first_line(error)}") from None


def shown(source: str | Path) -> str:
    """A source as it may be shown: a URI without its credentials."""
    return without_secrets(str(source)) if "://" in str(source) else str(source)


def _open(source: str) -> IO[bytes] | Any:
    """The source's bytes: a context with read and seek."""
    if "://" in source:
        filesystem, path = connect(source)
        return filesystem.open_input_file(path)
    return Path(source).open("rb")


def _pieces(source: str, split_bytes: int) -> Iterator[Piece]:
    with opening(source), _open(source) as file:
        size = file.seek(0, 2)
        file.seek(0)
        first = file.read(4)
        if first == b"PAR1":
            metadata = pq.ParquetFile(file).metadata
            for group in range(metadata.num_row_groups):
                yield Piece(source, "parquet", group, group + 1, int(metadata.row_group(group).total_byte_size))
        elif first[:2] == b"\x1f\x8b":
            yield Piece(source, "gzip", 0, 0, size * _COMPRESSION)
        elif first == b"\x28\xb5\x2f\xfd":
            yield Piece(source, "zstd", 0, 0, size * _COMPRESSION)
        else:
            for start in range(0, size, split_bytes):
                stop = min(start + split_bytes, size)
                yield Piece(source, "text", start, stop, stop - start)


def _parquet_blocks(piece: Piece, file: IO[bytes], text_column: str) -> Iterator[Block]:
    parquet = pq.ParquetFile(file)
    schema = parquet.schema_arrow
    if text_column not in schema.names:
        raise UserError(
            f"{piece.place} has no column {text_column!r} but {', '.join(schema.names)}: name one with --text-column"
        )
    kind = schema.field(text_column).type
    if not _is_text(kind.value_type if pa.types.is_dictionary(kind) else kind):
        raise UserError(
            f"{piece.place}: column {text_column!r} holds {kind}, not text; name another with --text-column"
        )
    row = 0
    groups = list(range(piece.start, piece.stop))
    for batch in parquet.iter_batches(_ROWS_AT_ONCE, row_groups=groups, columns=[text_column]):
        column = batch.column(0)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        values = [value or b"" for value in column.cast(pa.large_binary()).to_pylist()]
        per_row = np.fromiter((value.count(b"\n") + 1 for value in values), np.int64, len(values))
        numbers = np.repeat(np.arange(row, row + len(values)), per_row)
        yield Block(piece.place, b"\n".join(values), row, None, len(values), numbers)
        row += len(values)


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    plain = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(plain or types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
