"""Which lanes each replica holds, and the TensorFlow strategy that keeps the replicas in step.

Replica r of all (worker rank · replicas + local index) holds the lanes [r·k, (r+1)·k) with k = ⌈lanes / all⌉, so
2 workers × 1 replica and 1 worker × 2 replicas compute the same thing in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import tensorflow as tf
from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended

from raylm.errors import UserError
from raylm.model.types import Tensor


@dataclass(frozen=True)
class Topology:
    """This worker's place: its rank among `workers`, each with `replicas` replicas; `lanes` of the global batch.

    Raises:
        UserError: there are more replicas than lanes.
    """

    rank: int
    workers: int
    replicas: int
    lanes: int

    def __post_init__(self) -> None:
        if self.workers * self.replicas > self.lanes:
            raise UserError(
                f"{self.workers} workers × {self.replicas} replicas are more than the {self.lanes} lanes of the "
                "global batch: ask for fewer, or raise --data.lanes"
            )

    @property
    def lanes_per_replica(self) -> int:
        return -(-self.lanes // (self.workers * self.replicas))

    @property
    def first_lane(self) -> int:
        """This worker's first lane."""
        return min(self.lanes, self.rank * self.replicas * self.lanes_per_replica)

    @property
    def stop_lane(self) -> int:
        """One past this worker's last lane."""
        return min(self.lanes, self.first_lane + self.padded_lanes)

    @property
    def padded_lanes(self) -> int:
        """Lanes of this worker's arrays, lanes of weight zero at the end included."""
        return self.replicas * self.lanes_per_replica


@cache
def make_strategy(topology: Topology) -> tf.distribute.Strategy:
    """The strategy of this process, always the same one; call it first before any other TensorFlow operation.

    One worker: MirroredStrategy over its devices. Several: MultiWorkerMirroredStrategy, its form across processes,
    from the `TF_CONFIG` in the environment.

    Raises:
        UserError: more replicas than GPUs, where there are GPUs.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus and topology.replicas > len(gpus):
        raise UserError(
            f"{topology.replicas} replicas need as many GPUs; this worker has {len(gpus)}: lower --replicas"
        )
    kind = "GPU" if gpus else "CPU"
    if not gpus:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * topology.replicas)
    if topology.workers == 1:
        return tf.distribute.MirroredStrategy([f"/{kind}:{index}" for index in range(topology.replicas)])

    def local_devices(_: Any, __: Any, worker_device: str) -> tuple[tuple[str, ...], str]:
        return tuple(f"{worker_device}/device:{kind}:{index}" for index in range(topology.replicas)), kind

    # TensorFlow takes one CPU device a worker, whatever logical ones there are; only this method decides it.
    with mock.patch.object(CollectiveAllReduceExtended, "_initialize_local_devices", local_devices):
        return tf.distribute.MultiWorkerMirroredStrategy()


def all_reduce_sum(values: list[Tensor]) -> list[Tensor]:
    """Each value summed over all replicas of all workers."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return values
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, values))
