"""Softmax cross-entropy over the vocabulary, with its gradient written out.

The projection onto the vocabulary is part of the function: the [N, V] matrix of probabilities is kept once, and
turned into the gradient of the logits in place of a second one.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from raylm.model.types import Tensor, Touch, untouched


def cross_entropy_sum(
    hidden_NH: Tensor,
    softmax_VH: Tensor,
    bias_V: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    touch: Touch = untouched,
) -> Tensor:
    """Sum over rows of weight · −log softmax(hidden · softmaxᵀ + bias)[target], in nats; a scalar.

    A row of weight 0 has no target: it adds exactly nothing to the sum and to every gradient as long as its hidden
    state is finite.
    """
    cross_entropy = tf.custom_gradient(lambda *tensors: _cross_entropy_sum(touch, *tensors))
    return cross_entropy(hidden_NH, softmax_VH, bias_V, targets_N, weights_N)


def _cross_entropy_sum(
    touch: Touch, hidden_NH: Tensor, softmax_VH: Tensor, bias_V: Tensor, targets_N: Tensor, weights_N: Tensor
) -> tuple[Any, Any]:
    logits_NV = touch("logits", tf.matmul(hidden_NH, softmax_VH, transpose_b=True) + bias_V)
    places = tf.stack([tf.range(tf.shape(targets_N)[0]), targets_N], 1)
    highest = tf.reduce_max(logits_NV, 1, keepdims=True)
    exponentials = tf.exp(logits_NV - highest)
    totals = tf.reduce_sum(exponentials, 1, keepdims=True)
    target_logits = tf.gather_nd(logits_NV, places)
    losses = tf.math.log(totals[:, 0]) + highest[:, 0] - target_logits

    def gradient(d_sum: Tensor) -> tuple[Tensor | None, ...]:
        scale_N = weights_N * d_sum
        d_logits = exponentials * (scale_N[:, None] / totals)
        d_logits = tf.tensor_scatter_nd_sub(d_logits, places, scale_N)
        return (
            tf.matmul(d_logits, softmax_VH),
            tf.matmul(d_logits, hidden_NH, transpose_a=True),
            tf.reduce_sum(d_logits, 0),
            None,
            losses * d_sum,
        )

    return tf.reduce_sum(losses * weights_N), gradient
