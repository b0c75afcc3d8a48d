"""Consecutive windows read at once, into arrays that are used again.

One long read a lane is cheaper than many short ones, and fresh memory costs more than the copy into it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from raylm.data.dataset import Dataset
from raylm.data.segments import Layout


@dataclass(frozen=True)
class Superbatch:
    """Consecutive windows of one epoch, the first of them `window`.

    `inputs` and `targets` (int32) and `weights` (float32) are [windows, lanes_here, T]. `age`, int64 [windows,
    lanes_here], is the number of windows since the lane's segment began. Of all lanes `longest`, int64 [windows], is
    the number of targets of the lane that has most, and `targets_total`, int64 [windows], counts the targets.
    """

    epoch: int
    window: int
    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    age: np.ndarray
    longest: np.ndarray
    targets_total: np.ndarray

    def holds(self, epoch: int, window: int) -> bool:
        """Whether a window is one of these."""
        return epoch == self.epoch and self.window <= window < self.window + len(self.inputs)


class Buffers(NamedTuple):
    """Inputs, targets and weights of one superbatch, [windows, lanes_here, T]."""

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


class Ring:
    """Buffers that are handed out again once nobody holds a view of them.

    Whoever keeps a window keeps its numbers: buffers in use are passed over, and new ones made where none is
    free. At most `most` are remembered.
    """

    def __init__(self, shape: tuple[int, int, int], ready: int = 2, most: int = 8) -> None:
        self._shape = shape
        self._most = most
        self._buffers = [self._new() for _ in range(ready)]

    def take(self) -> Buffers:
        """Writable buffers; what they hold is undefined."""
        for buffers in self._buffers:
            if _only_here(buffers):
                break
        else:
            buffers = self._new()
            self._buffers = [*self._buffers[-self._most + 1 :], buffers]
        for array in buffers:
            array.flags.writeable = True
        return buffers

    def _new(self) -> Buffers:
        return Buffers(*(np.empty(self._shape, kind) for kind in (np.int32, np.int32, np.float32)))


def _only_here(buffers: Buffers) -> bool:
    """Whether the tuple's own reference and the argument's are the only ones to each array."""
    return all(sys.getrefcount(buffers[place]) == 2 for place in range(3))


def read_superbatch(
    dataset: Dataset, layout: Layout, lanes: slice, epoch: int, window: int, buffers: Buffers
) -> Superbatch:
    """Read the windows of a layout for some of its lanes; the buffers may have more windows and lanes.

    Raises:
        UserError: the dataset is damaged or cannot be read.
    """
    sizes, first_target = layout.sizes[:, lanes], layout.first_target[:, lanes]
    count, lanes_here = sizes.shape
    views = Buffers(*(array[:count] for array in buffers))
    width = views.inputs.shape[2]
    if views.inputs.shape[1] == lanes_here and int(sizes.sum()) == views.inputs.size:
        views.weights.fill(1)
    else:
        for array in views:
            array.fill(0)
        views.weights[:, :lanes_here] = np.arange(width) < sizes[:, :, None]
    if dataset.storage.parallel > 1:
        begin, end = first_target[0], first_target[0] + sizes.sum(axis=0)
        dataset.fetch(
            chunk
            for first, last in zip(begin.tolist(), end.tolist(), strict=True)
            for chunk in range(dataset.locate(first), dataset.locate(min(last, dataset.tokens - 1)) + 1)
        )
    for lane, first, stop in _runs(layout.segment[:, lanes]):
        size = int(sizes[first:stop, lane].sum())
        if not size:
            continue
        begin = int(first_target[first, lane])
        ids = dataset.read(begin, begin + size + 1)
        if size == (stop - first) * width:
            views.inputs[first:stop, lane] = ids[:-1].reshape(-1, width)
            views.targets[first:stop, lane] = ids[1:].reshape(-1, width)
        else:
            real = views.weights[first:stop, lane] > 0
            views.inputs[first:stop, lane][real] = ids[:-1]
            views.targets[first:stop, lane][real] = ids[1:]
    age = np.full(views.inputs.shape[:2], np.iinfo(np.int64).max)
    age[:, :lanes_here] = layout.age[:, lanes]
    for array in (*buffers, *views, age):
        array.flags.writeable = False
    return Superbatch(epoch, window, *views, age, layout.sizes.max(axis=1), layout.sizes.sum(axis=1))


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
