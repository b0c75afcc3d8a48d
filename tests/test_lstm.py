"""The LSTM layer and its hand-written gradient against the equations in NumPy, in double precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import tensorflow as tf

from raylm.model.lstm import LayerCarry, LayerWeights, lstm_layer

SIZES = [(1, 1, 1, 1), (4, 2, 3, 2), (3, 4, 2, 3), (6, 1, 2, 3)]
"""Time steps, lanes, inputs, hidden units."""


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def reference(
    inputs: np.ndarray,
    hidden: np.ndarray,
    cell: np.ndarray,
    kernel: np.ndarray,
    recurrent: np.ndarray,
    bias: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hochreiter and Schmidhuber 1997 with a forget gate (Gers et al. 2000): outputs, last hidden, last cell."""
    width = hidden.shape[1]
    outputs = []
    for x in inputs:
        z = x @ kernel + hidden @ recurrent + bias
        gate = {name: z[:, k * width : (k + 1) * width] for k, name in enumerate("ifog")}
        cell = sigmoid(gate["f"]) * cell + sigmoid(gate["i"]) * np.tanh(gate["g"])
        hidden = sigmoid(gate["o"]) * np.tanh(cell)
        outputs.append(hidden)
    return np.stack(outputs), hidden, cell


def arguments(size: tuple[int, int, int, int], seed: int = 0, scale: float = 0.7) -> list[np.ndarray]:
    steps, lanes, inputs, hidden = size
    random = np.random.default_rng(seed)
    shapes = [(steps, lanes, inputs), (lanes, hidden), (lanes, hidden)]
    shapes += [(inputs, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,)]
    return [random.normal(scale=scale, size=shape) for shape in shapes]


def layer(values: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    outputs, carry = lstm_layer(values[0], LayerCarry(*values[1:3]), LayerWeights(*values[3:]))
    return outputs, carry.hidden, carry.cell


@pytest.mark.parametrize("size", SIZES)
def test_outputs_and_carry_are_those_of_the_equations(size: tuple[int, int, int, int]) -> None:
    values = arguments(size)
    for found, wanted in zip(layer([tf.constant(value) for value in values]), reference(*values), strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", SIZES)
def test_every_gradient_is_that_of_finite_differences(size: tuple[int, int, int, int]) -> None:
    """Of inputs, both carries, both matrices and the bias, by way of every output and both carries."""
    values = arguments(size)
    random = np.random.default_rng(1)
    upstream = [random.normal(size=result.shape) for result in reference(*values)]

    def loss(changed: Sequence[np.ndarray]) -> float:
        return sum(float((u * result).sum()) for u, result in zip(upstream, reference(*changed), strict=True))

    tensors = [tf.constant(value) for value in values]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        total = tf.add_n([tf.reduce_sum(u * result) for u, result in zip(upstream, layer(tensors), strict=True)])
    for found, value in zip(tape.gradient(total, tensors), values, strict=True):
        wanted = np.empty_like(value)
        for place in np.ndindex(value.shape):
            kept = value[place]
            value[place] = kept + 1e-5
            above = loss(values)
            value[place] = kept - 1e-5
            wanted[place] = (above - loss(values)) / 2e-5
            value[place] = kept
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("through", ["outputs", "hidden", "cell"])
def test_the_gradient_reaches_the_first_carry_from_each_result_alone(through: str) -> None:
    values = [tf.constant(value) for value in arguments((3, 2, 2, 2))]
    with tf.GradientTape() as tape:
        tape.watch(values)
        results = dict(zip(("outputs", "hidden", "cell"), layer(values), strict=True))
        total = tf.reduce_sum(results[through])
    for gradient in tape.gradient(total, values):
        assert (np.abs(gradient.numpy()).sum() > 0) & np.isfinite(gradient.numpy()).all()


def test_single_precision_follows_double_precision_over_a_long_window() -> None:
    values = arguments((50, 3, 8, 16), scale=0.3)
    found = layer([tf.constant(value, tf.float32) for value in values])
    for single, wanted in zip(found, reference(*values), strict=True):
        np.testing.assert_allclose(single.numpy(), wanted, atol=2e-5)


def test_two_windows_with_the_carry_are_one_long_window() -> None:
    inputs, *others = arguments((7, 2, 3, 4))
    carry, weights = others[:2], others[2:]
    whole, *last = layer([inputs, *carry, *weights])
    first, *between = layer([inputs[:3], *carry, *weights])
    second, *end = layer([inputs[3:], *between, *weights])
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    for found, wanted in zip(end, last, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_one_traced_function_serves_any_number_of_time_steps_and_lanes() -> None:
    traced = tf.function(lambda inputs, hidden, cell, *weights: layer([inputs, hidden, cell, *weights]))
    sizes = [tf.TensorSpec(shape, tf.float64) for shape in ([None, None, 3], [None, 4], [None, 4])]
    weights = [tf.TensorSpec(shape, tf.float64) for shape in ([3, 16], [4, 16], [16])]
    function = traced.get_concrete_function(*sizes, *weights)
    for steps, lanes in ((2, 1), (5, 3)):
        values = arguments((steps, lanes, 3, 4))
        found = function(*map(tf.constant, values))
        for result, wanted in zip(found, reference(*values), strict=True):
            np.testing.assert_allclose(result.numpy(), wanted, rtol=1e-12, atol=1e-14)


def test_saturated_gates_stay_finite_forward_and_backward() -> None:
    values = [tf.constant(value, tf.float32) for value in arguments((5, 3, 2, 4), scale=300.0)]
    with tf.GradientTape() as tape:
        tape.watch(values)
        results = layer(values)
        total = tf.add_n([tf.reduce_sum(result) for result in results])
    for tensor in [*results, *tape.gradient(total, values)]:
        assert np.isfinite(tensor.numpy()).all()


def test_lanes_do_not_touch_each_other() -> None:
    """A NaN in one lane stays there; so does any other change."""
    inputs, hidden, cell, *weights = arguments((4, 3, 2, 3))
    clean = layer([inputs, hidden, cell, *weights])
    inputs[2, 1] = np.nan
    for found, wanted in zip(layer([inputs, hidden, cell, *weights]), clean, strict=True):
        for lane in (0, 2):
            np.testing.assert_array_equal(found[..., lane, :], wanted[..., lane, :])
        assert np.isnan(found[..., 1, :].numpy()).any()
