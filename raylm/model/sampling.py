"""Sampled softmax: the loss over each row's target and some words drawn for all rows, for large vocabularies.

The words are drawn without putting back, log-uniformly over ids in order of frequency. Word k of probability p_k rings
at a time of exponential distribution with mean 1 / p_k; the S words that ring first are the candidates. Given the time
τ at which the next one rings, k is among them with probability q_k = 1 − exp(−p_k τ) (Cohen and Kaplan 2007,
"Summarizing data using bottom-k sketches"): the expected count of Jean et al. 2015 (arXiv:1412.2007). Each candidate's
exponential is divided by it, so their sum is an unbiased estimate of the sum over all words. The target is always
there, its logit as it is: so the loss estimates the exact one, and is the exact one where all words are drawn.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import tensorflow as tf

from raylm.model.dropout import mask_key
from raylm.model.embedding import lookup
from raylm.model.precision import matrix_product
from raylm.model.types import Tensor, Touch, untouched

_NO_LANE = -1  # tells candidates, the same for all lanes, from any lane's masks


class Candidates(NamedTuple):
    """ids int32 [S], rising, each once, and the logarithm of the probability with which each was drawn, [S]."""

    ids: Tensor
    log_probabilities: Tensor


def draw_candidates(seed: int, position: Tensor, count: int, words: int) -> Candidates:
    """The candidates of a window: a pure function of the seed and the position, the same on every replica."""
    if count >= words:
        return Candidates(tf.range(words), tf.zeros([words]))
    key = mask_key(seed, position, tf.constant(_NO_LANE))
    uniform = tf.random.stateless_uniform([words], key, alg="philox")
    probabilities = tf.math.log1p(1 / tf.range(1, words + 1, dtype=tf.float32)) / math.log(words + 1)
    times, ids = tf.math.top_k(tf.math.log1p(-uniform) / probabilities, count + 1)  # negative: the highest rings first
    ids = tf.sort(ids[:count])
    return Candidates(ids, tf.math.log(-tf.math.expm1(tf.gather(probabilities, ids) * times[count])))


def sampled_cross_entropy_sum(
    hidden_NH: Tensor,
    softmax_VH: tf.Variable,
    bias_V: tf.Variable,
    targets_N: Tensor,
    weights_N: Tensor,
    candidates: Candidates,
    touch: Touch = untouched,
    dtype: tf.DType = tf.float32,
    by_rows: bool = False,
) -> Tensor:
    """`cross_entropy_sum` estimated from the candidates and each row's target; reads no other row of the matrix.

    A candidate that is a row's target counts as the target alone. `touch` sees `candidate logits` [N, S]. dtype: that
    products with the candidates' rows are taken in. by_rows: see `lookup`, of the matrix.
    """
    count = candidates.ids.shape[0]
    ids = tf.concat([candidates.ids, targets_N], 0)
    rows, biases = lookup(softmax_VH, ids, by_rows), lookup(bias_V, ids)
    places_V = tf.tensor_scatter_nd_update(tf.fill([softmax_VH.shape[0]], -1), candidates.ids[:, None], tf.range(count))
    hits_N = tf.gather(places_V, targets_N)

    @tf.custom_gradient
    def cross_entropy(
        hidden_NH: Tensor, rows_SH: Tensor, biases_S: Tensor, target_rows_NH: Tensor, target_biases_N: Tensor
    ) -> tuple[Any, Any]:
        logits = touch("candidate logits", matrix_product(hidden_NH, rows_SH, transpose_b=True) + biases_S)
        logits -= candidates.log_probabilities
        places = tf.stack([tf.range(tf.shape(hits_N)[0]), tf.maximum(hits_N, 0)], 1)
        logits = tf.tensor_scatter_nd_min(logits, places, tf.where(hits_N < 0, math.inf, -math.inf))
        target_logits = tf.reduce_sum(hidden_NH * target_rows_NH, 1) + target_biases_N
        highest = tf.maximum(tf.reduce_max(logits, 1), target_logits)
        exponentials, target_exponentials = tf.exp(logits - highest[:, None]), tf.exp(target_logits - highest)
        totals = tf.reduce_sum(exponentials, 1) + target_exponentials
        losses = tf.math.log(totals) + highest - target_logits

        def gradient(d_sum: Tensor) -> tuple[Tensor, ...]:
            scale_N = weights_N * d_sum
            d_logits = exponentials * (scale_N / totals)[:, None]
            d_targets = target_exponentials * (scale_N / totals) - scale_N
            narrow = tf.cast(d_logits, rows_SH.dtype)
            return (
                matrix_product(narrow, rows_SH) + d_targets[:, None] * target_rows_NH,
                matrix_product(narrow, hidden_NH, transpose_a=True),
                tf.reduce_sum(d_logits, 0),
                d_targets[:, None] * hidden_NH,
                d_targets,
            )

        return tf.reduce_sum(losses * weights_N), gradient

    (rows_SH, target_rows_NH), (biases_S, target_biases_N) = (tf.split(part, [count, -1]) for part in (rows, biases))
    return cross_entropy(hidden_NH, tf.cast(rows_SH, dtype), biases_S, target_rows_NH, target_biases_N)
