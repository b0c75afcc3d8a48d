"""One LSTM layer over time, with its gradient written out.

Shapes: T time steps, B lanes, I inputs, H cells, P outputs (H without a projection). Gates stand in the order input,
forget, output, candidate, so that one sigmoid covers the first three:

    z_t = x_t K + h_{t-1} R + b                  [B, 4H]
    i, f, o = sigmoid(z_t[:, :3H])    g = tanh(z_t[:, 3H:])
    c_t = f * c_{t-1} + i * g         h_t = o * tanh(c_t)            (Hochreiter and Schmidhuber 1997; Gers et al. 2000)

With peepholes p_i, p_f, p_o [H] the gates see the cell too, the output gate the new one (Gers and Schmidhuber 2000):

    i, f = sigmoid(z + p_{i,f} * c_{t-1})    o = sigmoid(z + p_o * c_t)

With a projection W [H, P] the output, and what the next time step sees of it, is smaller: h_t = (o * tanh(c_t)) W (Sak,
Senior and Beaufays 2014, arXiv:1402.1128).

Automatic differentiation would add a weight gradient at every time step. Here the backward loop carries only dh
and dc; the gradients of K, R, b, p and W are one product or sum each over all time steps, R and W are transposed once,
and what dh and dc are multiplied with is computed for all time steps before the loop, peepholes included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from raylm.model.precision import matrix_product
from raylm.model.types import Tensor, Touch, untouched


class LayerWeights(NamedTuple):
    """kernel [I, 4H], recurrent [P, 4H], bias [4H]; peepholes [3, H] of the input, forget and output gate, or None;
    projection [H, P], or None. Products are taken in the matrices' type (`matrix_product`), all else in the inputs'."""

    kernel: Tensor
    recurrent: Tensor
    bias: Tensor
    peepholes: Tensor | None = None
    projection: Tensor | None = None

    def in_type(self, dtype: tf.DType) -> LayerWeights:
        """The same with matrices of another type."""
        matrices = {"kernel": self.kernel, "recurrent": self.recurrent, "projection": self.projection}
        return self._replace(**{name: tf.cast(each, dtype) for name, each in matrices.items() if each is not None})


class LayerCarry(NamedTuple):
    """What a lane remembers between windows: hidden [B, P] and cell [B, H]."""

    hidden: Tensor
    cell: Tensor


class Kernel(NamedTuple):
    """How a layer is computed. differentiated: by TensorFlow, as a check of the gradient written out here. jit: the
    loops over time are compiled by XLA."""

    differentiated: bool = False
    jit: bool = False


def lstm_layer(
    inputs_TBI: Tensor,
    carry: LayerCarry,
    weights: LayerWeights,
    touch: Touch = untouched,
    kernel: Kernel = Kernel(),  # noqa: B008 - a constant
) -> tuple[Tensor, LayerCarry]:
    """Runs one layer over a window; `touch` sees its gate activations `gates` [T, B, 4H].

    Returns the outputs [T, B, P] and the carry after the last time step. No gradient flows to the carry's origin
    beyond this window (truncated BPTT cuts there); gradients with respect to the given carry are exact.
    """
    names = [name for name, weight in weights._asdict().items() if weight is not None]

    def layer(inputs_TBI: Tensor, hidden_BP: Tensor, cell_BH: Tensor, *tensors: Tensor) -> tuple[Any, Any]:
        given = LayerWeights(**dict(zip(names, tensors, strict=True)))
        return _layer(touch, kernel, inputs_TBI, LayerCarry(hidden_BP, cell_BH), given)

    tensors = [inputs_TBI, *carry, *(weight for weight in weights if weight is not None)]
    run = (lambda *tensors: layer(*tensors)[0]) if kernel.differentiated else tf.custom_gradient(layer)
    outputs, hidden, cell = run(*tensors)
    return outputs, LayerCarry(hidden, cell)


def _layer(
    touch: Touch, kernel: Kernel, inputs_TBI: Tensor, carry: LayerCarry, weights: LayerWeights
) -> tuple[Any, Any]:
    forward, backward = (_forward_jit, _backward_jit) if kernel.jit else (_forward, _backward)
    projected_TBG = _product(inputs_TBI, weights.kernel) + weights.bias
    gates, cells, outputs = forward(projected_TBG, *carry, weights.recurrent, weights.peepholes, weights.projection)
    gates = touch("gates", gates)

    def gradient(d_outputs: Tensor, d_hidden: Tensor, d_cell: Tensor) -> tuple[Tensor, ...]:
        with tf.control_dependencies([d_outputs]):  # else some of this is computed from the start on, and kept
            cells_before = tf.concat([carry.cell[None], cells[:-1]], 0)
            d_projected, d_first_hidden, d_first_cell, d_hiddens = backward(
                d_outputs,
                d_hidden,
                d_cell,
                gates,
                cells,
                cells_before,
                tf.transpose(weights.recurrent),
                weights.peepholes,
                None if weights.projection is None else tf.transpose(weights.projection),
            )
        outputs_before = tf.concat([carry.hidden[None], outputs[:-1]], 0)
        rows = _rows(d_projected)
        narrow = tf.cast(rows, weights.kernel.dtype)
        gradients = [
            _product(d_projected, tf.transpose(weights.kernel)),
            d_first_hidden,
            d_first_cell,
            matrix_product(_rows(inputs_TBI), narrow, transpose_a=True),
            matrix_product(_rows(outputs_before), narrow, transpose_a=True),
            tf.reduce_sum(rows, 0),
        ]
        if weights.peepholes is not None:
            gradients.append(_peephole_gradient(d_projected, cells_before, cells))
        if weights.projection is not None:
            unprojected = tf.split(gates, 4, 2)[2] * tf.tanh(cells)
            narrow = tf.cast(_rows(d_hiddens), weights.projection.dtype)
            gradients.append(matrix_product(_rows(unprojected), narrow, transpose_a=True))
        return tuple(gradients)

    return (outputs, outputs[-1], cells[-1]), gradient


def _forward(
    projected_TBG: Tensor,
    hidden_BP: Tensor,
    cell_BH: Tensor,
    recurrent: Tensor,
    peepholes: Tensor | None,
    projection: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gate activations [T, B, 4H], cells [T, B, H] and outputs [T, B, P] of every time step."""
    steps, width = tf.shape(projected_TBG)[0], cell_BH.shape[-1]
    of_gates = None if peepholes is None else tf.unstack(peepholes)

    def step(t: Tensor, hidden: Tensor, cell: Tensor, *saved: Any) -> tuple[Any, ...]:
        gates, cell, hidden = cell_step(projected_TBG[t] + matrix_product(hidden, recurrent), cell, of_gates)
        if projection is not None:
            hidden = matrix_product(hidden, projection)
        values = (gates, cell, hidden)
        return (
            t + 1,
            hidden,
            cell,
            *(array.write(t, value) for array, value in zip(saved, values, strict=True)),
        )

    arrays = tuple(_array(projected_TBG, steps) for _ in range(3))
    _, _, _, *saved = tf.while_loop(
        lambda t, *_: t < steps, step, (0, hidden_BP, cell_BH, *arrays), maximum_iterations=steps
    )
    batch, outputs = cell_BH.shape[0], hidden_BP.shape[-1]
    return tuple(
        tf.ensure_shape(array.stack(), [projected_TBG.shape[0], batch, size])
        for array, size in zip(saved, (4 * width, width, outputs), strict=True)
    )


