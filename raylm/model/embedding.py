"""Reading rows of a table that lives in a variable."""

from __future__ import annotations

import tensorflow as tf

from raylm.model.types import Tensor


def lookup(table_VH: tf.Variable, ids: Tensor, by_rows: bool = False) -> Tensor:
    """Rows of the table, without a copy of it; the gradient with respect to the table is a `tf.IndexedSlices`.

    by_rows: updates write rows of the table in place. From the first such write, or `ResourceGather`, each read of the
    whole variable is a copy, and so is each update of the whole: a table is used either by rows or as a whole. A tape
    must watch it.
    """
    if by_rows:
        return tf.raw_ops.ResourceGather(resource=table_VH.handle, indices=ids, dtype=table_VH.dtype)
    return tf.gather(table_VH.read_value(), ids)
