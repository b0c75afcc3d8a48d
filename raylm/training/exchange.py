"""The sum over all replicas, and what it costs: the step's own collective, timed alone.

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

from raylm.config import ClusterConfig, RunConfig
from raylm.model.shapes import rows_of
from raylm.model.types import Tensor
from raylm.optim.rows import Gradient, RowGradient
from raylm.training.compression import compressed_sum
from raylm.training.distribute import all_reduce_sum, all_reduce_tree
from raylm.training.state import Replicas
from raylm.training.topology import Topology

FIRST, EVERY = 50, 1000
"""Steps of an attempt after which it is timed, and from then on."""


def sum_over_replicas(
    replicas: Replicas, config: ClusterConfig, scalars: Tensor, gradients: list[Gradient]
) -> tuple[Tensor, list[Gradient], Callable[[], object]]:
    """Scalars and gradients summed over all replicas, in the order that the run is held to; and what is to be done
    once they are found to be finite."""
    topology, residual = replicas.topology, replicas.residual
    if residual is not None:
        before = residual.variable.read_value()
        scalars, gradients, left = compressed_sum(scalars, gradients, before, config.pack_bytes)
        return scalars, gradients, lambda: residual.variable.assign(left)
    values = [scalars, *gradients]
    if topology.virtual_shards is None:
        scalars, *gradients = all_reduce_sum(values, config.pack_bytes)
    else:
        scalars, *gradients = all_reduce_tree(values, topology.shards // topology.shards_per_replica)
    return scalars, gradients, lambda: None


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