def cell_step(z_BG: Tensor, cell_BH: Tensor, peepholes: Sequence[Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
    """One time step from the pre-activations: gates [B, 4H], the new cell, and the hidden state before a projection.

    peepholes: of the input, forget and output gate, [H] each.
    """
    if peepholes is None:
        width = cell_BH.shape[-1]
        gates = tf.concat([tf.sigmoid(z_BG[:, : 3 * width]), tf.tanh(z_BG[:, 3 * width :])], 1)
        i, f, o, g = tf.split(gates, 4, 1)
        cell = f * cell_BH + i * g
    else:
        p_i, p_f, p_o = peepholes
        z_i, z_f, z_o, z_g = tf.split(z_BG, 4, 1)
        i, f, g = tf.sigmoid(z_i + p_i * cell_BH), tf.sigmoid(z_f + p_f * cell_BH), tf.tanh(z_g)
        cell = f * cell_BH + i * g
        o = tf.sigmoid(z_o + p_o * cell)
        gates = tf.concat([i, f, o, g], 1)
    return gates, cell, o * tf.tanh(cell)


def _backward(
    d_outputs: Tensor,
    d_hidden: Tensor,
    d_cell: Tensor,
    gates: Tensor,
    cells: Tensor,
    cells_before: Tensor,
    recurrent_transposed: Tensor,
    peepholes: Tensor | None,
    projection_transposed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of the pre-activations [T, B, 4H], of the first hidden [B, P] and cell [B, H], and with a projection of
    every hidden [T, B, P]."""
    steps = tf.shape(gates)[0]
    i, f, o, g = tf.split(gates, 4, 2)
    squashed = tf.tanh(cells)
    to_i, to_f, to_o, to_g = g * i * (1 - i), cells_before * f * (1 - f), squashed * o * (1 - o), i * (1 - g * g)
    to_gates, to_cell, kept = tf.concat([to_i, to_f, to_o, to_g], 2), o * (1 - squashed * squashed), f
    if peepholes is not None:
        p_i, p_f, p_o = tf.unstack(peepholes)
        to_cell, kept = to_cell + to_o * p_o, kept + to_i * p_i + to_f * p_f

    def step(t: Tensor, d_hidden: Tensor, d_cell: Tensor, *saved: Any) -> tuple[Any, ...]:
        d_hidden = d_hidden + d_outputs[t]
        values = (d_hidden,) * (len(saved) - 1)
        if projection_transposed is not None:
            d_hidden = matrix_product(d_hidden, projection_transposed)
        d_cell = d_cell + d_hidden * to_cell[t]
        d_z = tf.concat([d_cell, d_cell, d_hidden, d_cell], 1) * to_gates[t]
        return (
            t - 1,
            matrix_product(d_z, recurrent_transposed),
            d_cell * kept[t],
            *(array.write(t, value) for array, value in zip(saved, (d_z, *values), strict=True)),
        )

    arrays = tuple(_array(gates, steps) for _ in range(1 if projection_transposed is None else 2))
    _, d_hidden, d_cell, *saved = tf.while_loop(
        lambda t, *_: t >= 0, step, (steps - 1, d_hidden, d_cell, *arrays), maximum_iterations=steps
    )
    d_projected, *d_hiddens = (
        tf.ensure_shape(array.stack(), like.shape) for array, like in zip(saved, (gates, d_outputs), strict=False)
    )
    return d_projected, d_hidden, d_cell, d_hiddens[0] if d_hiddens else None


_forward_jit = tf.function(_forward, jit_compile=True, autograph=False)
_backward_jit = tf.function(_backward, jit_compile=True, autograph=False)


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
    flat = matrix_product(_rows(values_TBX), matrix_XY)
    product = tf.reshape(flat, [shape[0], shape[1], matrix_XY.shape[-1]])
    return tf.ensure_shape(product, [values_TBX.shape[0], values_TBX.shape[1], matrix_XY.shape[-1]])
