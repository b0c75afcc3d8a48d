"""Products in 16 bit: as near as those numbers are, and float16's loss scale, whose overflows are no incidents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from test_step import CLIPPED, LANES, MEAN, SOUND, WORDS, last_lane, window
from tiny_runs import end_of, events, make_texts, tiny
from training_cases import Attempt, Stepped, attempts, steps
from training_runner import Call, answers, call

from raylm.model.precision import matrix_product, product_type
from raylm.optim.scaling import FIRST, LOWEST, overflowed

ROUNDED = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
HALF: dict[str, Any] = {**MEAN, "model": {**MEAN["model"], "precision": "float16"}}
TOO_LARGE = last_lane(9, 3e37)
"""A window whose loss is finite and whose gradient is not in float16, nor in float32."""


def in_precision(precision: str, **model: Any) -> dict[str, Any]:
    return {**CLIPPED, "model": {**CLIPPED["model"], "precision": precision, **model}}


SCENARIOS = {
    "float32": (in_precision("float32"), SOUND),
    "tf32": (in_precision("tf32"), SOUND),
    "bfloat16": (in_precision("bfloat16"), SOUND),
    "float16": (in_precision("float16"), SOUND),
    "sampled float32": (in_precision("float32", sampled_softmax=6), SOUND[:1]),
    "sampled bfloat16": (in_precision("bfloat16", sampled_softmax=6), SOUND[:1]),
    "pieces float32": (in_precision("float32", loss_chunk=4, tie_weights=True), SOUND[:1]),
    "pieces bfloat16": (in_precision("bfloat16", loss_chunk=4, tie_weights=True), SOUND[:1]),
    "overflows": (HALF, [window(1), *[TOO_LARGE] * 14, last_lane(9, np.nan), window(2)]),
}


@pytest.fixture(scope="module")
def stepped() -> dict[str, list[Stepped]]:
    return call(steps, 2, LANES, WORDS, SCENARIOS)


def moved(states: list[Stepped]) -> np.ndarray:
    """What all steps together changed in the weights, as one vector."""
    return np.concatenate([(states[-1].weights[name] - value).ravel() for name, value in states[0].weights.items()])


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "sampled bfloat16", "pieces bfloat16"])
def test_updates_in_16_bit_are_those_in_32_but_for_rounding(stepped: dict[str, list[Stepped]], kind: str) -> None:
    precision = kind.split()[-1]
    found, wanted = stepped[kind], stepped[kind.replace(precision, "float32")]
    off = np.linalg.norm(moved(found) - moved(wanted)) / np.linalg.norm(moved(wanted))
    assert ROUNDED[precision] / 100 < off < 4 * ROUNDED[precision]
    assert found[-1].result["loss_sum"] == pytest.approx(wanted[-1].result["loss_sum"], rel=4 * ROUNDED[precision])


def test_weights_slots_and_carry_stay_float32(stepped: dict[str, list[Stepped]]) -> None:
    last = stepped["float16"][-1]
    assert {array.dtype for part in (last.weights, last.slots, last.carry) for array in part.values()} == {
        np.dtype("float32")
    }


def test_tf32_is_float32_on_a_processor(stepped: dict[str, list[Stepped]]) -> None:
    assert (moved(stepped["tf32"]) == moved(stepped["float32"])).all()
    assert product_type("tf32") == tf.float32


def test_sixteen_bit_products_are_float32_again() -> None:
    left, right = tf.constant([[1.0, 2**-12]]), tf.constant([[1.0], [1.0]])
    for dtype, wanted in ((tf.float16, 1.0), (tf.bfloat16, 1.0), (tf.float32, 1 + 2**-12)):
        product = matrix_product(left, tf.cast(right, dtype))
        assert (product.dtype, float(product[0, 0])) == (tf.float32, wanted)
    assert matrix_product(tf.cast(left, tf.float64), tf.cast(right, tf.float64)).dtype == tf.float64


# The loss scale


def test_an_overflow_halves_the_scale_to_its_lowest_and_changes_nothing_else(stepped: dict[str, list[Stepped]]) -> None:
    states = stepped["overflows"]
    scales = [state.slots["loss_scale"] for state in states]
    assert scales[:2] == [FIRST, FIRST]
    assert scales[2:16] == [max(FIRST / 2**count, LOWEST) for count in range(1, 15)]
    assert [state.result["loss_scale"] for state in states[1:]] == scales[:-1]
    skipped = [overflowed(s.result["loss_sum"], s.result["finite"] > 0, s.result["loss_scale"]) for s in states[1:]]
    assert skipped == [False] + 12 * [True] + 4 * [False]
    for state in states[2:17]:
        for name, value in states[1].weights.items():
            np.testing.assert_array_equal(state.weights[name], value, err_msg=name)
    assert states[-1].result["finite"] == 1


def test_a_loss_that_is_not_finite_leaves_the_scale(stepped: dict[str, list[Stepped]]) -> None:
    before, after = stepped["overflows"][15:17]
    assert np.isnan(after.result["loss_sum"])
    assert after.slots["loss_scale"] == before.slots["loss_scale"]
    assert not overflowed(np.nan, False, FIRST)
    assert not overflowed(1.0, True, FIRST)


HALF_RUN = tiny(model={"precision": "float16"}, drill=("inf-gradient@9",))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[Attempt]]]:
    folder = tmp_path_factory.mktemp("runs")
    data = make_texts(folder / "data")
    stops: dict[str, list[int | None]] = {"unbroken": [None], "stopped": [11, None]}
    calls = [Call(attempts, HALF_RUN, data, folder / name, each) for name, each in stops.items()]
    return folder, answers(calls)


def test_an_overflow_in_a_run_is_no_incident(runs: tuple[Path, list[list[Attempt]]]) -> None:
    folder, ((told,), _) = runs
    assert (told.summary.status, told.summary.rollbacks, told.summary.steps) == ("completed", 0, 24)
    assert events(folder / "unbroken", "incident") == []
    found = events(folder / "unbroken", "step")
    assert [event["overflows"] for event in found] == 9 * [0] + 15 * [1]
    assert [event["loss_scale"] for event in found] == 10 * [FIRST] + 14 * [FIRST / 2]
    assert [event["step"] for event in found if event["gradient_norm"] is None] == [10]
    assert found[8]["tokens"] == found[9]["tokens"] < found[10]["tokens"]


def test_the_loss_scale_is_restored_with_the_state(runs: tuple[Path, list[list[Attempt]]]) -> None:
    folder, (unbroken, stopped) = runs
    assert stopped[-1].summary.state_sha256 == unbroken[-1].summary.state_sha256
    assert end_of(folder / "stopped").slots["loss_scale"] == FIRST / 2
    assert [event["overflows"] for event in events(folder / "stopped", "step")][-1] == 1
