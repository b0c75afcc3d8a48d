"""How fast a machine could train at best: the rate of a large matrix product over the operations of a token."""

from __future__ import annotations

import time
from functools import lru_cache

import tensorflow as tf

from raylm.config import RunConfig
from raylm.model.precision import product_type
from raylm.training.plan import operations
from raylm.training.topology import Topology

_ROUNDS = 8


def tokens_per_second_limit(config: RunConfig, vocabulary: int, topology: Topology) -> float | None:
    """Targets a second if every operation of a step ran at the rate of a large product, on all devices of the run.

    None for several workers without a GPU: how many machines they share is not known here.
    """
    gpu = bool(tf.config.list_logical_devices("GPU"))
    if not gpu and topology.workers > 1:
        return None
    devices = topology.workers * topology.replicas if gpu else 1
    rate = _product_rate(4096 if gpu else 512, product_type(config.model.precision))
    return devices * rate / operations(config, vocabulary)[0]


@lru_cache
def _product_rate(size: int, dtype: tf.DType) -> float:
    """Floating-point operations a second of a square product, the best of a few; the device's state is left alone."""
    factor = tf.fill([size, size], tf.constant(0.5, dtype))
    best = float("inf")
    for _ in range(1 + _ROUNDS):
        began = time.perf_counter()
        tf.reduce_max(tf.matmul(factor, factor)).numpy()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
