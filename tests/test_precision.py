"""Products in 16 bit: as near as those numbers are, and float16's loss scale, whose overflows are no incidents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from test_step import LANES, MEAN, SOUND, WORDS, last_lane, window
from training_cases import Stepped, steps
from training_runner import call

from raylm.config import RunConfig
from raylm.model.language_model import LanguageModel
from raylm.model.loss import cross_entropy_sum
from raylm.model.precision import matrix_product, product_type
from raylm.model.sampling import Candidates, sampled_cross_entropy_sum
from raylm.optim.scaling import FIRST, LOWEST, overflowed

ROUNDED = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
TOO_LARGE = last_lane(9, 3e37)
"""A window whose loss is finite and whose gradient is not in float16, nor in float32."""


def in_precision(precision: str) -> dict[str, Any]:
    return {**MEAN, "model": {**MEAN["model"], "precision": precision}}


SCENARIOS = {precision: (in_precision(precision), SOUND[:2]) for precision in ("float32", "bfloat16", "float16")} | {
    "overflows": (in_precision("float16"), [window(1), *[TOO_LARGE] * 14, last_lane(9, np.nan), window(2)]),
}


@pytest.fixture(scope="module")
def stepped() -> dict[str, list[Stepped]]:
    return call(steps, 1, LANES, WORDS, SCENARIOS)


def moved(states: list[Stepped]) -> np.ndarray:
    """What all steps together changed in the weights, as one vector."""
    return np.concatenate([(states[-1].weights[name] - value).ravel() for name, value in states[0].weights.items()])


@pytest.mark.parametrize("precision", ROUNDED)
def test_updates_in_16_bit_are_those_in_32_but_for_rounding(stepped: dict[str, list[Stepped]], precision: str) -> None:
    found, wanted = stepped[precision], stepped["float32"]
    off = np.linalg.norm(moved(found) - moved(wanted)) / np.linalg.norm(moved(wanted))
    assert ROUNDED[precision] / 100 < off < 4 * ROUNDED[precision]
    assert found[-1].result["loss_sum"] == pytest.approx(wanted[-1].result["loss_sum"], rel=4 * ROUNDED[precision])


@pytest.mark.parametrize("kind", ["at once", "in pieces", "sampled"])
def test_every_loss_has_the_gradient_of_its_16_bit_products(kind: str) -> None:
    random = np.random.default_rng(0)
    hidden, softmax, bias = (random.normal(size=size).astype(np.float32) for size in ((20, 8), (WORDS, 8), (WORDS,)))
    targets, weights = random.integers(0, WORDS, 20).astype(np.int32), np.ones(20, np.float32)
    found = {}
    for dtype in (tf.float32, tf.bfloat16):
        variables = [tf.Variable(value) for value in (hidden, softmax, bias)]
        with tf.GradientTape() as tape:
            tape.watch(variables)
            if kind == "sampled":
                candidates = Candidates(tf.range(6), tf.zeros([6]))
                loss = sampled_cross_entropy_sum(*variables, targets, weights, candidates, dtype=dtype)
            else:
                rows, matrix, biases = (tf.convert_to_tensor(each) for each in variables)
                chunk = 4 if kind == "in pieces" else None
                loss = cross_entropy_sum(rows, tf.cast(matrix, dtype), biases, targets, weights, chunk=chunk)
        parts = tape.gradient(loss, variables)
        found[dtype] = np.concatenate([tf.convert_to_tensor(part).numpy().ravel() for part in parts])
    off = np.linalg.norm(found[tf.bfloat16] - found[tf.float32]) / np.linalg.norm(found[tf.float32])
    assert ROUNDED["bfloat16"] / 100 < off < 4 * ROUNDED["bfloat16"]


def test_weights_slots_and_carry_stay_float32(stepped: dict[str, list[Stepped]]) -> None:
    last = stepped["float16"][-1]
    assert {array.dtype for part in (last.weights, last.slots, last.carry) for array in part.values()} == {
        np.dtype("float32")
    }


@pytest.mark.parametrize(("precision", "on"), [("float32", False), ("tf32", True), ("bfloat16", False)])
def test_tensorfloat_32_is_on_where_it_is_asked_for(precision: str, on: bool) -> None:
    config = RunConfig.model_validate(in_precision(precision)).model
    LanguageModel(config, WORDS, seed=0)
    assert tf.config.experimental.tensor_float_32_execution_enabled() is on
    assert product_type("tf32") == tf.float32


def test_sixteen_bit_products_are_float32_again() -> None:
    left, right = tf.constant([[1.0, 2**-12]]), tf.constant([[1.0], [1.0]])
    for dtype, wanted in ((tf.float16, 1.0), (tf.bfloat16, 1.0), (tf.float32, 1 + 2**-12)):
        product = matrix_product(left, tf.cast(right, dtype))
        assert (product.dtype, float(product[0, 0])) == (tf.float32, wanted)
    assert matrix_product(tf.cast(left, tf.float64), tf.cast(right, tf.float64)).dtype == tf.float64


# The loss scale; in whole runs: test_exchange.py


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
