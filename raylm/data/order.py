"""Order as pure functions of (seed, epoch, position).

Every draw is a number of the Philox4x64-10 generator (Salmon et al. 2011) at a counter that names its epoch and
purpose, and every permutation a stable argsort of such numbers: no library's upgrade changes them, two epochs
never overlap, and any place of any epoch is reached without visiting the ones before. The golden vectors in the
tests hold them. A change here is a new `ALGORITHM`, and cursors of another one are refused.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from raylm.errors import UserError

ALGORITHM = 1


class Purpose(IntEnum):
    """What a run of draws is for; each purpose has draws of its own."""

    CHUNKS = 1
    WINDOW_LENGTHS = 2
    SENTENCE_CHUNKS = 3
    SENTENCE_ROWS = 4
    SENTENCE_BATCHES = 5
    SAMPLE = 6


def draws(seed: int, purpose: Purpose, epoch: int, count: int, part: int = 0) -> np.ndarray:
    """The first `count` draws, uint64 [count]; `part` (below 2^32) tells apart several uses in one epoch.

    Raises:
        UserError: the seed is negative or does not fit 64 bits.
    """
    check_seed(seed)
    counter = np.array([0, part, epoch, int(purpose)], np.uint64)
    key = np.array([seed, ALGORITHM], np.uint64)
    return np.random.Philox(counter=counter, key=key).random_raw(count)


def permutation(seed: int, purpose: Purpose, epoch: int, count: int, part: int = 0) -> np.ndarray:
    """A permutation of range(count), int64 [count]."""
    return np.argsort(draws(seed, purpose, epoch, count, part), kind="stable")


def lane_bounds(targets: int, lanes: int) -> np.ndarray:
    """Where lanes begin and end: lane l owns targets [bounds[l], bounds[l + 1]), int64 [lanes + 1]."""
    return np.array([lane * targets // lanes for lane in range(lanes + 1)], np.int64)


def check_seed(seed: int) -> None:
    """Raises UserError where a seed is negative or does not fit 64 bits."""
    if not 0 <= seed < 1 << 64:
        raise UserError(f"seed {seed}: a seed is a whole number from 0 to 2^64 - 1")
