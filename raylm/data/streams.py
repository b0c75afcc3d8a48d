"""Truncated BPTT over lanes: windows of a global batch, each lane reading on where its last window ended.

The lanes do not depend on the workers: a worker reads a contiguous slice of them, so any number of workers up to
the number of lanes sees the same windows, and every target comes exactly once in an epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from raylm.data.cursor import Cursor, check_cursor
from raylm.data.dataset import Dataset
from raylm.data.lengths import JitteredLengths, WindowStarts
from raylm.data.order import check_seed
from raylm.data.segments import Layout, Order, Segments, epoch_segments
from raylm.data.superbatch import Ring, Superbatch, read_superbatch
from raylm.errors import UserError


@dataclass(frozen=True)
class Window:
    """One window of this reader's lanes; T is its length, of sentences the width that they are padded to.

    `inputs` and `targets` are int32 [lanes_here, T]; `weights` is float32 [lanes_here, T], 0 where there is no
    target. `reset` is true for the first window of an epoch; `reset_lanes`, bool [lanes_here], says for which
    lanes the carry is zeroed before this window (all of them where `reset`; in chunk order, also those that go
    on elsewhere). `targets_total` counts the targets of all lanes of the global batch. `cursor` is the place of
    this window. `length` is T. The arrays are read-only.
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
class Place:
    """What a lane reads: from token `first` of a dataset, `targets` targets (tokens first + 1 and on)."""

    dataset: Dataset
    lane: int
    first: int
    targets: int


class Streams:
    """Reads lanes [first_lane, stop_lane) of a global batch of `lanes` lanes, in windows of `window` targets.

    With `jitter`, `window` is the greatest length, and a window is no longer than the lane that has most targets in it:
    an epoch's last one as long as what is left. `pad_lanes_to` adds lanes without targets at the end, so that workers
    with fewer lanes (or none) have the same shape. Reading is a pure function of the cursor; windows are read
    `superbatch` at a time because one long read is cheaper than many short ones. One thread reads at a time.

    Raises:
        UserError: fewer than one lane or window, more lanes than targets, a bad seed, or a slice that is
            outside the lanes.
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
        if not 0 <= first_lane <= stop_lane <= lanes:
            raise UserError(f"lanes [{first_lane}, {stop_lane}): expected a part of the {lanes} lanes")
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
        self._ring = Ring((superbatch, self.lanes_here, window))

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
        length = self.window if self._jitter is None else int(batch.longest[k])
        left_out = here.left_out_before()
        window = Window(
            inputs=batch.inputs[k, :, :length],
            targets=batch.targets[k, :, :length],
            weights=batch.weights[k, :, :length],
            reset=here.window <= left_out,
            reset_lanes=batch.age[k] <= left_out,
            targets_total=int(batch.targets_total[k]),
            cursor=here,
            length=length,
        )
        return window, self._move(here.forget_behind(), 1)

    def settle(self, cursor: Cursor) -> Cursor:
        """The cursor moved past what is left out: the place of the window that `read` gives."""
        return self._move(cursor, cursor.skip_end() - cursor.position)

    def at(self, position: int) -> Cursor:
        """The cursor of a position, where nothing is left out."""
        return self._move(self.start(), position)

    def places(self, cursor: Cursor) -> tuple[Place, ...]:
        """Where each lane of the global batch reads in the window at a cursor."""
        layout = self._layout(cursor.epoch, cursor.window, 1)
        return tuple(
            Place(self.dataset, lane, int(first), int(size))
            for lane, (first, size) in enumerate(zip(layout.first_target[0], layout.sizes[0], strict=True))
        )

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
        layout = self._layout(epoch, window, self._superbatch_windows)
        self._superbatch = None
        return read_superbatch(self.dataset, layout, self._slice, epoch, window, self._ring.take())

    def _layout(self, epoch: int, window: int, most: int) -> Layout:
        segments, starts = self._plan(epoch)
        if window >= segments.windows:
            raise UserError(
                f"cursor: window {window} of epoch {epoch}, which has {segments.windows}; the checkpoint is damaged"
            )
        return segments.layout(window, min(most, segments.windows - window), starts)
