"""One LSTM layer over time, with its gradient written out.

Shapes: T time steps, B lanes, I inputs, H hidden units. Gates stand in the order input, forget, output, candidate,
so that one sigmoid covers the first three:

    z_t = x_t K + h_{t-1} R + b                  [B, 4H]
    i, f, o = sigmoid(z_t[:, :3H])    g = tanh(z_t[:, 3H:])
    c_t = f * c_{t-1} + i * g         h_t = o * tanh(c_t)            (Hochreiter and Schmidhuber 1997; Gers et al. 2000)

With peepholes p_i, p_f, p_o [H] the gates see the cell too, the output gate the new one (Gers and Schmidhuber 2000):

    i, f = sigmoid(z + p_{i,f} * c_{t-1})    o = sigmoid(z + p_o * c_t)

Automatic differentiation would add a weight gradient at every time step. Here the backward loop carries only dh
and dc; the gradients of K, R, b and p are one product or sum each over all time steps, and R is transposed once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from raylm.model.types import Tensor, Touch, untouched


class LayerWeights(NamedTuple):
    """kernel [I, 4H], recurrent [H, 4H], bias [4H]; peepholes [3, H] of the input, forget and output gate, or None."""

    kernel: Tensor
    recurrent: Tensor
    bias: Tensor
    peepholes: Tensor | None = None


class LayerCarry(NamedTuple):
    """What a lane remembers between windows: hidden [B, H] and cell [B, H]."""

    hidden: Tensor
    cell: Tensor


def lstm_layer(
    inputs_TBI: Tensor, carry: LayerCarry, weights: LayerWeights, touch: Touch = untouched
) -> tuple[Tensor, LayerCarry]:
    """Runs one layer over a window; `touch` sees its gate activations `gates` [T, B, 4H].

    Returns the outputs [T, B, H] and the carry after the last time step. No gradient flows to the carry's origin
    beyond this window (truncated BPTT cuts there); gradients with respect to the given carry are exact.
    """
    lstm = tf.custom_gradient(lambda *tensors: _lstm(touch, *tensors))
    outputs, hidden, cell = lstm(inputs_TBI, *carry, *(weight for weight in weights if weight is not None))
    return outputs, LayerCarry(hidden, cell)


def _lstm(
    touch: Touch,
    inputs_TBI: Tensor,
    hidden_BH: Tensor,
    cell_BH: Tensor,
    kernel: Tensor,
    recurrent: Tensor,
    bias: Tensor,
    peepholes: Tensor | None = None,
) -> tuple[Any, Any]:
    projected_TBG = _product(inputs_TBI, kernel) + bias
    gates, cells, squashed, outputs = _forward(projected_TBG, hidden_BH, cell_BH, recurrent, peepholes)
    gates = touch("gates", gates)

    def gradient(d_outputs: Tensor, d_hidden: Tensor, d_cell: Tensor) -> tuple[Tensor, ...]:
        cells_before = tf.concat([cell_BH[None], cells[:-1]], 0)
        hidden_before = tf.concat([hidden_BH[None], outputs[:-1]], 0)
        d_projected, d_first_hidden, d_first_cell = _backward(
            d_outputs, d_hidden, d_cell, gates, squashed, cells_before, tf.transpose(recurrent), peepholes
        )
        rows = _rows(d_projected)
        d_peepholes = () if peepholes is None else (_peephole_gradient(d_projected, cells_before, cells),)
        return (
            _product(d_projected, tf.transpose(kernel)),
            d_first_hidden,
            d_first_cell,
            tf.matmul(_rows(inputs_TBI), rows, transpose_a=True),
            tf.matmul(_rows(hidden_before), rows, transpose_a=True),
            tf.reduce_sum(rows, 0),
            *d_peepholes,
        )

    return (outputs, outputs[-1], cells[-1]), gradient


def _forward(
    projected_TBG: Tensor, hidden_BH: Tensor, cell_BH: Tensor, recurrent: Tensor, peepholes: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gate activations [T, B, 4H], cells, tanh(cells) and outputs [T, B, H] of every time step."""
    steps, width = tf.shape(projected_TBG)[0], cell_BH.shape[-1]
    if peepholes is not None:
        p_i, p_f, p_o = tf.unstack(peepholes)

    def step(t: Tensor, hidden: Tensor, cell: Tensor, *saved: Any) -> tuple[Any, ...]:
        z = projected_TBG[t] + tf.matmul(hidden, recurrent)
        if peepholes is None:
            gates = tf.concat([tf.sigmoid(z[:, : 3 * width]), tf.tanh(z[:, 3 * width :])], 1)
            i, f, o, g = tf.split(gates, 4, 1)
            cell = f * cell + i * g
        else:
            z_i, z_f, z_o, z_g = tf.split(z, 4, 1)
            i, f, g = tf.sigmoid(z_i + p_i * cell), tf.sigmoid(z_f + p_f * cell), tf.tanh(z_g)
            cell = f * cell + i * g
            o = tf.sigmoid(z_o + p_o * cell)
            gates = tf.concat([i, f, o, g], 1)
        squashed = tf.tanh(cell)
        hidden = o * squashed
        values = (gates, cell, squashed, hidden)
        return (
            t + 1,
            hidden,
            cell,
            *(array.write(t, value) for array, value in zip(saved, values, strict=True)),
        )

    arrays = tuple(_array(projected_TBG, steps) for _ in range(4))
    _, _, _, *saved = tf.while_loop(
        lambda t, *_: t < steps, step, (0, hidden_BH, cell_BH, *arrays), maximum_iterations=steps
    )
    batch = cell_BH.shape[0]
    return tuple(
        tf.ensure_shape(array.stack(), [projected_TBG.shape[0], batch, size])
        for array, size in zip(saved, (4 * width, width, width, width), strict=True)
    )


