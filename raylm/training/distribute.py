"""The TensorFlow strategy that keeps the replicas in step, and the sum over all of them."""

from __future__ import annotations

from functools import cache
from typing import Any
from unittest import mock

import tensorflow as tf
from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended

from raylm.errors import UserError
from raylm.model.types import Tensor
from raylm.optim.rows import (
    Gradient,
    RowGradient,
    among_replicas,
    minus_zero,
    of_all_replicas,
    summed_by_row,
)
from raylm.training.summation import tree_sum
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


def all_reduce_sum(values: list[Gradient], pack_bytes: int = 0) -> list[Gradient]:
    """Each value summed over all replicas of all workers; of a gradient in rows, each row.

    pack_bytes: values are put one after the other and sent from about so many bytes on; 0: all at once.
    """
    context = tf.distribute.get_replica_context()
    replica, replicas = context.replica_id_in_sync_group, context.num_replicas_in_sync
    if replicas == 1:
        return [summed_by_row(value) for value in values]
    sent: list[Tensor] = []
    for value in values:
        by_row = isinstance(value, RowGradient)
        sent += [among_replicas(value, replica, replicas), value.common_rows] if by_row else [value]
    kinds = tf.distribute.experimental.CommunicationImplementation
    implementation = kinds.NCCL if tf.config.list_physical_devices("GPU") else kinds.RING
    packing = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=pack_bytes, implementation=implementation)
    sums = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, sent, packing))
    return [
        summed_by_row(of_all_replicas(value, next(sums), next(sums))) if isinstance(value, RowGradient) else next(sums)
        for value in values
    ]


def all_reduce_tree(values: list[Tensor], holders: int) -> list[Tensor]:
    """Each value summed over the first `holders` replicas, a power of two, in the order of a balanced binary tree.

    An all-reduce of more than two values has no order that could be relied on. So every pair of replicas sums into a
    slot of its own: what is added there but the pair's two values is -0, which changes no bit. Then each replica
    sums the slots. That moves and holds holders / 2 times the bytes of `all_reduce_sum`.
    """
    context = tf.distribute.get_replica_context()
    replica, slots = context.replica_id_in_sync_group, max(holders // 2, 1)
    if context.num_replicas_in_sync == holders <= 2:
        return all_reduce_sum(values)
    mine = (tf.range(slots) == replica // 2) & (replica < holders)
    spread = [tf.where(tf.reshape(mine, [slots, *[1] * value.shape.rank]), value, minus_zero()) for value in values]
    return [tree_sum(tf.unstack(value, slots)) for value in all_reduce_sum(spread)]
