"""Softmax cross-entropy over the vocabulary, with its gradient written out.

The projection onto the vocabulary is part of the function. At once: the [N, V] matrix of probabilities is kept, and
turned into the gradient of the logits in place of a second one. In pieces of some words: each row's log-sum-exp alone
is kept, and the gradient's pass computes each piece's logits anew. That is a fourth matrix product, and memory for one
piece and nothing else; pieces of rows would need no fourth product, but a second matrix gradient to add them up in.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from raylm.model.precision import matrix_product
from raylm.model.types import Tensor, Touch, untouched


def cross_entropy_sum(
    hidden_NH: Tensor,
    softmax_VH: Tensor,
    bias_V: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    touch: Touch = untouched,
    chunk: int | None = None,
) -> Tensor:
    """Sum over rows of weight · −log softmax(hidden · softmaxᵀ + bias)[target], in nats; a scalar.

    No weight is negative. A row of weight 0 has no target: it adds exactly nothing to the sum and to every gradient
    as long as its hidden state is finite. chunk: words whose logits are computed at once (None: all), each piece
    touched as `logits`. The products are taken in the type of the matrix (`matrix_product`), all sums in that of the
    hidden states.
    """

    def function(*tensors: Tensor) -> tuple[Any, Any]:
        if chunk is not None and chunk < softmax_VH.shape[0]:
            return _in_pieces(touch, chunk, *tensors)
        return _at_once(touch, *tensors)

    return tf.custom_gradient(function)(hidden_NH, softmax_VH, bias_V, targets_N, weights_N)


def _at_once(
    touch: Touch, hidden_NH: Tensor, softmax_VH: Tensor, bias_V: Tensor, targets_N: Tensor, weights_N: Tensor
) -> tuple[Any, Any]:
    logits_NV = touch("logits", matrix_product(hidden_NH, softmax_VH, transpose_b=True) + bias_V)
    places = tf.stack([tf.range(tf.shape(targets_N)[0]), targets_N], 1)
    highest = tf.reduce_max(logits_NV, 1, keepdims=True)
    exponentials = tf.exp(logits_NV - highest)
    totals = tf.reduce_sum(exponentials, 1, keepdims=True)
    target_logits = tf.gather_nd(logits_NV, places)
    losses = tf.math.log(totals[:, 0]) + highest[:, 0] - target_logits

    def gradient(d_sum: Tensor) -> tuple[Tensor | None, ...]:
        scale_N = weights_N * d_sum
        d_logits = _less_at(targets_N, scale_N, exponentials * (scale_N[:, None] / totals))
        narrow = tf.cast(d_logits, softmax_VH.dtype)
        return (
            matrix_product(narrow, softmax_VH),
            matrix_product(narrow, hidden_NH, transpose_a=True),
            tf.reduce_sum(d_logits, 0),
            None,
            losses * d_sum,
        )

    return tf.reduce_sum(losses * weights_N), gradient


def _in_pieces(
    touch: Touch,
    chunk: int,
    hidden_NH: Tensor,
    softmax_VH: Tensor,
    bias_V: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
) -> tuple[Any, Any]:
    (words, width), rows = softmax_VH.shape, tf.shape(targets_N)[0]
    flat = tf.reshape(softmax_VH, [-1])  # of which a slice is no copy where it begins at a multiple of 64 bytes

    def piece_from(word: Tensor) -> tuple[Tensor, Tensor]:
        """The matrix's rows from a word on, and the logits of their words."""
        end = tf.minimum(word + chunk, words)
        of_piece = tf.reshape(flat[tf.cast(word, tf.int64) * width : tf.cast(end, tf.int64) * width], [-1, width])
        return of_piece, matrix_product(hidden_NH, of_piece, transpose_b=True) + bias_V[word:end]

    def targets_from(word: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows' targets are in the piece, and each row's place in it."""
        inside = (targets_N >= word) & (targets_N < word + chunk)
        return inside, tf.stack([tf.range(rows), tf.where(inside, targets_N - word, 0)], 1)

    def add_piece(word: Tensor, highest: Tensor, totals: Tensor, target_logits: Tensor) -> tuple[Tensor, ...]:
        logits = touch("logits", piece_from(word)[1])
        inside, places = targets_from(word)
        target_logits = tf.where(inside, tf.gather_nd(logits, places), target_logits)
        higher = tf.maximum(highest, tf.reduce_max(logits, 1, keepdims=True))
        with tf.control_dependencies([target_logits]):  # so that the logits can be written over
            totals = totals * tf.exp(highest - higher) + tf.reduce_sum(tf.exp(logits - higher), 1, keepdims=True)
        return word + chunk, higher, totals, target_logits

    nothing = tf.zeros([rows, 1], hidden_NH.dtype)
    _, highest, totals, target_logits = tf.while_loop(
        lambda word, *_: word < words,
        add_piece,
        (0, nothing + hidden_NH.dtype.min, nothing, nothing[:, 0]),
        parallel_iterations=1,
    )
    normalizers = highest + tf.math.log(totals)
    losses = normalizers[:, 0] - target_logits

    def gradient(d_sum: Tensor) -> tuple[Tensor | None, ...]:
        scale_N = weights_N * tf.abs(d_sum)
        sign = tf.sign(d_sum)
        signed_NH = hidden_NH * sign
        scaled = normalizers - tf.math.log(scale_N)[:, None]

        def add_piece(word: Tensor, d_hidden: Tensor, d_softmax: Tensor, d_bias: Tensor) -> tuple[Tensor, ...]:
            of_piece, logits = piece_from(word)
            inside, places = targets_from(word)
            here_N = tf.where(inside, scale_N, tf.zeros_like(scale_N))
            d_logits = _less_at(places[:, 1], here_N, tf.exp(logits - scaled))
            narrow = tf.cast(d_logits, softmax_VH.dtype)
            ids = tf.range(word, tf.minimum(word + chunk, words))
            return (
                word + chunk,
                d_hidden + matrix_product(narrow, of_piece),
                tf.raw_ops.InplaceUpdate(x=d_softmax, i=ids, v=matrix_product(narrow, signed_NH, transpose_a=True)),
                tf.raw_ops.InplaceUpdate(x=d_bias, i=ids, v=tf.reduce_sum(d_logits, 0)),
            )

        with tf.control_dependencies([scaled]):  # not beside the pass before, for memory's sake
            first = tf.identity(0)
            # Every row of these is written once; `tf.zeros` could be a constant that the next step finds written over.
            empty = [tf.raw_ops.Empty(shape=tf.shape(like), dtype=bias_V.dtype) for like in (softmax_VH, bias_V)]
        _, d_hidden, d_softmax, d_bias = tf.while_loop(
            lambda word, *_: word < words, add_piece, (first, tf.zeros_like(hidden_NH), *empty), parallel_iterations=1
        )
        return d_hidden * sign, d_softmax, d_bias * sign, None, losses * d_sum

    return tf.reduce_sum(losses * weights_N), gradient


def _less_at(places_N: Tensor, amounts_N: Tensor, values_NV: Tensor) -> Tensor:
    """Values that nothing else reads, written over: each row less its amount at one place. All in all fewer than 2³¹:
    `tf.tensor_scatter_nd_sub` has no such limit, and makes a copy."""
    rows, width = tf.unstack(tf.shape(values_NV))
    places = tf.range(rows) * width + places_N
    column = tf.reshape(values_NV, [-1, 1])
    return tf.reshape(
        tf.raw_ops.InplaceSub(x=column, i=places, v=amounts_N[:, None]), [-1, values_NV.shape[1] or width]
    )
