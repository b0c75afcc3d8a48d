"""Updates on a copy of a run's state, in one process: nothing of the run is touched.

What `raylm lr-find` and the experiments of `raylm diagnose` are made of.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from raylm.checkpoint.snapshot import Snapshot
from raylm.config import RunConfig
from raylm.data.dataset import Dataset
from raylm.guard.ledger import Ledger
from raylm.model.language_model import initial_weights
from raylm.optim.schedules import learning_rate
from raylm.training.datasets import open_source, rate_factor
from raylm.training.distribute import make_strategy
from raylm.training.state import State, assign_all, fresh_carry, make_replicas, restore
from raylm.training.step import Batch, Control, compile_step
from raylm.training.topology import Topology

Rate = Callable[[int], float]
"""The learning rate of a trial's update, counted from 0."""


@dataclass(frozen=True)
class Update:
    """One update of a trial: its learning rate, the loss before it in nats a token, the gradient's norm; both may be
    NaN or infinite, and the update is not made then."""

    rate: float
    loss: float
    norm: float


class Trial:
    """A model that trains from a snapshot, or from fresh weights, as its configuration and its `schedule`, which may be
    changed, say."""

    def __init__(self, config: RunConfig, train: Dataset, snapshot: Snapshot | None = None) -> None:
        """Raises: UserError: the snapshot is of another model or of other data."""
        report = config.report.model_copy(update={"signals": False})
        cluster = config.cluster.model_copy(update={"compress": "none"})  # on one replica there is no sum to compress
        kernel = "auto" if config.model.kernel == "cudnn" else config.model.kernel  # the run's GPU may not be here
        model = config.model.model_copy(update={"kernel": kernel})
        config = config.model_copy(update={"report": report, "cluster": cluster, "model": model})
        self.config, self.schedule, self.snapshot = config, config.schedule, snapshot
        topology = Topology(0, 1, 1, config.data.lanes, config.cluster.fixed_shards)
        self._source = open_source(config, train, topology)
        strategy = make_strategy(topology)
        self._replicas = make_replicas(strategy, topology, config, len(train.vocabulary))
        self._step = compile_step(self._replicas, self.config)
        self.total_steps = config.steps or sum(map(self._source.windows_per_epoch, range(config.epochs)))

    @property
    def windows_per_epoch(self) -> int:
        """Of the first epoch."""
        return self._source.windows_per_epoch(0)

    def updates(self, rate: Rate | None = None, later: int = 0) -> Iterator[Update]:
        """Updates from the beginning, as many as are asked for. rate: in place of the configured one. later: windows
        passed over before the first."""
        state = self._begin()
        if later:
            first = state.cursor.position
            state.cursor = self._source.settle(state.cursor.leave_out(first, first + later))
        for number in itertools.count():
            window, state.cursor = self._source.read(state.cursor)
            now = rate(number) if rate else self._configured(state.step + number, window)
            control = Control(tf.constant(window.cursor.position), tf.constant(now), tf.constant(0.0), None)
            batch = Batch(*map(tf.constant, (window.inputs, window.targets, window.weights, window.reset_lanes)))
            result, state.carry = self._step(batch, state.carry, control)
            yield Update(now, float(result.loss_sum) / max(float(result.tokens), 1.0), float(result.norm))

    def _configured(self, step: int, window: Any) -> float:
        rate = learning_rate(self.schedule, step, window.cursor.epoch, self.total_steps)
        return rate * rate_factor(self.config.data, window)

    def _begin(self) -> State:
        if self.snapshot is not None:
            state = restore(self._replicas, self.snapshot)
            self._source.check(state.cursor)
            return state
        config, model = self.config, self._replicas.model
        assign_all("model", model.weights, initial_weights(config.model, model.vocabulary, config.seed))
        for slot in self._replicas.optimizer.slots.values():
            slot.assign(tf.zeros_like(slot))
        if self._replicas.loss_scale:
            self._replicas.loss_scale.begin()
        return State(0, self._source.start(), Ledger(), fresh_carry(self._replicas))
