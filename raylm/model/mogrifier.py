"""The Mogrifier: before each time step of a layer its input and its hidden state gate each other (Melis, Kočiský and
Blunsom 2020, arXiv:1909.01792, equations 1 and 2), in turns, the first of them of the input:

    x ← 2 sigmoid(h Q) * x        h ← 2 sigmoid(x R) * h

Then comes the LSTM's time step (`raylm.model.lstm`). Here the gradient is TensorFlow's own, through the loop over time:
the input's product waits for the hidden state, so nothing can be taken out of the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from raylm.model.lstm import LayerCarry, LayerWeights, cell_step
from raylm.model.precision import matrix_product
from raylm.model.types import Tensor, Touch, untouched


def mogrifier_layer(
    inputs_TBI: Tensor,
    carry: LayerCarry,
    weights: LayerWeights,
    rounds: Sequence[Tensor],
    touch: Touch = untouched,
) -> tuple[Tensor, LayerCarry]:
    """`lstm_layer` with a round of gating for each matrix: [P, I] for the input's, [I, P] for the hidden state's."""
    weights, rounds = LayerWeights(*map(_read, weights)), [*map(_read, rounds)]
    steps = tf.shape(inputs_TBI)[0]
    peepholes = None if weights.peepholes is None else tf.unstack(weights.peepholes)
    inputs = tf.TensorArray(inputs_TBI.dtype, steps, element_shape=inputs_TBI.shape[1:]).unstack(inputs_TBI)

    def step(t: Tensor, hidden: Tensor, cell: Tensor, gates: Any, outputs: Any) -> tuple[Any, ...]:
        x, gated = mogrify(inputs.read(t), hidden, rounds)
        z = matrix_product(x, weights.kernel) + matrix_product(gated, weights.recurrent) + weights.bias
        activations, cell, hidden = cell_step(z, cell, peepholes)
        if weights.projection is not None:
            hidden = matrix_product(hidden, weights.projection)
        return t + 1, hidden, cell, gates.write(t, activations), outputs.write(t, hidden)

    arrays = (tf.TensorArray(inputs_TBI.dtype, steps) for _ in range(2))
    _, hidden, cell, gates, outputs = tf.while_loop(
        lambda t, *_: t < steps, step, (0, *carry, *arrays), maximum_iterations=steps
    )
    touch("gates", _of_all_steps(gates, inputs_TBI, 4 * cell.shape[-1]))
    return _of_all_steps(outputs, inputs_TBI, hidden.shape[-1]), LayerCarry(hidden, cell)


def mogrify(x: Tensor, hidden: Tensor, rounds: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Input [B, I] and hidden state [B, P] after the rounds."""
    for number, matrix in enumerate(rounds):
        if number % 2:
            hidden = 2 * tf.sigmoid(matrix_product(x, matrix)) * hidden
        else:
            x = 2 * tf.sigmoid(matrix_product(hidden, matrix)) * x
    return x, hidden


def _read(weight: Any) -> Any:
    """Once, before the loop."""
    return None if weight is None else tf.convert_to_tensor(weight)


def _of_all_steps(array: Any, inputs_TBI: Tensor, width: int) -> Tensor:
    return tf.ensure_shape(array.stack(), [*inputs_TBI.shape[:2], width])
