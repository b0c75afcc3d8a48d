"""Blocks of whole lines: how text is read with bounded memory, and how lines that are not UTF-8 are found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raylm.errors import UserError

BLOCK_BYTES = 1 << 22
LONGEST_LINE = 1 << 28
_STEP = 1 << 16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class ByteStream(Protocol):
    """What plain, decompressed and remote files have in common."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Block:
    """Whole lines of one piece of an input, divided by b"\\n".

    source: the file.
    data: the lines.
    first_line: number of the first line, from 0 at the piece's beginning.
    offset: place of the first byte in the (decompressed) source; None where that means nothing (Parquet).
    lines: how many numbers this block takes up.
    numbers: int64 [lines of data], the number of each line from the piece's beginning, where they do not count up
        by one (a Parquet row with line ends in it is several lines of one number); else None.
    """

    source: str
    data: bytes
    first_line: int
    offset: int | None
    lines: int
    numbers: NDArray[np.int64] | None = None

    def number(self, line: int) -> int:
        """The number, from 0 at the piece's beginning, of the block's line (from 0)."""
        return self.first_line + line if self.numbers is None else int(self.numbers[line])


@dataclass(frozen=True)
class Malformed:
    """A line of a block (from 0) that is not UTF-8, and what is wrong with it."""

    line: int
    reason: str


def blocks_of_lines(
    stream: ByteStream, source: str, *, start: int = 0, stop: int | None = None, block_bytes: int = BLOCK_BYTES
) -> Iterator[Block]:
    """Blocks of the lines that begin in [start, stop) of a source.

    `stream` stands at `start`, or one byte before it where that is not 0, so that a line which begins right at
    `start` can be told from the rest of one. A byte order mark at the very beginning is left out.

    Raises:
        UserError: a line is longer than 256 MiB.
    """
    ahead, offset, line = b"", start, 0
    if start:
        rest, ahead = _up_to_line_end(stream, source, b"", 1)
        offset += len(rest) - 1
    while stop is None or offset < stop:
        wanted = block_bytes if stop is None else min(block_bytes, stop - offset)
        data, ahead = _up_to_line_end(stream, source, ahead, wanted)
        if not data:
            return
        mark = len(_BYTE_ORDER_MARK) if offset == 0 and data.startswith(_BYTE_ORDER_MARK) else 0
        lines = data.count(b"\n") + (not data.endswith(b"\n"))
        yield Block(source, data[mark:], line, offset + mark, lines)
        line += lines
        offset += len(data)


def without_malformed(block: Block) -> tuple[Block, list[Malformed]]:
    """The block with every line that is not UTF-8 emptied (so that lines keep their numbers), and those lines."""
    try:
        block.data.decode()
        return block, []
    except UnicodeDecodeError:
        lines = block.data.split(b"\n")
    malformed = []
    offset = block.offset
    for number, line in enumerate(lines):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            place = f"byte {error.start} of the text" if offset is None else f"byte offset {offset + error.start}"
            malformed.append(Malformed(number, f"not UTF-8: {place} (0x{line[error.start]:02x})"))
            lines[number] = b""
        offset = None if offset is None else offset + len(line) + 1
    return replace(block, data=b"\n".join(lines)), malformed


def _up_to_line_end(stream: ByteStream, source: str, ahead: bytes, wanted: int) -> tuple[bytes, bytes]:
    """At least `wanted` bytes and on to the end of the line, beginning with `ahead`; and what was read beyond."""
    pieces, size = [ahead], len(ahead)
    end = ahead.find(b"\n", wanted - 1)
    while end < 0:
        piece = stream.read(max(wanted - size, _STEP))
        if not piece:
            return b"".join(pieces), b""
        found = piece.find(b"\n", max(wanted - 1 - size, 0))
        end = size + found if found >= 0 else -1
        pieces.append(piece)
        size += len(piece)
        if size > wanted + LONGEST_LINE:
            raise UserError(f"{source} has a line of more than {LONGEST_LINE >> 20} MiB; divide it into lines")
    data = b"".join(pieces)
    return data[: end + 1], data[end + 1 :]
