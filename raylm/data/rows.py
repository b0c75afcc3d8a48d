"""Rows on their way into shards: over-long ones cut or left out, the others packed into chunks."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raylm.data.shard import ShardRecord, ShardWriter
from raylm.data.tokenize import Rows
from raylm.data.vocabulary import Vocabulary
from raylm.data.writer import storing

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


class ChunkedShards:
    """Packs rows into chunks of whole rows, up to `chunk_tokens` (a longer row is a chunk of its own), and chunks
    into shards `<name>-NNNN.arrow` of up to `shard_tokens` in `folder`.

    How the rows are handed over changes no byte. Each shard appears under its name when it is finished.
    """

    def __init__(
        self, folder: Path, name: str, vocabulary: Vocabulary, *, chunk_tokens: int, shard_tokens: int
    ) -> None:
        self._folder = folder
        self._name = name
        self._vocabulary = vocabulary
        self._chunk_tokens = chunk_tokens
        self._shard_tokens = shard_tokens
        self._ids: list[NDArray[Any]] = []
        self._lengths: list[NDArray[np.int64]] = []
        self._pending = 0
        self._shard: ShardWriter | None = None
        self._temporary = Path()
        self._finished: list[tuple[str, ShardRecord]] = []

    def append(self, ids: NDArray[Any], lengths: NDArray[np.int64]) -> None:
        """Add rows: their ids one after the other, and the length of each. Raises UserError: cannot be written."""
        self._ids.append(ids.astype(self._vocabulary.id_type))
        self._lengths.append(lengths)
        self._pending += len(ids)
        if self._pending > self._chunk_tokens:
            self._write_chunks(last=False)

    def finish(self) -> tuple[tuple[str, ShardRecord], ...]:
        """Write what is left; returns name and record of every shard, in order. Raises UserError as `append`."""
        self._write_chunks(last=True)
        self._finish_shard()
        return tuple(self._finished)

    def __enter__(self) -> ChunkedShards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shard is not None:
            self._shard.abandon()

    def _write_chunks(self, *, last: bool) -> None:
        """Write every chunk that no later row can change, and with `last` the rest."""
        if not self._pending:
            return
        ids, lengths = np.concatenate(self._ids), np.concatenate(self._lengths)
        ends = np.cumsum(lengths)
        row, start = 0, 0
        while row < len(lengths):
            stop_row = max(int(np.searchsorted(ends, start + self._chunk_tokens, side="right")), row + 1)
            if stop_row == len(lengths) and not last:
                break
            stop = int(ends[stop_row - 1])
            self._write_chunk(ids[start:stop], lengths[row:stop_row])
            row, start = stop_row, stop
        self._ids, self._lengths, self._pending = [ids[start:]], [lengths[row:]], len(ids) - start

    def _write_chunk(self, ids: NDArray[Any], lengths: NDArray[np.int64]) -> None:
        if self._shard is not None and self._shard.tokens + len(ids) > self._shard_tokens:
            self._finish_shard()
        with storing(self._folder):
            if self._shard is None:
                self._temporary = self._folder / f".{self._name}.{secrets.token_hex(6)}"
                self._shard = ShardWriter(self._temporary, self._vocabulary.id_type, self._vocabulary.unknown)
            self._shard.write(ids, lengths)

    def _finish_shard(self) -> None:
        if self._shard is not None:
            name = f"{self._name}-{len(self._finished):04d}.arrow"
            with storing(self._folder):
                self._finished.append((name, self._shard.close()))
                os.replace(self._temporary, self._folder / name)
            self._shard = None
