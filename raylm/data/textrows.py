"""Rows of tokens straight from text files, a block of lines at a time: for text that is read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raylm.data.encode import encode_block
from raylm.data.inputs import SPLIT_BYTES, plan_splits, read_piece, shown
from raylm.data.tokenize import tokenizer_named
from raylm.data.vocabulary import Vocabulary
from raylm.errors import UserError


@dataclass(frozen=True)
class TextRows:
    """Some rows of one file, in order.

    source: the file. ids: [tokens], every row's ids with `<eos>` at its end, one row after the other. lengths: int64
    [rows]. lines: int64 [rows], the line of the file, from 1, that each row is.
    """

    source: str
    ids: NDArray[np.uint32]
    lengths: NDArray[np.int64]
    lines: NDArray[np.int64]


def rows_of_text(
    sources: Sequence[str | Path], tokenizer: str, vocabulary: Vocabulary, *, split_bytes: int = SPLIT_BYTES
) -> Iterator[TextRows]:
    """The rows of plain, gzip or zstd text or Parquet (column `text`), file after file; memory holds one block.

    Words that the vocabulary lacks are `<unk>`; lines without tokens are left out.

    Raises:
        UserError: a file is missing, cannot be read, is corrupt or has no tokens; a line, which is named, is not UTF-8
            or holds a token that is not in a vocabulary without `<unk>`.
    """
    for source in sources:
        found = False
        for rows in _rows_of_one(source, tokenizer, vocabulary, split_bytes):
            found = True
            yield rows
        if not found:
            raise UserError(f"{shown(source)} holds no text")


def _rows_of_one(source: str | Path, tokenizer: str, vocabulary: Vocabulary, split_bytes: int) -> Iterator[TextRows]:
    words = tokenizer_named(tokenizer)
    encode = words.encoder(vocabulary)
    lines_before = 0
    for split in plan_splits([source], split_bytes=split_bytes):
        for piece in split.pieces:
            lines = 0
            for block in read_piece(piece):
                rows, _ = encode_block(block, piece, encode, is_text=words.is_text, refuse=True)
                numbers = rows.lines + block.first_line if block.numbers is None else block.numbers[rows.lines]
                if len(rows.lengths):
                    yield TextRows(piece.place, rows.ids, rows.lengths, numbers + lines_before + 1)
                lines += block.lines
            lines_before += lines
