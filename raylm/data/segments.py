"""Which targets each lane reads in which window of an epoch.

Target j is token j + 1 of the dataset, predicted from token j. A segment is a run of consecutive targets that one
lane reads window after window. In sequential order a lane is one segment. In chunk order the targets of chunk c
are the tokens it holds, so the first of them is predicted from the token that truly precedes it; chunks are
permuted, and a lane is several segments. Each begins with a window of its own, where the lane's carry is zeroed;
the end of the window before stays without targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from raylm.data.lengths import WindowStarts
from raylm.data.order import Purpose, lane_bounds, permutation

Order = Literal["sequential", "chunk"]


@dataclass(frozen=True)
class Segments:
    """The segments of one epoch by lane, then by window; all arrays are int64 [segments].

    `windows` is the number of windows in the epoch; `lane_first` [lanes + 1] says where each lane's segments
    begin; `keys` is lane * (windows + 1) + first_window.
    """

    first_window: np.ndarray
    first_target: np.ndarray
    targets: np.ndarray
    lane_first: np.ndarray
    keys: np.ndarray
    windows: int

    def layout(self, window: int, count: int, starts: WindowStarts) -> Layout:
        """What each lane reads in windows [window, window + count)."""
        windows = np.arange(window, window + count + 1)
        borders, segment = starts.of(windows), self.at(window, count)
        first_window = self.first_window[segment]
        done = borders[:-1, None] - starts.of(first_window)
        return Layout(
            segment=segment,
            first_target=self.first_target[segment] + done,
            sizes=np.clip(self.targets[segment] - done, 0, np.diff(borders)[:, None]),
            age=windows[:-1, None] - first_window,
        )

    def at(self, window: int, count: int) -> np.ndarray:
        """The segment that each lane reads in windows [window, window + count), [count, lanes]."""
        lanes = len(self.lane_first) - 1
        current = self._of_lanes(window)
        following = np.minimum(current + 1, len(self.first_window) - 1)
        joins = (following < self.lane_first[1:]) & (self.first_window[following] < window + count)
        if not (joins & (following > current)).any():
            return np.broadcast_to(current, (count, lanes))
        return np.stack([self._of_lanes(window + k) for k in range(count)])

    def _of_lanes(self, window: int) -> np.ndarray:
        wanted = np.arange(len(self.lane_first) - 1) * (self.windows + 1) + window
        return np.searchsorted(self.keys, wanted, side="right") - 1


@dataclass(frozen=True)
class Layout:
    """What each lane reads in some consecutive windows; arrays are int64 [windows, lanes].

    `segment` numbers the segments; a lane has `sizes` targets from `first_target` on, none after its last
    segment; `age` counts the windows since the segment began.
    """

    segment: np.ndarray
    first_target: np.ndarray
    sizes: np.ndarray
    age: np.ndarray


def epoch_segments(
    token_starts: np.ndarray, order: Order, lanes: int, seed: int, epoch: int, starts: WindowStarts
) -> Segments:
    """The segments of one epoch of a dataset whose chunks begin at `token_starts` (the last one is its end)."""
    targets = int(token_starts[-1]) - 1
    if order == "sequential":
        span_first, span_targets = np.array([0]), np.array([targets])
    else:
        chunk_first = np.maximum(token_starts - 1, 0)
        chunks = permutation(seed, Purpose.CHUNKS, epoch, len(token_starts) - 1)
        span_first, span_targets = chunk_first[chunks], np.diff(chunk_first)[chunks]
    bounds = lane_bounds(targets, lanes)
    span_starts = np.concatenate([[0], np.cumsum(span_targets)])
    cuts = np.unique(np.concatenate([bounds, span_starts]))
    begin, sizes = cuts[:-1], np.diff(cuts)
    span = np.searchsorted(span_starts, begin, side="right") - 1
    lane_first = np.searchsorted(begin, bounds, side="left")
    first_window, windows = _lay_out(sizes, lane_first, starts)
    return Segments(
        first_window=first_window,
        first_target=span_first[span] + begin - span_starts[span],
        targets=sizes,
        lane_first=lane_first,
        keys=np.repeat(np.arange(lanes), np.diff(lane_first)) * (windows + 1) + first_window,
        windows=windows,
    )


def _lay_out(sizes: np.ndarray, lane_first: np.ndarray, starts: WindowStarts) -> tuple[np.ndarray, int]:
    """The window in which each segment begins, and the number of windows until the last lane ends."""
    first_window = np.zeros(len(sizes), np.int64)
    here = lane_first[:-1].copy()
    window = np.zeros(len(here), np.int64)
    active = np.arange(len(here))
    while len(active):
        first_window[here[active]] = window[active]
        window[active] = starts.after(window[active], sizes[here[active]])
        here[active] += 1
        active = active[here[active] < lane_first[active + 1]]
    return first_window, int(window.max())
