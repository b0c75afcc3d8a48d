"""Truncated BPTT over lanes: windows of a global batch, each lane reading on where its last window ended.

The lanes do not depend on the workers: a worker reads a contiguous slice of them, so any number of workers up to
the number of lanes sees the same windows, and every target comes exactly once in an epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from raylm.data.cursor import Cursor, check_cursor
from raylm.data.dataset import Dataset
from raylm.data.lengths import JitteredLengths, WindowStarts
from raylm.data.order import check_seed
from raylm.data.segments import Order, Segments, epoch_segments
from raylm.errors import UserError


@dataclass(frozen=True)
class Window:
    """One window of this reader's lanes; T is the width that every window is padded to.

    `inputs` and `targets` are int32 [lanes_here, T]; `weights` is float32 [lanes_here, T], 0 where there is no
    target. `reset` is true for the first window of an epoch; `reset_lanes`, bool [lanes_here], says for which
    lanes the carry is zeroed before this window (all of them where `reset`; in chunk order, also those that go
    on elsewhere). `targets_total` counts the targets of all lanes of the global batch. `cursor` is the place of
    this window. `length` is the number of time steps before padding. The arrays are read-only.
    """

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    reset: bool
    reset_lanes: np.ndarray
    targets_total: int
    cursor: Cursor
    length: int


@dataclass(frozen=True)
class Superbatch:
    """Consecutive windows of one epoch.

    `inputs`, `targets` and `weights` are [windows, lanes_here, T]; `age`, int64 [windows, lanes_here], is the
    number of windows since the lane's segment began; `starts`, int64 [windows + 1], where the windows begin, in
    targets of a lane since the epoch's start; `targets_total`, int64 [windows], counts those of all lanes.
    """

    epoch: int
    window: int
    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    age: np.ndarray
    starts: np.ndarray
    targets_total: np.ndarray

    def holds(self, epoch: int, window: int) -> bool:
        """Whether a window is one of these."""
        return epoch == self.epoch and self.window <= window < self.window + len(self.inputs)


class Streams:
    """Reads lanes [first_lane, stop_lane) of a global batch of `lanes` lanes, in windows of `window` targets.

    With `jitter`, `window` is the greatest length. `pad_lanes_to` adds lanes without targets at the end, so that
    workers with fewer lanes have the same shape. Reading is a pure function of the cursor; windows are read
    `superbatch` at a time because one long read is cheaper than many short ones. One thread reads at a time.

    Raises:
        UserError: fewer than one lane or window, more lanes than targets, a bad seed, or a slice that is empty
            or outside the lanes.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        lanes: int,
        window: int,
        seed: int,
        order: Order = "sequential",
        jitter: JitteredLengths | None = None,
        first_lane: int = 0,
        stop_lane: int | None = None,
        pad_lanes_to: int | None = None,
        superbatch: int = 32,
    ) -> None:
        targets = dataset.tokens - 1
        stop_lane = lanes if stop_lane is None else stop_lane
        if lanes < 1 or window < 1 or superbatch < 1:
            raise UserError(f"lanes {lanes}, window {window}, superbatch {superbatch}: each is at least 1")
        if lanes > targets:
            raise UserError(
                f"{lanes} lanes need at least {lanes + 1} tokens, {dataset} has fewer; take fewer lanes or more text"
            )
        if not 0 <= first_lane < stop_lane <= lanes:
            raise UserError(f"lanes [{first_lane}, {stop_lane}): expected a part of the {lanes} lanes, not empty")
        lanes_here = stop_lane - first_lane
        if pad_lanes_to is not None and pad_lanes_to < lanes_here:
            raise UserError(f"cannot pad {lanes_here} lanes to {pad_lanes_to}")
        check_seed(seed)
        self.dataset = dataset
        self.lanes = lanes
        self.window = window
        self.lanes_here = pad_lanes_to or lanes_here
        self._seed = seed
        self._order: Order = order
        self._jitter = jitter
        self._slice = slice(first_lane, stop_lane)
        self._superbatch_windows = superbatch
        self._plans: dict[int, tuple[Segments, WindowStarts]] = {}
        self._superbatch: Superbatch | None = None

    @property
    def targets_per_epoch(self) -> int:
        """Every token but the first of the dataset."""
        return self.dataset.tokens - 1

    def windows_per_epoch(self, epoch: int) -> int:
        """Windows of an epoch, until its longest lane ends."""
        return self._plan(epoch)[0].windows

    def start(self) -> Cursor:
        """The very first cursor."""
        jitter = f" jitter={self._jitter}" if self._jitter else ""
        layout = f"streams lanes={self.lanes} window={self.window} order={self._order}{jitter}"
        return Cursor(dataset_id=self.dataset.dataset_id, layout=layout, seed=self._seed)

    def check(self, cursor: Cursor) -> None:
        """Check that a cursor is of this dataset, seed and layout.

        Raises:
            UserError: it is not; the difference is named.
        """
        check_cursor(cursor, self.start())

    def read(self, cursor: Cursor) -> tuple[Window, Cursor]:
        """The window at a cursor (the next one that is not left out), and the cursor after it.

        Raises:
            UserError: the dataset is damaged or cannot be read.
        """
        here = self.settle(cursor)
        batch = self.superbatch(here.epoch, here.window)
        k = here.window - batch.window
        left_out = here.left_out_before()
        window = Window(
            inputs=batch.inputs[k],
            targets=batch.targets[k],
            weights=batch.weights[k],
            reset=here.window <= left_out,
            reset_lanes=batch.age[k] <= left_out,
            targets_total=int(batch.targets_total[k]),
            cursor=here,
            length=int(batch.starts[k + 1] - batch.starts[k]),
        )
        after = self._move(here, 1)
        return window, replace(after, skips=tuple(pair for pair in after.skips if pair[1] > here.position))

    def settle(self, cursor: Cursor) -> Cursor:
        """The cursor moved past what is left out: the place of the window that `read` gives."""
        return self._move(cursor, cursor.skip_end() - cursor.position)

    def superbatch(self, epoch: int, window: int) -> Superbatch:
        """The superbatch that a window is in, kept until another is asked for."""
        batch = self._superbatch
        if batch is None or not batch.holds(epoch, window):
            batch = self._superbatch = self._read_superbatch(epoch, window)
        return batch

    def _move(self, cursor: Cursor, windows: int) -> Cursor:
        """The cursor `windows` windows later."""
        if not windows:
            return cursor
        epoch, window = cursor.epoch, cursor.window + windows
        while window >= self.windows_per_epoch(epoch):
            window -= self.windows_per_epoch(epoch)
            epoch += 1
        offset = int(self._plan(epoch)[1].of(np.array(window)))
        position = cursor.position + windows
        return replace(cursor, epoch=epoch, window=window, offset=offset, position=position)

    def _plan(self, epoch: int) -> tuple[Segments, WindowStarts]:
        same = self._order == "sequential" and self._jitter is None
        key = 0 if same else epoch
        plan = self._plans.get(key)
        if plan is None:
            starts = WindowStarts(self.window, self._jitter, self._seed, key)
            token_starts = self.dataset.index.token_starts
            segments = epoch_segments(token_starts, self._order, self.lanes, self._seed, key, starts)
            plan = segments, starts
            self._plans = {**dict(list(self._plans.items())[-1:]), key: plan}
        return plan

    def _read_superbatch(self, epoch: int, window: int) -> Superbatch:
        segments, window_starts = self._plan(epoch)
        if window >= segments.windows:
            raise UserError(
                f"cursor: window {window} of epoch {epoch}, which has {segments.windows}; the checkpoint is damaged"
            )
        count = min(self._superbatch_windows, segments.windows - window)
        starts = window_starts.of(np.arange(window, window + count + 1))
        segment = segments.at(window, count)
        first_window = segments.first_window[segment]
        done = starts[:-1, None] - window_starts.of(first_window)
        sizes = np.clip(segments.targets[segment] - done, 0, np.diff(starts)[:, None])
        here = (slice(None), self._slice)
        first_target = segments.first_target[segment] + done
        inputs, targets, weights = self._fill(segment[here], first_target[here], sizes[here])
        age = np.full((count, self.lanes_here), np.iinfo(np.int64).max)
        age[:, : segment[here].shape[1]] = (np.arange(window, window + count)[:, None] - first_window)[here]
        for array in (inputs, targets, weights, age):
            array.flags.writeable = False
        return Superbatch(epoch, window, inputs, targets, weights, age, starts, sizes.sum(axis=1))

    def _fill(
        self, segment: np.ndarray, first_target: np.ndarray, sizes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs, targets and weights [windows, lanes_here, T] from the arrays [windows, lanes] of each window."""
        count, lanes = segment.shape
        shape = (count, self.lanes_here, self.window)
        inputs, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        weights = np.zeros(shape, np.float32)
        weights[:, :lanes] = np.arange(self.window) < sizes[:, :, None]
        for lane, first, stop in _runs(segment):
            size = int(sizes[first:stop, lane].sum())
            if not size:
                continue
            begin = int(first_target[first, lane])
            ids = self.dataset.read(begin, begin + size + 1)
            if size == (stop - first) * self.window:
                inputs[first:stop, lane] = ids[:-1].reshape(-1, self.window)
                targets[first:stop, lane] = ids[1:].reshape(-1, self.window)
            else:
                real = weights[first:stop, lane] > 0
                inputs[first:stop, lane][real] = ids[:-1]
                targets[first:stop, lane][real] = ids[1:]
        return inputs, targets, weights


def _runs(segment: np.ndarray) -> list[tuple[int, int, int]]:
    """(lane, first, stop): the windows [first, stop) in which a lane stays in one segment."""
    count, lanes = segment.shape
    if (segment[0] == segment[-1]).all():
        return [(lane, 0, count) for lane in range(lanes)]
    runs = []
    for lane in range(lanes):
        joins = [0, *(np.flatnonzero(np.diff(segment[:, lane])) + 1).tolist(), count]
        runs += [(lane, first, stop) for first, stop in pairwise(joins)]
    return runs
