"""One LSTM layer on cuDNN, NVIDIA's library for GPUs: all time steps in one call, forward and backward.

It computes the equations of `raylm.model.lstm` without peepholes and projection. Where that module has the gates in
the order input, forget, output, candidate, and one bias, cuDNN has input, forget, candidate, output, and two biases
that it adds. A layer's weights are one flat buffer of matrices that stand left of what they multiply (cuDNN API
reference, `cudnnGetRNNWeightParams`; that all matrices come before all biases `raylm.model.kernels` makes sure of):

    4 matrices [H, I] of the input    4 [H, H] of the hidden state    4 biases [H] of the input    4 of the hidden state

`flat_weights` makes it of transposes in the graph. The op's own gradient is that of the buffer, so weights that were
dropped or shared on the way get theirs through TensorFlow.

A window's lanes are all of one length here. Padding is computed like the rest, as by the other kernels, and weighs
nothing in the loss; lengths of their own would make cuDNN refuse a lane without a target, and yield other carries.
"""

from __future__ import annotations

import tensorflow as tf

from raylm.model.lstm import LayerCarry, LayerWeights, cell_step
from raylm.model.precision import matrix_product
from raylm.model.types import Tensor, Touch, untouched


def cudnn_layer(
    inputs_TBI: Tensor, carry: LayerCarry, weights: LayerWeights, touch: Touch = untouched
) -> tuple[Tensor, LayerCarry]:
    """`lstm_layer` by cuDNN: outputs [T, B, H] and the carry after the last time step.

    cuDNN keeps its gates to itself: `touch` sees in their place `middle gates`, a function that computes those [B, 4H]
    of the time step in the middle of the window, where they are wanted.

    Raises:
        tf.errors.OpError: when it runs, where there is no GPU.
    """
    assert weights.peepholes is None
    assert weights.projection is None
    steps, lanes = tf.shape(inputs_TBI)[0], tf.shape(inputs_TBI)[1]
    outputs, hidden, cell, *_ = tf.raw_ops.CudnnRNNV3(
        input=inputs_TBI,
        input_h=carry.hidden[None],
        input_c=carry.cell[None],
        params=flat_weights(weights),
        sequence_lengths=tf.fill([lanes], steps),
        rnn_mode="lstm",
    )
    width = carry.cell.shape[-1]
    outputs = tf.ensure_shape(outputs, [*inputs_TBI.shape[:2], width])
    hidden, cell = (tf.ensure_shape(part[0], [carry.cell.shape[0], width]) for part in (hidden, cell))
    touch("middle gates", lambda: middle_gates(inputs_TBI, carry, weights, outputs))
    return outputs, LayerCarry(hidden, cell)


def flat_weights(weights: LayerWeights) -> Tensor:
    """[4H (I + H + 2)], as cuDNN lays one layer out; the bias is the input's, the other one zero."""
    gates = [_in_cudnn_order(tf.convert_to_tensor(weight)) for weight in (weights.kernel, weights.recurrent)]
    matrices = [tf.reshape(tf.transpose(gate), [-1]) for of_matrix in gates for gate in of_matrix]
    bias = tf.convert_to_tensor(weights.bias)
    return tf.concat([*matrices, *_in_cudnn_order(bias), tf.zeros_like(bias)], 0)


def middle_gates(inputs_TBI: Tensor, carry: LayerCarry, weights: LayerWeights, outputs_TBH: Tensor) -> Tensor:
    """Gate activations [B, 4H], in our order, in the middle of a window: without peepholes they follow from what the
    layer reads there and what it yielded the time step before."""
    middle = tf.shape(inputs_TBI)[0] // 2
    hidden = tf.where(middle > 0, outputs_TBH[tf.maximum(middle - 1, 0)], carry.hidden)
    z = matrix_product(inputs_TBI[middle], weights.kernel) + matrix_product(hidden, weights.recurrent) + weights.bias
    return cell_step(z, carry.cell, None)[0]


def _in_cudnn_order(gates: Tensor) -> list[Tensor]:
    """Input, forget, candidate, output gate from the last axis's input, forget, output, candidate."""
    i, f, o, g = tf.split(gates, 4, -1)
    return [i, f, g, o]
