"""What the sum over all replicas costs: the step's own collective, timed alone.

Inside a step it cannot be timed: the device is given several steps at once, and a clock in the step would make it wait.
So it is run by itself, on tensors of the same shapes, between two steps. Where a device computes and sends at the
same time, a step waits for less than this: the share told of is an upper bound.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from raylm.config import RunConfig
from raylm.model.shapes import rows_of
from raylm.optim.rows import Gradient, RowGradient
from raylm.training.state import Replicas
from raylm.training.step import sum_over_replicas
from raylm.training.topology import Topology

FIRST, EVERY = 50, 1000
"""Steps of an attempt after which it is timed, and from then on."""


def due(steps: int, topology: Topology) -> bool:
    """Whether it is to be timed after so many steps of an attempt: only where there is another replica."""
    return topology.workers * topology.replicas > 1 and (steps == FIRST or (steps > 0 and steps % EVERY == 0))


def make_all_reduce(replicas: Replicas, config: RunConfig) -> Callable[[], Any]:
    """A step's collective and no more, on the weights in place of their gradients; it must be called on every rank."""
    topology = replicas.topology
    rows = rows_of(config, replicas.model.vocabulary)
    width = config.data.window if config.data.mode == "stream" else max(config.data.buckets)
    looked_up = topology.lanes_per_replica * width

    def like_gradient(name: str, weight: tf.Variable) -> Gradient:
        if name not in rows:
            return tf.convert_to_tensor(weight)
        shape, common = weight.shape[1:], rows[name]
        drawn = (tf.zeros([common], tf.int32), tf.zeros([common, *shape]))
        return RowGradient(tf.zeros([looked_up], tf.int32), tf.zeros([looked_up, *shape]), *drawn)

    def mine() -> Any:
        gradients = [like_gradient(name, weight) for name, weight in replicas.model.weights.items()]
        # A constant has no device, and TensorFlow sums where a value is.
        scalars, *gradients = tf.nest.map_structure(tf.identity, [tf.zeros([3]), *gradients])
        *summed, _ = sum_over_replicas(replicas, config.cluster, scalars, gradients)
        with tf.control_dependencies(tf.nest.flatten(summed)):
            return tf.zeros([])

    @tf.function(autograph=False)
    def all_reduce() -> Any:
        return replicas.strategy.experimental_local_results(replicas.strategy.run(mine))[0]

    return all_reduce  # type: ignore[no-any-return]


def seconds(all_reduce: Callable[[], Any], count: int = 3) -> float:
    """Seconds that a step's collective takes alone: the median of so many, after one in which the ranks meet."""
    all_reduce().numpy()
    times = []
    for _ in range(count):
        began = time.perf_counter()
        all_reduce().numpy()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
