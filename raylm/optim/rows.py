"""Gradients of a table that are zero but in the rows that a window read.

Of an embedding of 10,000 words a window of 20 × 35 words touches 700 rows at most. Kept as rows, the gradient costs
what those rows cost: in the sum over all replicas, in the norm and in the update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from raylm.model.types import Tensor


class RowGradient(NamedTuple):
    """The gradient of a table [V, H] as a sum of rows; an id may stand often.

    ids int32 [N] and rows [N, H]. common_ids int32 [C] and common_rows [C, H]: of ids that are the same on every
    replica (a sampled softmax's candidates), whose rows replicas can add up before they are put together.
    """

    ids: Tensor
    rows: Tensor
    common_ids: Tensor
    common_rows: Tensor


Gradient = Tensor | RowGradient


def row_gradient(slices: tf.IndexedSlices, common: int = 0) -> RowGradient:
    """What a tape finds for a table that was only looked up, `common` ids that every replica has first."""
    ids, rows = slices.indices, slices.values
    return RowGradient(ids[common:], rows[common:], ids[:common], rows[:common])


def summed_by_row(gradient: Gradient) -> Gradient:
    """Each id once, in the order of first appearance; its rows added in the order in which they stand."""
    if not isinstance(gradient, RowGradient):
        return gradient
    ids, places = tf.unique(tf.concat([gradient.common_ids, gradient.ids], 0))
    rows = tf.concat([gradient.common_rows, gradient.rows], 0)
    return row_gradient(tf.IndexedSlices(tf.math.unsorted_segment_sum(rows, places, tf.size(ids)), ids))


def scaled(gradient: Gradient, factor: Tensor) -> Gradient:
    """A gradient times a factor."""
    if not isinstance(gradient, RowGradient):
        return gradient * factor
    return gradient._replace(rows=gradient.rows * factor, common_rows=gradient.common_rows * factor)


def joined(gradients: Sequence[RowGradient]) -> RowGradient:
    """The sum of several replicas': their rows one after the other, their common rows added in that order."""
    ids, rows = (tf.concat(parts, 0) for parts in zip(*(each[:2] for each in gradients), strict=True))
    common_rows = gradients[0].common_rows
    for each in gradients[1:]:
        common_rows += each.common_rows
    return RowGradient(ids, rows, gradients[0].common_ids, common_rows)


def dense(gradient: Gradient, weight: tf.Variable) -> Tensor:
    """The whole gradient of a weight, in its shape."""
    if not isinstance(gradient, RowGradient):
        return gradient
    ids, rows = (tf.concat(parts, 0) for parts in (gradient[::2], gradient[1::2]))
    return tf.math.unsorted_segment_sum(rows, ids, weight.shape[0])


def minus_zero() -> Tensor:
    """-0, which added to any number changes no bit of it, while 0 makes a 0 of -0.

    Written as -0.0 it may become 0: `tf.pad` and the cache of eager constants compare the two, and find them equal.
    """
    return -tf.zeros([])


def among_replicas(gradient: RowGradient, replica: Tensor, replicas: int) -> Tensor:
    """The rows in this replica's place among -0, which adds nothing: summed over all replicas they stand one after the
    other, and no sum has an order. Each row has its id as its last column. Shape [replicas · N, H + 1]."""
    table = tf.concat([gradient.rows, tf.cast(gradient.ids, gradient.rows.dtype)[:, None]], 1)
    mine = tf.range(replicas) == replica
    return tf.reshape(tf.where(mine[:, None, None], table, minus_zero()), [-1, table.shape[1]])


def of_all_replicas(gradient: RowGradient, table: Tensor, common_rows: Tensor) -> RowGradient:
    """A replica's gradient with the rows of all replicas, in their order, from the sums over all replicas of
    `among_replicas` and of the common rows."""
    return RowGradient(tf.cast(table[:, -1], tf.int32), table[:, :-1], gradient.common_ids, common_rows)
