"""Reading rows of a table that lives in a variable."""

from __future__ import annotations

import tensorflow as tf

from raylm.model.types import Tensor


def lookup(table_VH: tf.Variable, ids: Tensor) -> Tensor:
    """Rows of the table, read in place; the gradient with respect to the table is a `tf.IndexedSlices`.

    `tf.gather` reads the whole of a mirrored variable first, which is a copy once rows of it were written in place. A
    tape must watch the table.
    """
    return tf.raw_ops.ResourceGather(resource=table_VH.handle, indices=ids, dtype=table_VH.dtype)
