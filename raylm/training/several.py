"""Several updates in one call of the compiled function, so that the host is needed once for all of them.

Each has its own window, position, learning rate and outcome, and is the same to the last bit as in a call of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from raylm.config import RunConfig
from raylm.guard.drills import PROCESS_KINDS, STATE_SITES, parse_drills
from raylm.model.types import Tensor
from raylm.training.state import Replicas
from raylm.training.step import Batch, Control, StepResult, compile_step, step_of_replica


class Update(NamedTuple):
    """What one update is made of."""

    batch: Batch
    control: Control


Read = Callable[[], StepResult]
"""Waits for an update and gives its result as numbers and an array."""


class Steps:
    """Makes updates, `most` in one call where as many are given, else each in a call of its own."""

    def __init__(self, replicas: Replicas, config: RunConfig) -> None:
        self.most = most_together(config)
        self._one = compile_step(replicas, config)
        self._several = _compile(replicas, config) if self.most > 1 else None

    def __call__(self, updates: Sequence[Update], carry: Any) -> tuple[list[Read], Any]:
        """What reads each update's result, and the carry after the last."""
        if self._several is not None and len(updates) == self.most:
            batch, control = tf.nest.map_structure(_stacked, *updates)
            table, carry = self._several(batch, carry, control)
            return [_reader_of_row(table, row) for row in range(len(updates))], carry
        reads = []
        for update in updates:
            result, carry = self._one(update.batch, carry, update.control)
            reads.append(_reader(result))
        return reads, carry


def most_together(config: RunConfig) -> int:
    """Updates of one call: as asked for, and one where the host has something to do between two of them."""
    drills = parse_drills(config.drill)
    struck = any(drill.site in STATE_SITES or drill.kind in PROCESS_KINDS for drill in drills)
    between = struck or config.data.widths_vary or config.optimizer.averaging != "off"
    return 1 if between else config.steps_per_call


def _compile(replicas: Replicas, config: RunConfig) -> Callable[[Batch, Any, Control], tuple[Tensor, Any]]:
    """As `compile_step`, of parts with one more axis in front; gives the results as the rows of a table."""
    strategy, of_replica = replicas.strategy, step_of_replica(replicas, config)

    @tf.function(autograph=False)
    def steps(batches: Batch, carry: Any, controls: Control) -> tuple[Tensor, Any]:
        count = batches.inputs.shape[0]

        def one(k: Tensor, carry: Any, table: Any) -> tuple[Tensor, Any, Any]:
            batch, control = tf.nest.map_structure(partial(_part, k), (batches, controls))
            results, carry = strategy.run(of_replica, args=(batch, carry, control))
            row = _row(tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], results))
            return k + 1, carry, table.write(k, row)

        # Around `strategy.run` and not in it, where replicas of one worker could not meet.
        table = tf.TensorArray(tf.float32, count)
        _, carry, table = tf.while_loop(lambda k, *_: k < count, one, (0, carry, table), parallel_iterations=1)
        return table.stack(), carry

    return steps  # type: ignore[no-any-return]


def _stacked(*parts: Tensor | None) -> Tensor | None:
    return None if parts[0] is None else tf.stack(parts)


def _part(k: Tensor, parts: Tensor | None) -> Tensor | None:
    return None if parts is None else parts[k]


_SCALARS = len(StepResult._fields) - 1


def _row(result: StepResult) -> Tensor:
    scalars = tf.stack([tf.cast(value, tf.float32) for value in result[:_SCALARS]])
    return tf.concat([scalars, tf.convert_to_tensor(result.signals, tf.float32)], 0)


def _reader(result: StepResult) -> Read:
    return lambda: StepResult(*[*map(float, result[:_SCALARS]), np.asarray(result.signals)])


def _reader_of_row(table: Tensor, row: int) -> Read:
    def read() -> StepResult:
        values = table[row].numpy()
        return StepResult(*[*map(float, values[:_SCALARS]), values[_SCALARS:]])

    return read
