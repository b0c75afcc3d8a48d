"""Packs rows into chunks, and chunks into shards, by their number alone: how rows are handed over changes no byte."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raylm.data.caching import storing
from raylm.data.shard import ShardRecord, ShardWriter
from raylm.data.vocabulary import Vocabulary


class ChunkedShards:
    """Packs rows into chunks of whole rows, up to `chunk_tokens` (a longer row is a chunk of its own), and chunks
    into shards of up to `shard_tokens`.

    `path_of` says where the shard of a number (from 0) goes. A shard appears there when it is finished; leave the
    context before, and the shard that was begun remains as a hidden file beside.
    """

    def __init__(
        self, path_of: Callable[[int], Path], vocabulary: Vocabulary, *, chunk_tokens: int, shard_tokens: int
    ) -> None:
        self._path_of = path_of
        self._vocabulary = vocabulary
        self._chunk_tokens = chunk_tokens
        self._shard_tokens = shard_tokens
        self._ids: list[NDArray[Any]] = []
        self._lengths: list[NDArray[np.int64]] = []
        self._pending = 0
        self._shard: ShardWriter | None = None
        self._temporary = Path()
        self._finished: list[ShardRecord] = []

    def append(self, ids: NDArray[Any], lengths: NDArray[np.int64]) -> None:
        """Add rows: their ids one after the other, and the length of each. Raises UserError: cannot be written."""
        self._ids.append(ids.astype(self._vocabulary.id_type))
        self._lengths.append(lengths)
        self._pending += len(ids)
        if self._pending > self._chunk_tokens:
            self._write_chunks(last=False)

    def finish(self) -> tuple[ShardRecord, ...]:
        """Write what is left; returns the record of every shard, in order. Raises UserError: cannot be written."""
        self._write_chunks(last=True)
        self._finish_shard()
        return tuple(self._finished)

    def __enter__(self) -> ChunkedShards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    def abandon(self) -> None:
        """Close the shard that was begun as it is."""
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
        path = self._path_of(len(self._finished))
        with storing(path.parent):
            if self._shard is None:
                self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
                self._shard = ShardWriter(self._temporary, self._vocabulary.id_type, self._vocabulary.unknown)
            self._shard.write(ids, lengths)

    def _finish_shard(self) -> None:
        if self._shard is not None:
            path = self._path_of(len(self._finished))
            with storing(path.parent):
                record = self._shard.close()
                os.replace(self._temporary, path)
            self._finished.append(record)
            self._shard = None
