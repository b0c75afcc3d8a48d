"""Matrix products in 16 bit, everything else in single precision (Micikevicius et al. 2018, arXiv:1710.03740).

A weight stays float32 and is cast where a product reads it; the product's result is float32 again, so sums, gates,
softmax, loss, norms and updates are. On GPUs a product of 16-bit numbers adds up in float32 and rounds once.
"""

from __future__ import annotations

import tensorflow as tf

from raylm.model.types import Tensor


def matrix_product(left: Tensor, right: Tensor, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
    """left · right, taken in the narrower type of the two; float32 where that has 16 bits."""
    left, right = tf.convert_to_tensor(left), tf.convert_to_tensor(right)
    dtype = min(left.dtype, right.dtype, key=lambda each: each.size)
    product = tf.matmul(tf.cast(left, dtype), tf.cast(right, dtype), transpose_a, transpose_b)
    return tf.cast(product, tf.float32) if dtype.size < tf.float32.size else product


def product_type(precision: str) -> tf.DType:
    """The type that a configured precision takes products in."""
    return tf.float32 if precision == "tf32" else tf.as_dtype(precision)
