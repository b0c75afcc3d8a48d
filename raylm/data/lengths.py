"""How many time steps each window has: all the same, or jittered as AWD-LSTM has it.

Jittered lengths (Merity, Keskar, Socher 2017, section 5): the base is 70 with probability .95, else 35; the
length is max(5, floor(N(base, 5))), and at most the width that windows are padded to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raylm.data.order import Purpose, draws
from raylm.errors import UserError


@dataclass(frozen=True)
class JitteredLengths:
    """Random window lengths: floor(N(base, deviation)), the base halved now and then, never below `shortest`."""

    base: int = 70
    short_base: int = 35
    probability: float = 0.95
    deviation: float = 5.0
    shortest: int = 5

    def __post_init__(self) -> None:
        if not (self.base >= 1 and self.short_base >= 1 and self.shortest >= 1):
            raise UserError(f"window lengths {self}: base, short_base and shortest are at least 1")
        if not (0 <= self.probability <= 1 and 0 < self.deviation < 1000):
            raise UserError(f"window lengths {self}: probability is in [0, 1], deviation in (0, 1000)")

    @property
    def longest(self) -> int:
        """No length is greater: no draw of 32 bits is as far as seven deviations above the base."""
        return max(self.base, self.short_base, self.shortest) + math.ceil(7 * self.deviation)

    def draw(self, seed: int, epoch: int, count: int, longest: int) -> np.ndarray:
        """Lengths of the first `count` windows of an epoch, int64 [count], each at most `longest`."""
        bits = draws(seed, Purpose.WINDOW_LENGTHS, epoch, count)
        normal, uniform = bits & np.uint64(0xFFFFFFFF), bits >> np.uint64(32)
        base = np.where(uniform < round(self.probability * 2**32), self.base, self.short_base)
        thresholds, lowest = _normal_thresholds(self.deviation)
        floor = lowest + np.searchsorted(thresholds, normal, side="right")
        lengths: np.ndarray = np.clip(base + floor, self.shortest, longest).astype(np.int64)
        return lengths


class WindowStarts:
    """Where the windows of an epoch begin, in targets of a lane since the epoch's start."""

    def __init__(self, window: int, jitter: JitteredLengths | None, seed: int, epoch: int) -> None:
        self.window = window
        self._jitter = jitter
        self._seed = seed
        self._epoch = epoch
        self._table = np.zeros(1, np.int64)

    def of(self, windows: np.ndarray) -> np.ndarray:
        """The start of each of these windows, int64 of the same shape."""
        if self._jitter is None:
            return np.asarray(windows * self.window)
        self._grow_to_windows(int(windows.max()) + 1)
        return np.asarray(self._table[windows])

    def after(self, windows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The first window that begins once `targets` targets have passed since the start of `windows`."""
        if self._jitter is None:
            return np.asarray(windows - (-targets // self.window))
        self._grow_to_windows(int(windows.max()) + 1)
        goal = self._table[windows] + targets
        while self._table[-1] < goal.max():
            self._grow_to_windows(2 * len(self._table))
        return np.asarray(np.searchsorted(self._table, goal, side="left"))

    def _grow_to_windows(self, entries: int) -> None:
        if self._jitter is not None and entries > len(self._table):
            count = max(entries - 1, 1024)
            lengths = self._jitter.draw(self._seed, self._epoch, count, self.window)
            self._table = np.concatenate([[0], np.cumsum(lengths)])


def _normal_thresholds(deviation: float) -> tuple[np.ndarray, int]:
    """32-bit thresholds of floor(N(0, deviation)), and the value below the first of them.

    Whole numbers, so that the last bit of an error function does not decide a length.
    """
    reach = math.ceil(7 * deviation)
    cumulative = [0.5 * (1 + math.erf(k / deviation / math.sqrt(2))) for k in range(-reach + 1, reach + 1)]
    return np.array([round(probability * 2**32) for probability in cumulative], np.uint64), -reach
