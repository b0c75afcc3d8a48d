"""The Mogrifier against its equations in NumPy, in double precision, and as an option of the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError
from test_lstm import CELLS, arguments, constants, layer, sigmoid
from test_lstm import reference as plain_reference
from training_cases import Window, steps
from training_runner import call

from raylm.config import ModelConfig
from raylm.model.lstm import LayerCarry, LayerWeights
from raylm.model.mogrifier import mogrifier_layer

SIZE = (3, 2, 3, 4)
"""Time steps, lanes, inputs, hidden units."""


def matrices(rounds: int, outputs: int) -> list[np.ndarray]:
    random, inputs = np.random.default_rng(7), SIZE[2]
    return [random.normal(size=(inputs, outputs) if n % 2 else (outputs, inputs)) for n in range(rounds)]


def reference(rounds: Sequence[np.ndarray], *values: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One time step of the plain layer after the other, each from what Melis et al.'s equations 1 and 2 make of its
    input and hidden state."""
    inputs, hidden, cell, *weights = values
    outputs = []
    for x in inputs:
        for number, matrix in enumerate(rounds, 1):
            if number % 2:
                x = 2 * sigmoid(hidden @ matrix) * x
            else:
                hidden = 2 * sigmoid(x @ matrix) * hidden
        _, hidden, cell = plain_reference(x[None], hidden, cell, *weights)
        outputs.append(hidden)
    return np.stack(outputs), hidden, cell


def mogrified(rounds: Sequence[Any], values: Sequence[Any]) -> tuple[Any, Any, Any]:
    outputs, carry = mogrifier_layer(values[0], LayerCarry(*values[1:3]), LayerWeights(*values[3:]), rounds)
    return outputs, carry.hidden, carry.cell


@pytest.mark.parametrize("cell", [CELLS["plain"], CELLS["both"]], ids=["plain", "both"])
@pytest.mark.parametrize("rounds", [1, 4])
def test_outputs_and_every_gradient_are_those_of_the_equations(rounds: int, cell: dict[str, Any]) -> None:
    """Gradients by finite differences, of inputs, both carries and every matrix, by way of every output and both."""
    values = arguments(SIZE, **cell)
    gating = matrices(rounds, values[1].shape[1])  # type: ignore[union-attr]
    given = [value for value in values if value is not None] + gating
    wanted = reference(gating, *values)
    random = np.random.default_rng(1)
    upstream = [random.normal(size=result.shape) for result in wanted]

    def loss() -> float:
        return sum(float((u * each).sum()) for u, each in zip(upstream, reference(gating, *values), strict=True))

    tensors, rounds_given = constants(values), constants(gating)
    watched = [tensor for tensor in (*tensors, *rounds_given) if tensor is not None]

    @tf.function
    def run() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(watched)
            found = mogrified(rounds_given, tensors)
            total = tf.add_n([tf.reduce_sum(u * each) for u, each in zip(upstream, found, strict=True)])
        return found, tape.gradient(total, watched)

    found, gradients = run()
    for each, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(each.numpy(), expected, rtol=1e-12, atol=1e-14)
    for gradient, value in zip(gradients, given, strict=True):
        differences = np.empty_like(value)
        for place in np.ndindex(value.shape):
            kept = value[place]
            value[place] = kept + 1e-5
            above = loss()
            value[place] = kept - 1e-5
            differences[place] = (above - loss()) / 2e-5
            value[place] = kept
        np.testing.assert_allclose(gradient.numpy(), differences, rtol=1e-6, atol=1e-8)


def test_matrices_of_zeros_leave_the_plain_layer() -> None:
    values = constants(arguments(SIZE))
    gating = [tf.zeros_like(matrix) for matrix in matrices(5, SIZE[3])]
    for found, wanted in zip(mogrified(gating, values), layer(values), strict=True):  # type: ignore[arg-type]
        np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-12)


def test_a_model_with_rounds_learns_and_every_matrix_of_them_moves() -> None:
    ids = np.arange(44).reshape(4, 11).astype(np.int32) % 11
    window = Window(ids[:, :-1], ids[:, 1:], np.ones((4, 10), np.float32), np.ones(4, bool), 0.05)
    model = {"layers": 2, "hidden": 8, "embedding": 6, "mogrifier_rounds": 3, "dropout": 0.1}
    tree = {"model": model, "optimizer": {"name": "adam", "clip_norm": 1.0, "loss_scale": "token_mean"}}
    states = call(steps, 1, 4, 11, {"rounds": (tree, [window._replace(position=n) for n in range(30)])})["rounds"]
    first, last = states[1], states[-1]
    assert last.result["loss_sum"] < 0.5 * first.result["loss_sum"]
    shapes = {name: value.shape for name, value in last.weights.items() if "mogrifier" in name}
    assert list(shapes.items())[2:4] == [("lstm0/mogrifier2", (8, 6)), ("lstm1/mogrifier0", (6, 8))]
    for name in shapes:
        assert (last.weights[name] != states[0].weights[name]).all(), name


def test_rounds_and_a_compiled_loop_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="there is no compiled form of mogrifier_rounds"):
        ModelConfig(mogrifier_rounds=2, jit=True)
