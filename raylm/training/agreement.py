"""Whether all ranks hold the same: what they compute together is sound only while they do."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import tensorflow as tf

from raylm.training.distribute import all_reduce_sum
from raylm.training.state import Replicas


def check_same_start(replicas: Replicas, step: int | None) -> None:
    """Sees to it that every rank begins at the same checkpoint's step, or all without one. A collective.

    Raises:
        RuntimeError: they do not: one of them could not read what another read.
    """
    if not _same_on_all(replicas, 0 if step is None else step + 1):
        mine = "no checkpoint" if step is None else f"the checkpoint of step {step}"
        raise RuntimeError(
            f"rank {replicas.topology.rank} found {mine}, another rank another one: what lies in the run's folder is "
            "not the same for all"
        )


def weights_agree(replicas: Replicas) -> bool:
    """Whether every replica of every rank holds the same weights to the last bit, by their CRC-32. A collective; a
    difference may be seen by some ranks only, of which rank 0 is one unless two others cancel out."""
    sums = [0] * replicas.topology.replicas
    for weight in replicas.model.weights.values():
        for local, value in enumerate(replicas.strategy.experimental_local_results(weight)):
            sums[local] = zlib.crc32(value.numpy().tobytes(), sums[local])
    here = len(set(sums)) == 1
    return _same_on_all(replicas, sums[0] if here else ~sums[0] & 0xFFFFFFFF) and here


def _same_on_all(replicas: Replicas, number: int) -> bool:
    """Whether the sum over all ranks is as many times this rank's number, of 32 bits at most. A collective."""
    topology, strategy = replicas.topology, replicas.strategy
    if topology.workers == 1:
        return True
    halves = tf.constant([float(number >> 16), float(number & 0xFFFF)])  # whole numbers that float32 adds up exactly

    def of_all() -> Any:
        # Of each replica its own: a tensor that all of a worker's share would be added up once for the worker.
        return all_reduce_sum([tf.identity(halves)])[0]

    @tf.function(autograph=False)
    def total() -> Any:
        return strategy.experimental_local_results(strategy.run(of_all))[0]

    return bool(np.all(total().numpy() == topology.workers * topology.replicas * halves.numpy()))
