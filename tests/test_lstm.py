"""The LSTM layer and its hand-written gradient against the equations in NumPy, in double precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from raylm.model.lstm import Kernel, LayerCarry, LayerWeights, lstm_layer

SIZES = [(1, 1, 1, 1), (4, 2, 3, 2), (3, 4, 2, 3), (6, 1, 2, 3)]
"""Time steps, lanes, inputs, hidden units."""

CELLS = {"plain": {}, "peepholes": {"peepholes": True}, "projection": {"projection": 2}}
CELLS["both"] = CELLS["peepholes"] | CELLS["projection"]
cells = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def reference(
    inputs: np.ndarray,
    hidden: np.ndarray,
    cell: np.ndarray,
    kernel: np.ndarray,
    recurrent: np.ndarray,
    bias: np.ndarray,
    peepholes: np.ndarray | None = None,
    projection: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hochreiter and Schmidhuber 1997 with a forget gate (Gers et al. 2000), and with peepholes (Gers and Schmidhuber
    2000) and projection (Sak et al. 2014): outputs, last hidden, last cell."""
    width = cell.shape[1]
    p_i, p_f, p_o = np.zeros((3, width)) if peepholes is None else peepholes
    outputs = []
    for x in inputs:
        z = x @ kernel + hidden @ recurrent + bias
        gate = {name: z[:, k * width : (k + 1) * width] for k, name in enumerate("ifog")}
        forget, accept = sigmoid(gate["f"] + p_f * cell), sigmoid(gate["i"] + p_i * cell)
        cell = forget * cell + accept * np.tanh(gate["g"])
        hidden = sigmoid(gate["o"] + p_o * cell) * np.tanh(cell)
        hidden = hidden if projection is None else hidden @ projection
        outputs.append(hidden)
    return np.stack(outputs), hidden, cell


def arguments(
    size: tuple[int, int, int, int],
    seed: int = 0,
    scale: float = 0.7,
    peepholes: bool = False,
    projection: int | None = None,
) -> list[np.ndarray | None]:
    steps, lanes, inputs, hidden = size
    outputs = projection or hidden
    random = np.random.default_rng(seed)
    shapes: list[tuple[int, ...] | None] = [(steps, lanes, inputs), (lanes, outputs), (lanes, hidden)]
    shapes += [(inputs, 4 * hidden), (outputs, 4 * hidden), (4 * hidden,)]
    shapes += [(3, hidden) if peepholes else None] if peepholes or projection else []
    shapes += [(hidden, projection)] if projection else []
    return [None if shape is None else random.normal(scale=scale, size=shape) for shape in shapes]


def constants(values: Sequence[np.ndarray | None]) -> list[tf.Tensor | None]:
    return [None if value is None else tf.constant(value) for value in values]


def layer(values: Sequence[tf.Tensor], kernel: Kernel = Kernel()) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:  # noqa: B008
    outputs, carry = lstm_layer(values[0], LayerCarry(*values[1:3]), LayerWeights(*values[3:]), kernel=kernel)
    return outputs, carry.hidden, carry.cell


@cells
@pytest.mark.parametrize("size", SIZES)
def test_outputs_and_carry_are_those_of_the_equations(size: tuple[int, int, int, int], cell: dict[str, Any]) -> None:
    values = arguments(size, **cell)
    for found, wanted in zip(layer(constants(values)), reference(*values), strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-14)


@cells
@pytest.mark.parametrize("size", SIZES)
def test_every_gradient_is_that_of_finite_differences(size: tuple[int, int, int, int], cell: dict[str, Any]) -> None:
    """Of inputs, both carries and every weight, by way of every output and both carries."""
    values = arguments(size, **cell)
    random = np.random.default_rng(1)
    upstream = [random.normal(size=result.shape) for result in reference(*values)]

    def loss(changed: Sequence[np.ndarray]) -> float:
        return sum(float((u * result).sum()) for u, result in zip(upstream, reference(*changed), strict=True))

    tensors = constants(values)
    with tf.GradientTape() as tape:
        tape.watch([tensor for tensor in tensors if tensor is not None])
        total = tf.add_n([tf.reduce_sum(u * result) for u, result in zip(upstream, layer(tensors), strict=True)])
    given = [value for value in values if value is not None]
    for found, value in zip(tape.gradient(total, [t for t in tensors if t is not None]), given, strict=True):
        wanted = np.empty_like(value)
        for place in np.ndindex(value.shape):
            kept = value[place]
            value[place] = kept + 1e-5
            above = loss(values)
            value[place] = kept - 1e-5
            wanted[place] = (above - loss(values)) / 2e-5
            value[place] = kept
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6, atol=1e-8)


