"""Order is a pure function of (seed, epoch, position), the same for ever."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from raylm.data.lengths import JitteredLengths, WindowStarts
from raylm.data.order import ALGORITHM, Purpose, draws, lane_bounds, permutation
from raylm.errors import UserError


def test_golden_vectors_hold_for_ever() -> None:
    """A failure means that every run's data would change: make a new ALGORITHM instead."""
    assert ALGORITHM == 1
    assert draws(0, Purpose.CHUNKS, 0, 2).tolist() == GOLDEN_DRAWS
    assert permutation(1, Purpose.CHUNKS, 0, 12).tolist() == GOLDEN_PERMUTATION[0]
    assert permutation(1, Purpose.CHUNKS, 1, 12).tolist() == GOLDEN_PERMUTATION[1]
    assert permutation(2**64 - 1, Purpose.SENTENCE_CHUNKS, 7, 12, part=3).tolist() == GOLDEN_PERMUTATION[2]
    lengths = JitteredLengths().draw(1, 0, 100_000, 90)
    assert lengths[:20].tolist() == GOLDEN_LENGTHS
    assert hashlib.sha256(lengths.astype("<i8").tobytes()).hexdigest() == GOLDEN_LENGTHS_SHA256


GOLDEN_DRAWS = [2510202401422219142, 2806831812706925312]
GOLDEN_PERMUTATION = [
    [0, 3, 10, 6, 8, 2, 5, 1, 11, 7, 9, 4],
    [7, 8, 6, 0, 9, 3, 11, 1, 5, 4, 2, 10],
    [11, 3, 2, 0, 6, 5, 4, 8, 10, 9, 1, 7],
]
GOLDEN_LENGTHS = [34, 70, 71, 37, 70, 76, 71, 40, 72, 64, 67, 73, 72, 70, 58, 69, 71, 74, 63, 70]
GOLDEN_LENGTHS_SHA256 = "114d3cf3aca30c98ce1a8c8d3933285dbb05bc86b372efceac4a1656ddfea821"


def test_draws_are_those_of_the_published_generator() -> None:
    words = philox4x64([1, 0, 0, int(Purpose.CHUNKS)], [0, ALGORITHM])
    assert draws(0, Purpose.CHUNKS, 0, 4).tolist() == words


def philox4x64(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10, written out from Salmon et al. 2011."""
    mask = (1 << 64) - 1
    for _ in range(10):
        low = 0xD2E7470EE14C6C93 * counter[0]
        high = 0xCA5A826395121157 * counter[2]
        counter = [
            (high >> 64) ^ counter[1] ^ key[0],
            high & mask,
            (low >> 64) ^ counter[3] ^ key[1],
            low & mask,
        ]
        key = [(key[0] + 0x9E3779B97F4A7C15) & mask, (key[1] + 0xBB67AE8584CAA73B) & mask]
    return counter


def test_draws_do_not_depend_on_how_many_are_taken() -> None:
    np.testing.assert_array_equal(draws(3, Purpose.CHUNKS, 5, 1000)[:10], draws(3, Purpose.CHUNKS, 5, 10))


def test_seeds_epochs_purposes_and_parts_have_draws_of_their_own() -> None:
    """`seed + epoch` would make epoch 1 of seed 0 equal epoch 0 of seed 1."""
    cases = [
        draws(seed, purpose, epoch, 64, part)
        for seed in (0, 1, 2)
        for purpose in Purpose
        for epoch in (0, 1, 2)
        for part in (0, 1)
    ]
    assert len(np.unique(np.concatenate(cases))) == 64 * len(cases)


def test_a_permutation_holds_every_number_once() -> None:
    for count in (0, 1, 2, 1000):
        assert sorted(permutation(9, Purpose.CHUNKS, 4, count).tolist()) == list(range(count))


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_a_seed_outside_64_bits_is_refused(seed: int) -> None:
    with pytest.raises(UserError, match="a seed is a whole number"):
        draws(seed, Purpose.CHUNKS, 0, 1)


def test_lanes_share_all_targets_evenly() -> None:
    for targets, lanes in ((929_588, 20), (7, 7), (100, 3), (10**13, 64)):
        bounds = lane_bounds(targets, lanes)
        assert (bounds[0], bounds[-1]) == (0, targets)
        sizes = np.diff(bounds)
        assert sizes.max() - sizes.min() <= 1


def test_jittered_lengths_have_the_published_distribution() -> None:
    lengths = JitteredLengths().draw(7, 0, 200_000, 10_000)
    short = lengths < 52
    assert short.mean() == pytest.approx(0.05, abs=0.003)
    assert lengths[~short].mean() == pytest.approx(69.5, abs=0.05)
    assert lengths[~short].std() == pytest.approx(5, abs=0.05)
    assert lengths[short].mean() == pytest.approx(34.5, abs=0.2)


def test_jittered_lengths_stay_within_their_bounds() -> None:
    assert JitteredLengths().draw(7, 0, 200_000, 10_000).max() < JitteredLengths().longest
    lengths = JitteredLengths(base=8, short_base=4, deviation=5).draw(7, 0, 10_000, 11)
    assert (lengths.min(), lengths.max()) == (5, 11)


@pytest.mark.parametrize("wrong", [{"base": 0}, {"probability": 1.5}, {"deviation": 0.0}, {"shortest": 0}])
def test_wrong_window_lengths_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="window lengths"):
        JitteredLengths(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("jitter", [None, JitteredLengths(base=7, short_base=3, shortest=2)])
def test_window_starts_are_the_same_wherever_one_begins(jitter: JitteredLengths | None) -> None:
    starts = WindowStarts(10, jitter, seed=3, epoch=2)
    table = starts.of(np.arange(5000))
    assert WindowStarts(10, jitter, seed=3, epoch=2).of(np.array([4321]))[0] == table[4321]
    assert (np.diff(table) > 0).all()
    for window, targets in ((0, 1), (17, 100), (4000, 3)):
        after = int(starts.after(np.array([window]), np.array([targets]))[0])
        assert table[after] - table[window] >= targets > table[after - 1] - table[window]
