"""The sum of gradients over all replicas in 16 bits, what rounding leaves out carried to the next step (error feedback,
Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847).

Each block of 256 numbers is sent as whole multiples, of 16 bits, of a unit that all replicas share. The unit is made
from the sum over replicas of each one's largest number, so no sum of multiples overflows: it is exact, in any order.
In bfloat16 or float16 every addition on the way would round once more, where no replica sees it and carries it on.
Gradients in rows are few, and sent as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from raylm.errors import UserError
from raylm.model.types import Tensor
from raylm.optim.rows import Gradient, RowGradient, minus_zero
from raylm.training.distribute import all_reduce_sum
from raylm.training.topology import Topology

SLOT = "residual"
"""Its name among the slots of a snapshot: [replicas, numbers]."""

_BLOCK = 256
_MOST = 2**15 - 1
_SMALLEST_UNIT = 1e-30  # what is smaller stays in the residual


def compressed_sum(
    scalars: Tensor, gradients: Sequence[Gradient], residual: Tensor, pack_bytes: int
) -> tuple[Tensor, list[Gradient], Tensor]:
    """Scalars and gradients summed over all replicas, and what this replica has yet to send.

    residual: what it had, one number for each of those of the gradients that are not in rows. Where a number of any
    replica is not finite, its block's sum is not.
    """
    dense = [gradient for gradient in gradients if not isinstance(gradient, RowGradient)]
    in_rows = [gradient for gradient in gradients if isinstance(gradient, RowGradient)]
    mine, largest = _blocks(tf.concat([tf.reshape(each, [-1]) for each in dense], 0), residual)
    scalars, largest, *in_rows = all_reduce_sum([scalars, largest, *in_rows], pack_bytes)
    unit = largest / (_MOST - tf.distribute.get_replica_context().num_replicas_in_sync)
    packed, left = _rounded(mine, unit)
    sums = _unpacked(all_reduce_sum([packed], pack_bytes)[0], unit)
    parts = iter(tf.split(sums[: residual.shape[0]], [each.shape.num_elements() for each in dense]))
    rows = iter(in_rows)
    summed = [
        next(rows) if isinstance(gradient, RowGradient) else tf.reshape(next(parts), gradient.shape)
        for gradient in gradients
    ]
    return scalars, summed, left[: residual.shape[0]]


@tf.function(jit_compile=True, autograph=False)
def _blocks(values: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """What is to be sent, [4, blocks, 256], and the largest of each block; NaN where one is not finite."""
    mine = values + residual
    mine = tf.reshape(tf.pad(mine, [[0, -mine.shape[0] % (4 * _BLOCK)]]), [4, -1, _BLOCK])
    sizes = tf.abs(mine)
    sound = tf.math.is_finite(tf.reduce_sum(sizes, -1))
    return mine, tf.where(sound, tf.reduce_max(sizes, -1), float("nan"))


@tf.function(jit_compile=True, autograph=False)
def _rounded(mine: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Multiples of the unit, four in each of [blocks, 256], and what is left of the numbers."""
    unit = unit[..., None]
    multiples = tf.round(mine * tf.where(unit > _SMALLEST_UNIT, 1 / unit, 0.0))
    packed = tf.zeros([], tf.int64)
    for quarter in tf.unstack(tf.cast(multiples, tf.int64)):
        packed = packed * 2**16 + quarter
    return packed, tf.reshape(mine - multiples * unit, [-1])


@tf.function(jit_compile=True, autograph=False)
def _unpacked(packed: Tensor, unit: Tensor) -> Tensor:
    """The sums of the multiples, times the unit."""
    quarters: list[Tensor] = []
    for _ in range(4):
        lowest = tf.bitwise.right_shift(tf.bitwise.left_shift(packed, tf.cast(48, tf.int64)), tf.cast(48, tf.int64))
        packed = tf.bitwise.right_shift(packed - lowest, tf.cast(16, tf.int64))
        quarters.insert(0, tf.cast(lowest, tf.float32))
    return tf.reshape(tf.stack(quarters) * unit[..., None], [-1])


@dataclass(frozen=True)
class Residual:
    """What each replica of this worker has yet to send: a variable with a value of its own on every replica.

    of_replica: that of one replica of all, on every rank. A collective.
    """

    strategy: tf.distribute.Strategy
    topology: Topology
    variable: tf.Variable
    of_replica: Callable[[Tensor], Tensor]

    def on_host(self) -> list[np.ndarray]:
        """This worker's, replica after replica."""
        return [part.numpy() for part in self.strategy.experimental_local_results(self.variable)]

    def put(self, values: Sequence[np.ndarray]) -> None:
        """The opposite of `on_host`."""
        for part, value in zip(self.strategy.experimental_local_results(self.variable), values, strict=True):
            part.assign(value)

    def gathered(self) -> dict[str, np.ndarray]:
        """That of all replicas, as the slots of a snapshot. A collective; one replica's at a time in device memory."""
        replicas = self.topology.workers * self.topology.replicas
        return {SLOT: np.stack([self.of_replica(tf.constant(replica)).numpy() for replica in range(replicas)])}

    def restore(self, slots: Mapping[str, np.ndarray]) -> None:
        """Puts a snapshot's in place; on another number of replicas each takes the same share of their sum.

        Raises:
            UserError: it is of another model.
        """
        topology, size = self.topology, self.variable.shape[0]
        replicas = topology.workers * topology.replicas
        saved = slots.get(SLOT, np.zeros((replicas, size), np.float32))
        if saved.shape[1:] != (size,):
            raise UserError(f"the checkpoint's {SLOT} is {saved.shape}, the run's {(replicas, size)}: of another model")
        first = topology.rank * topology.replicas
        mine = list(saved[first : first + topology.replicas])
        if len(saved) != replicas:
            mine = [saved.sum(0, dtype=np.float64) / replicas] * topology.replicas
        self.put([each.astype(np.float32) for each in mine])


def without_residual(slots: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A snapshot's slots that are the same on every replica."""
    return {name: array for name, array in slots.items() if name != SLOT}


def make_residual(strategy: tf.distribute.Strategy, topology: Topology, size: int) -> Residual:
    """Of so many numbers, all zero; to be called in the strategy's scope."""
    variable = tf.Variable(
        tf.zeros([size]),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.NONE,
    )

    @tf.function(autograph=False)
    def of_replica(replica: Tensor) -> Tensor:
        def mine() -> Tensor:
            here = tf.distribute.get_replica_context().replica_id_in_sync_group == replica
            return all_reduce_sum([tf.where(here, variable.read_value(), minus_zero())])[0]

        return strategy.experimental_local_results(strategy.run(mine))[0]

    return Residual(strategy, topology, variable, of_replica)
