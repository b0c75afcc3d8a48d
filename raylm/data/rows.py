"""Rows that are longer than the limit: cut, left out or refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from raylm.data.tokenize import Rows

LongRows = Literal["split", "truncate", "drop", "error"]


@dataclass(frozen=True)
class LongRow:
    """A row with more tokens than the limit, and the line of the block (from 0) that it came from."""

    line: int
    tokens: int


def limit_rows(rows: Rows, limit: int, policy: LongRows, end_of_sentence: int) -> tuple[Rows, tuple[LongRow, ...]]:
    """Rows of at most `limit` tokens (at least 2, `<eos>` counted), and which were longer.

    split: into rows that follow each other, only the last ended by `<eos>`, so the stream of tokens stays the same.
    truncate: the first tokens, then `<eos>`. drop: left out. error: left as they are, for the caller to refuse.
    """
    over = np.flatnonzero(rows.lengths > limit)
    if not len(over):
        return rows, ()
    long = tuple(LongRow(int(rows.lines[row]), int(rows.lengths[row])) for row in over)
    if policy == "error":
        return rows, long
    if policy == "split":
        parts = -(-rows.lengths // limit)
        lengths = np.full(int(parts.sum()), limit)
        lengths[np.cumsum(parts) - 1] = rows.lengths - (parts - 1) * limit
        return Rows(rows.ids, lengths, np.repeat(rows.lines, parts)), long
    starts = np.cumsum(rows.lengths) - rows.lengths
    keep = np.ones(len(rows.ids), np.bool_)
    ids = rows.ids.copy()
    for row in over:
        first = int(starts[row])
        kept = limit if policy == "truncate" else 0
        keep[first + kept : first + int(rows.lengths[row])] = False
        if kept:
            ids[first + kept - 1] = end_of_sentence
    lengths = np.minimum(rows.lengths, limit) if policy == "truncate" else np.delete(rows.lengths, over)
    lines = rows.lines if policy == "truncate" else np.delete(rows.lines, over)
    return Rows(ids[keep], lengths, lines), long