def _backward(
    d_outputs: Tensor,
    d_hidden: Tensor,
    d_cell: Tensor,
    gates: Tensor,
    squashed: Tensor,
    cells_before: Tensor,
    recurrent_transposed: Tensor,
    peepholes: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the pre-activations [T, B, 4H] and of the first hidden and cell [B, H]."""
    steps = tf.shape(gates)[0]
    if peepholes is not None:
        p_i, p_f, p_o = tf.unstack(peepholes)

    def step(t: Tensor, d_hidden: Tensor, d_cell: Tensor, saved: Any) -> tuple[Any, ...]:
        i, f, o, g = tf.split(gates[t], 4, 1)
        d_hidden = d_hidden + d_outputs[t]
        d_o = d_hidden * squashed[t] * o * (1 - o)
        d_cell = d_cell + d_hidden * o * (1 - tf.square(squashed[t]))
        if peepholes is not None:
            d_cell += d_o * p_o
        d_i, d_f = d_cell * g * i * (1 - i), d_cell * cells_before[t] * f * (1 - f)
        d_z = tf.concat([d_i, d_f, d_o, d_cell * i * (1 - tf.square(g))], 1)
        d_cell = d_cell * f
        if peepholes is not None:
            d_cell += d_i * p_i + d_f * p_f
        return t - 1, tf.matmul(d_z, recurrent_transposed), d_cell, saved.write(t, d_z)

    _, d_hidden, d_cell, saved = tf.while_loop(
        lambda t, *_: t >= 0,
        step,
        (steps - 1, d_hidden, d_cell, _array(gates, steps)),
        maximum_iterations=steps,
    )
    return tf.ensure_shape(saved.stack(), gates.shape), d_hidden, d_cell


def _peephole_gradient(d_projected: Tensor, cells_before: Tensor, cells: Tensor) -> Tensor:
    """[3, H], summed over all time steps and lanes."""
    d_i, d_f, d_o, _ = tf.split(d_projected, 4, 2)
    seen = (d_i * cells_before, d_f * cells_before, d_o * cells)
    return tf.stack([tf.reduce_sum(product, [0, 1]) for product in seen])


def _array(like: Tensor, size: Tensor) -> Any:
    return tf.TensorArray(like.dtype, size, clear_after_read=False)


def _rows(values_TBX: Tensor) -> Tensor:
    return tf.reshape(values_TBX, [-1, values_TBX.shape[-1]])


def _product(values_TBX: Tensor, matrix_XY: Tensor) -> Tensor:
    """values @ matrix as one large product over all time steps."""
    shape = tf.shape(values_TBX)
    flat = tf.matmul(_rows(values_TBX), matrix_XY)
    product = tf.reshape(flat, [shape[0], shape[1], matrix_XY.shape[-1]])
    return tf.ensure_shape(product, [values_TBX.shape[0], values_TBX.shape[1], matrix_XY.shape[-1]])