@cells
@pytest.mark.parametrize("kernel", [Kernel(differentiated=True), Kernel(jit=True)], ids=["differentiated", "jit"])
def test_every_kernel_computes_the_same(kernel: Kernel, cell: dict[str, Any]) -> None:
    values = constants(arguments((5, 2, 3, 4), seed=5, **cell))
    given = [value for value in values if value is not None]

    @tf.function
    def results(kernel: Kernel) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(given)
            found = layer(values, kernel)
            random = np.random.default_rng(6)
            total = tf.add_n([tf.reduce_sum(random.normal(size=result.shape) * result) for result in found])
        return [*found, *tape.gradient(total, given)]

    for found, wanted in zip(results(kernel), results(Kernel()), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-13)


def peephole_cell(
    x: tf.Tensor,
    hidden: tf.Tensor,
    cell: tf.Tensor,
    kernel: tf.Tensor,
    recurrent: tf.Tensor,
    bias: tf.Tensor,
    peepholes: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """One time step as Gers and Schmidhuber (2000) write it, each gate by itself, for automatic differentiation."""
    w_i, w_f, w_o, w_g = (
        tf.concat(pair, 0) for pair in zip(*(tf.split(m, 4, 1) for m in (kernel, recurrent)), strict=True)
    )
    b_i, b_f, b_o, b_g = tf.split(bias, 4)
    sees = tf.concat([x, hidden], 1)
    accept = tf.sigmoid(sees @ w_i + b_i + cell @ tf.linalg.diag(peepholes[0]))
    forget = tf.sigmoid(sees @ w_f + b_f + cell @ tf.linalg.diag(peepholes[1]))
    cell = forget * cell + accept * tf.tanh(sees @ w_g + b_g)
    emit = tf.sigmoid(sees @ w_o + b_o + cell @ tf.linalg.diag(peepholes[2]))
    return emit * tf.tanh(cell), cell


@pytest.mark.parametrize("size", SIZES)
def test_peepholes_agree_with_a_cell_unrolled_and_differentiated_by_tensorflow(size: tuple[int, int, int, int]) -> None:
    values = [tf.constant(value) for value in arguments(size, seed=3, peepholes=True)]

    def unrolled(inputs: tf.Tensor, hidden: tf.Tensor, cell: tf.Tensor, *weights: tf.Tensor) -> tuple[tf.Tensor, ...]:
        outputs = []
        for x in tf.unstack(inputs):
            hidden, cell = peephole_cell(x, hidden, cell, *weights)
            outputs.append(hidden)
        return tf.stack(outputs), hidden, cell

    both = []
    for run in (lambda: layer(values), lambda: unrolled(*values)):
        with tf.GradientTape() as tape:
            tape.watch(values)
            results = run()
            random = np.random.default_rng(4)
            total = tf.add_n([tf.reduce_sum(random.normal(size=result.shape) * result) for result in results])
        both.append([*results, *tape.gradient(total, values)])
    for found, wanted in zip(*both, strict=True):
        np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-10, atol=1e-13)


def test_peepholes_of_zero_are_none() -> None:
    values = arguments((4, 2, 3, 2))
    for plain, zero in zip(layer(values), layer([*values, np.zeros((3, 2))]), strict=True):
        np.testing.assert_array_equal(plain, zero)


@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("through", ["outputs", "hidden", "cell"])
def test_the_gradient_reaches_the_first_carry_from_each_result_alone(through: str, peepholes: bool) -> None:
    values = [tf.constant(value) for value in arguments((3, 2, 2, 2), peepholes=peepholes)]
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
