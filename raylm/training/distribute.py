"""The TensorFlow strategy that keeps the replicas in step, and the sum over all of them."""

from __future__ import annotations

from functools import cache
from typing import Any
from unittest import mock

import tensorflow as tf
from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended

from raylm.errors import UserError
from raylm.model.types import Tensor
from raylm.training.topology import Topology


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
