"""The learning rate is a pure function of the step and the epoch, checked against literal lists."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.config import RunConfig, ScheduleConfig
from raylm.optim.schedules import learning_rate
from raylm.recipes import RECIPES

KINDS = get_args(ScheduleConfig.model_fields["kind"].annotation)


def rates(steps: int, total: int = 10, epoch: int = 0, **fields: Any) -> list[float]:
    schedule = ScheduleConfig.model_validate(fields)
    return [learning_rate(schedule, step, epoch, total) for step in range(steps)]


def test_constant() -> None:
    assert rates(4, kind="constant", learning_rate=0.5) == [0.5] * 4
    assert rates(5, kind="constant", learning_rate=0.5, warmup_steps=2) == [0.25, 0.5, 0.5, 0.5, 0.5]


def test_exponential() -> None:
    found = rates(5, kind="exponential", learning_rate=8.0, decay_steps=2, decay_rate=0.25)
    assert found == pytest.approx([8, 4, 2, 1, 0.5])


def test_staircase() -> None:
    found = rates(6, kind="staircase", learning_rate=8.0, decay_steps=2, decay_rate=0.25)
    assert found == [8, 8, 2, 2, 0.5, 0.5]


def test_staircase_does_not_decay_before_its_first_edge() -> None:
    """1.0 × 0.1^⌊step / 5000⌋, a schedule that is often blamed for what happens in the first hundred steps."""
    schedule = ScheduleConfig(kind="staircase", learning_rate=1.0, decay_steps=5000, decay_rate=0.1)
    found = [learning_rate(schedule, step, 0, 20_000) for step in (0, 100, 4999, 5000, 9999, 10_000)]
    assert found == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01])


def test_linear() -> None:
    assert rates(7, total=5, kind="linear", learning_rate=1.0) == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0, 0])
    assert rates(7, total=6, kind="linear", learning_rate=2.0, warmup_steps=2, final_fraction=0.5) == pytest.approx(
        [1, 2, 2, 1.75, 1.5, 1.25, 1]
    )


def test_cosine() -> None:
    assert rates(6, total=4, kind="cosine", learning_rate=1.0) == pytest.approx([1, 0.8535534, 0.5, 0.1464466, 0, 0])
    assert rates(7, total=6, kind="cosine", learning_rate=4.0, warmup_steps=2, final_fraction=0.5) == pytest.approx(
        [2, 4, 4, 3.7071068, 3, 2.2928932, 2]
    )


def test_inverse_square_root() -> None:
    """Vaswani et al. 2017: in proportion to step^-1/2 after the warm-up, and the highest rate at its end."""
    found = rates(16, kind="inverse_sqrt", learning_rate=1.0, warmup_steps=4)
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert [found[4], found[8], found[15]] == pytest.approx([math.sqrt(4 / 5), math.sqrt(4 / 9), 0.5])
    assert rates(9, kind="inverse_sqrt", learning_rate=3.0)[::4] == pytest.approx([3, 3 / math.sqrt(5), 1])


def test_held_as_in_the_paper() -> None:
    """Zaremba et al. 2014, small: 1 for four epochs, halved in each of the other nine."""
    schedule = RunConfig.model_validate(RECIPES["ptb-small"]).schedule
    found = [learning_rate(schedule, 2323 * epoch, epoch, 2323 * 13) for epoch in range(13)]
    assert found == [1, 1, 1, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256, 1 / 512]


@pytest.mark.parametrize("name", ["ptb-medium", "ptb-large"])
def test_held_begins_to_decay_in_the_epoch_after_the_last_held_one(name: str) -> None:
    config = RunConfig.model_validate(RECIPES[name])
    held, by = config.schedule.held_epochs, config.schedule.divisor
    found = [learning_rate(config.schedule, 0, epoch, 1) for epoch in range(config.epochs)]
    assert found[held - 1 : held + 2] == pytest.approx([1, 1 / by, 1 / by**2])
    assert found[-1] == pytest.approx(by ** -(config.epochs - held))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warmup", [1, 2, 7])
def test_the_warm_up_rises_in_even_steps_to_the_highest_rate(kind: str, warmup: int) -> None:
    found = rates(warmup + 1, total=100, kind=kind, learning_rate=3.0, warmup_steps=warmup)
    assert found[:warmup] == pytest.approx([3 * (step + 1) / warmup for step in range(warmup)])
    assert found[warmup] == pytest.approx(3, rel=0.3) if kind == "inverse_sqrt" else found[warmup] == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_warm_up_longer_than_the_run_only_rises(kind: str) -> None:
    found = rates(10, total=10, kind=kind, learning_rate=1.0, warmup_steps=50)
    assert found == pytest.approx([(step + 1) / 50 for step in range(10)])
    assert rates(60, total=10, kind=kind, learning_rate=1.0, warmup_steps=50)[-1] <= 1.0


schedules = st.builds(
    ScheduleConfig,
    kind=st.sampled_from(KINDS),
    learning_rate=st.floats(1e-6, 1e3),
    warmup_steps=st.integers(0, 1000),
    held_epochs=st.integers(1, 20),
    divisor=st.floats(1, 10),
    decay_steps=st.integers(1, 10_000),
    decay_rate=st.floats(0.01, 1),
    final_fraction=st.floats(0, 1),
)


@settings(max_examples=300, deadline=None)
@given(schedules, st.integers(0, 100_000), st.integers(0, 100), st.integers(1, 100_000))
def test_the_rate_is_finite_never_negative_and_never_above_the_highest(
    schedule: ScheduleConfig, step: int, epoch: int, total: int
) -> None:
    rate = learning_rate(schedule, step, epoch, total)
    assert isinstance(rate, float)
    assert 0 <= rate <= schedule.learning_rate * (1 + 1e-12)


@settings(max_examples=300, deadline=None)
@given(schedules, st.integers(0, 10_000), st.integers(0, 50), st.integers(1, 10_000))
def test_after_the_warm_up_the_rate_never_rises(schedule: ScheduleConfig, step: int, epoch: int, total: int) -> None:
    step += schedule.warmup_steps
    now = learning_rate(schedule, step, epoch, total)
    assert learning_rate(schedule, step + 1, epoch, total) <= now * (1 + 1e-9)
    assert learning_rate(schedule, step + 1, epoch + 1, total) <= now * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["linear", "cosine"]), st.floats(0, 1), st.integers(1, 1000), st.integers(0, 100))
def test_linear_and_cosine_end_at_the_final_fraction_and_stay(kind: str, final: float, total: int, beyond: int) -> None:
    schedule = ScheduleConfig.model_validate({"kind": kind, "learning_rate": 2.0, "final_fraction": final})
    assert learning_rate(schedule, total + beyond, 0, total) == pytest.approx(2 * final, abs=1e-12)
