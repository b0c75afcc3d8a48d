"""Retention: the last, every n-th and the best stay, whatever else goes; never fewer than two."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.checkpoint.retention import Retention, superfluous

STEPS = st.lists(st.integers(0, 300), max_size=30, unique=True)
LOSSES = st.dictionaries(st.integers(0, 300), st.floats() | st.sampled_from([4.0, 5.0]), max_size=30)
KEEP = st.builds(Retention, st.integers(0, 10), st.none() | st.integers(1, 60), st.integers(0, 5))


@given(STEPS, LOSSES, KEEP)
def test_the_last_every_nth_and_the_best_stay_and_nothing_else(
    steps: list[int], losses: dict[int, float], keep: Retention
) -> None:
    gone = superfluous(steps, losses, keep)
    kept = sorted(set(steps) - gone)
    last = sorted(steps)[-max(2, keep.last) :]
    every = [step for step in steps if keep.every and step % keep.every == 0]
    assert gone <= set(steps)
    assert set(last) <= set(kept)
    assert set(every) <= set(kept)
    assert len(kept) >= min(2, len(steps))
    judged = [step for step in steps if math.isfinite(losses.get(step, math.nan))]
    best = [step for step in kept if step in judged]
    others = [step for step in kept if step not in last and step not in every]
    assert len(best) >= min(keep.best, len(judged))
    assert len(others) <= keep.best
    assert all(losses[one] <= losses[other] for one in others for other in gone if other in judged)


@given(STEPS, LOSSES, KEEP)
def test_deciding_twice_removes_nothing_more(steps: list[int], losses: dict[int, float], keep: Retention) -> None:
    kept = set(steps) - superfluous(steps, losses, keep)
    assert superfluous(kept, losses, keep) == set()


@given(STEPS, LOSSES, KEEP, st.integers(301, 400))
def test_a_new_checkpoint_brings_no_removed_one_to_mind(
    steps: list[int], losses: dict[int, float], keep: Retention, newest: int
) -> None:
    """What was superfluous stays so: pruning after each save keeps what pruning once would."""
    assert superfluous(steps, losses, keep) <= superfluous([*steps, newest], losses, keep)


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (Retention(2), [5, 6]),
        (Retention(0), [5, 6]),
        (Retention(4), [3, 4, 5, 6]),
        (Retention(9), [1, 2, 3, 4, 5, 6]),
        (Retention(2, every=2), [2, 4, 5, 6]),
        (Retention(2, best=1), [4, 5, 6]),
        (Retention(2, best=2), [3, 4, 5, 6]),
        (Retention(2, every=4, best=9), [2, 3, 4, 5, 6]),
    ],
)
def test_of_equal_losses_the_later_is_the_better_and_nan_is_never_the_best(keep: Retention, kept: list[int]) -> None:
    losses = {1: math.nan, 2: 5.0, 3: 4.0, 4: 4.0, 6: math.inf, 7: 0.0}
    assert set(range(1, 7)) - superfluous(range(1, 7), losses, keep) == set(kept)
