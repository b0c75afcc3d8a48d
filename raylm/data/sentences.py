"""Sentences as padded, masked batches, bucketed by length.

The chunks of the dataset are permuted and taken a pool at a time; the rows of a pool are sorted by length and cut
into batches of the global size, and the batches are permuted. All workers read the same pools and batches, each
its own rows, so every batch has one width on all of them.

A row of n tokens has n - 1 targets, each predicted from the token before it in the same row; a row of one token
has none and is in no batch. A row longer than the widest bucket is read in pieces, each target once. Where a
pool's last batch has fewer rows than slots, its rows are spread over all slots and the slots between repeat a row
with weight zero: no slot is all padding, and no worker is without tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from raylm.config import DataConfig
from raylm.data.cursor import Cursor, check_cursor
from raylm.data.dataset import Dataset
from raylm.data.order import Purpose, check_seed, permutation
from raylm.data.streams import Place, Window
from raylm.errors import UserError

_DEFAULTS = DataConfig()

BAND = 16
"""Batches made at once: one long gather is cheaper than many short ones."""


@dataclass(frozen=True)
class Pool:
    """The rows of some chunks, sorted by length and cut into batches in the order they are read in.

    `tokens` are the ids of all rows, chunk by chunk; `chunks` are the numbers of those chunks. Row i of the
    sorted rows has its inputs at tokens[first[i]] and on, and `targets[i]` targets. Batch b holds the sorted
    rows [bounds[order[b]], bounds[order[b] + 1]).
    """

    tokens: np.ndarray
    chunks: np.ndarray
    first: np.ndarray
    targets: np.ndarray
    bounds: np.ndarray
    order: np.ndarray


class Sentences:
    """Reads rows [first_row, stop_row) of global batches of `rows` sentences.

    Each batch is a `Window`: its lanes are sentences that all begin with a zero carry, its width the smallest of
    `buckets` that holds the longest of them. A cursor's `parts` are ((pool, batch in the pool),). `pad_rows_to`
    repeats the last row with weight zero, so that workers with fewer rows (or none) have the same shape. Reading is
    a pure function of the cursor. One thread reads at a time.

    Raises:
        UserError: a bad size, seed, slice or list of buckets, or no row has a target.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        rows: int,
        seed: int,
        buckets: tuple[int, ...] = _DEFAULTS.buckets,
        pool_chunks: int = _DEFAULTS.pool_chunks,
        first_row: int = 0,
        stop_row: int | None = None,
        pad_rows_to: int | None = None,
    ) -> None:
        stop_row = rows if stop_row is None else stop_row
        if rows < 1 or pool_chunks < 1:
            raise UserError(f"rows {rows}, pool_chunks {pool_chunks}: each is at least 1")
        if not 0 <= first_row <= stop_row <= rows:
            raise UserError(f"rows [{first_row}, {stop_row}): expected a part of the {rows} rows")
        rows_here = stop_row - first_row
        padded = rows_here if pad_rows_to is None else pad_rows_to
        if padded < max(rows_here, 1):
            raise UserError(f"cannot pad {rows_here} rows to {padded}")
        if not buckets or buckets[0] < 1 or any(wide <= narrow for narrow, wide in pairwise(buckets)):
            raise UserError(f"buckets {list(buckets)}: expected widths from 1 up, each wider than the last")
        if dataset.tokens == dataset.rows:
            raise UserError(f"{dataset}: every row has one token, so there is no target; look at the input text")
        check_seed(seed)
        self.dataset = dataset
        self.rows = rows
        self._seed = seed
        self._buckets = np.array(buckets)
        self._pool_chunks = pool_chunks
        self._slots = np.minimum(np.arange(first_row, first_row + padded), rows - 1)
        self._rows_here = rows_here
        self._with_targets = np.flatnonzero(dataset.index.tokens > dataset.index.rows)
        self._pool_at: tuple[int, int] | None = None
        self._pool: Pool | None = None
        self._bands: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._every_lane = np.ones(len(self._slots), bool)
        self._every_lane.flags.writeable = False

    @property
    def targets_per_epoch(self) -> int:
        """Every token but the first of each row."""
        return self.dataset.tokens - self.dataset.rows

    @property
    def pools_per_epoch(self) -> int:
        """Pools of an epoch; each holds at least one batch."""
        return -(-len(self._with_targets) // self._pool_chunks)

    def windows_per_epoch(self, epoch: int) -> int:
        """Batches of an epoch; reads the whole dataset to know the lengths of its rows."""
        return sum(len(self._pool_of(epoch, pool).order) for pool in range(self.pools_per_epoch))

    def start(self) -> Cursor:
        """The very first cursor."""
        buckets = ",".join(str(width) for width in self._buckets)
        layout = f"sentences rows={self.rows} buckets={buckets} pool={self._pool_chunks}"
        return Cursor(dataset_id=self.dataset.dataset_id, layout=layout, seed=self._seed, parts=((0, 0),))

    def check(self, cursor: Cursor) -> None:
        """Check that a cursor is of this dataset, seed and layout.

        Raises:
            UserError: it is not; the difference is named.
        """
        check_cursor(cursor, self.start())
        if len(cursor.parts) != 1:
            raise UserError(f"cursor: parts {list(cursor.parts)} are not one pool and batch; it is damaged")

    def read(self, cursor: Cursor) -> tuple[Window, Cursor]:
        """The batch at a cursor (the next one that is not left out), and the cursor after it.

        Raises:
            UserError: the dataset is damaged or cannot be read, or the cursor is beyond its epoch.
        """
        here = self.settle(cursor)
        number, batch = here.parts[0]
        if number >= self.pools_per_epoch or batch >= len(self._pool_of(here.epoch, number).order):
            raise UserError(f"cursor: epoch {here.epoch} has no batch {batch} in pool {number}; it is damaged")
        window = self._batch(self._pool_of(here.epoch, number), batch, here)
        return window, self._move(here.forget_behind(), 1)

    def settle(self, cursor: Cursor) -> Cursor:
        """The cursor moved past what is left out: the place of the batch that `read` gives."""
        return self._move(cursor, cursor.skip_end() - cursor.position)

    def at(self, position: int) -> Cursor:
        """The cursor of a position, where nothing is left out; reads the pools before it."""
        return self._move(self.start(), position)

    def places(self, cursor: Cursor) -> tuple[Place, ...]:
        """Where each row of the global batch at a cursor lies; rows that repeat another are left out."""
        number, batch = cursor.parts[0]
        pool = self._pool_of(cursor.epoch, number)
        begin, end = (int(pool.bounds[pool.order[batch] + side]) for side in (0, 1))
        chunk_starts = np.concatenate([[0], np.cumsum(self.dataset.index.tokens[pool.chunks])])
        first = pool.first[begin:end]
        member = np.searchsorted(chunk_starts, first, side="right") - 1
        tokens = self.dataset.index.token_starts[pool.chunks[member]] + first - chunk_starts[member]
        return tuple(
            Place(self.dataset, -(-row * self.rows // (end - begin)), int(token), int(targets))
            for row, (token, targets) in enumerate(zip(tokens, pool.targets[begin:end], strict=True))
        )

    def _move(self, cursor: Cursor, batches: int) -> Cursor:
        """The cursor `batches` batches later."""
        if not batches:
            return cursor
        epoch, window = cursor.epoch, cursor.window
        number, batch = cursor.parts[0]
        for _ in range(batches):
            window, batch = window + 1, batch + 1
            if batch == len(self._pool_of(epoch, number).order):
                number, batch = number + 1, 0
            if number == self.pools_per_epoch:
                epoch, window, number = epoch + 1, 0, 0
        position = cursor.position + batches
        return replace(cursor, epoch=epoch, window=window, position=position, parts=((number, batch),))

    def _pool_of(self, epoch: int, number: int) -> Pool:
        if self._pool is None or self._pool_at != (epoch, number):
            self._pool = self._read_pool(epoch, number)
            self._pool_at = epoch, number
            self._bands = {}
        return self._pool

    def _read_pool(self, epoch: int, number: int) -> Pool:
        shuffled = permutation(self._seed, Purpose.SENTENCE_CHUNKS, epoch, len(self._with_targets))
        chunks = self._with_targets[shuffled][number * self._pool_chunks : (number + 1) * self._pool_chunks]
        self.dataset.fetch(chunks.tolist())
        members = [self.dataset.chunk(chunk) for chunk in chunks.tolist()]
        first, targets = _pieces(np.concatenate([np.diff(chunk.row_offsets) for chunk in members]), self._widest)
        shuffled = permutation(self._seed, Purpose.SENTENCE_ROWS, epoch, len(first), number)
        by_length = shuffled[np.argsort(targets[shuffled], kind="stable")]
        batches = -(-len(first) // self.rows)
        return Pool(
            tokens=np.concatenate([chunk.tokens for chunk in members]),
            chunks=chunks,
            first=first[by_length],
            targets=targets[by_length],
            bounds=np.minimum(np.arange(batches + 1) * self.rows, len(first)),
            order=permutation(self._seed, Purpose.SENTENCE_BATCHES, epoch, batches, number),
        )

    @property
    def _widest(self) -> int:
        return int(self._buckets[-1])

    def _batch(self, pool: Pool, batch: int, cursor: Cursor) -> Window:
        number = int(pool.order[batch])
        begin, end = pool.bounds[number], pool.bounds[number + 1]
        width = self._width(pool.targets[end - 1])
        band = self._bands.get(number // BAND)
        if band is None:
            band = self._bands[number // BAND] = self._read_band(pool, number // BAND)
        inputs, targets, weights = (array[number % BAND, :, :width] for array in band)
        return Window(
            inputs=inputs,
            targets=targets,
            weights=weights,
            reset=True,
            reset_lanes=self._every_lane,
            targets_total=int(pool.targets[begin:end].sum()),
            cursor=cursor,
            length=width,
        )

    def _width(self, targets: np.integer) -> int:
        return int(self._buckets[np.searchsorted(self._buckets, targets)])

    def _read_band(self, pool: Pool, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs, targets and weights [batches, rows_here, width] of batches that lie side by side by length."""
        bounds = pool.bounds[number * BAND : (number + 1) * BAND + 1]
        width = self._width(pool.targets[bounds[-1] - 1])
        sizes = np.diff(bounds)[:, None]
        row = self._slots * sizes // self.rows
        is_first = (self._slots == 0) | (row != (self._slots - 1) * sizes // self.rows)
        is_first[:, self._rows_here :] = False
        row += bounds[:-1, None]
        within = np.arange(width) < pool.targets[row][:, :, None]
        places = pool.first[row][:, :, None] + np.arange(width + 1)
        ids = np.take(pool.tokens, places, mode="clip").astype(np.int32)
        band = ids[:, :, :-1] * within, ids[:, :, 1:] * within, (within & is_first[:, :, None]).astype(np.float32)
        for array in band:
            array.flags.writeable = False
        return band


def _pieces(lengths: np.ndarray, widest: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each piece of the rows begins, and how many targets it has, at most `widest`."""
    row_targets = lengths.astype(np.int64) - 1
    pieces = -(-row_targets // widest)
    row = np.repeat(np.arange(len(lengths)), pieces)
    piece = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    row_first = np.cumsum(lengths, dtype=np.int64) - lengths
    return row_first[row] + piece * widest, np.minimum(row_targets[row] - piece * widest, widest)
