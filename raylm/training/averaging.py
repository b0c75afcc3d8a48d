"""Means of the weights (`raylm.optim.averaging`) in training: taken after updates, evaluated in the weights' place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from raylm.optim.averaging import averages
from raylm.optim.optimizers import Averaged
from raylm.training.distribute import all_reduce_sum
from raylm.training.state import Replicas, assign_all, on_host


def compile_averaging(replicas: Replicas) -> Callable[[], Any]:
    """A function that takes the weights into their means on every replica of this worker.

    It follows a step whose outcome is not read yet: one that the gate held back is undone, and the means with it.
    """
    optimizer = replicas.optimizer

    def average() -> None:
        assert isinstance(optimizer, Averaged)
        optimizer.average()

    return tf.function(lambda: replicas.strategy.run(average), autograph=False)  # type: ignore[no-any-return]


def of_first_rank(replicas: Replicas, value: float) -> float:
    """Rank 0's value, in single precision, on every rank. A collective."""

    def first(value: Any) -> Any:
        mine = tf.distribute.get_replica_context().replica_id_in_sync_group == 0
        return all_reduce_sum([tf.where(mine, value, tf.zeros_like(value))])[0]

    @tf.function(autograph=False)
    def total(value: Any) -> Any:
        results = replicas.strategy.run(first, args=(value,))
        return replicas.strategy.experimental_local_results(results)[0]

    return float(total(tf.constant([value], tf.float32))[0])


@contextmanager
def averaged(replicas: Replicas) -> Iterator[None]:
    """The means in place of the weights on this worker, where there are any: what is evaluated. No collective."""
    means = averages(on_host(replicas.optimizer.slots)) if isinstance(replicas.optimizer, Averaged) else {}
    before = on_host(replicas.model.weights) if means else {}
    if means:
        assign_all("model", replicas.model.weights, before | means)
    try:
        yield
    finally:
        if means:
            assign_all("model", replicas.model.weights, before)
