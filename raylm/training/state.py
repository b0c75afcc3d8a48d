"""The state of a run between steps, and its way to a snapshot on the host and back.

Weights and slots live in the strategy's variables, the carry as one tensor a replica; the rest is plain data. A
snapshot holds the carry of all lanes of the global batch, whatever the number of replicas that computed it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from raylm.checkpoint.snapshot import Snapshot
from raylm.config import RunConfig
from raylm.data.cursor import Cursor
from raylm.errors import UserError
from raylm.guard.ledger import Ledger
from raylm.model.kernels import Choice, choose, trial
from raylm.model.language_model import LanguageModel, carry_names
from raylm.model.lstm import LayerCarry
from raylm.model.shapes import rows_of, updated_by_rows
from raylm.optim.optimizers import Optimizer, make_optimizer
from raylm.optim.rows import minus_zero
from raylm.optim.scaling import LossScale, make_loss_scale
from raylm.training.compression import Residual, make_residual, without_residual
from raylm.training.distribute import all_reduce_sum
from raylm.training.topology import Topology


@dataclass
class State:
    """Where a run stands: updates applied, what was read, what the guard remembers, each replica's carry.

    drills: those injected so far; epochs_evaluated: epochs after which the model was evaluated; validation: its loss
    then, in nats a token, for each of them, where decisions hang on it. All are kept in checkpoints, but are no part of
    `state_sha256`.
    """

    step: int
    cursor: Cursor
    ledger: Ledger
    carry: Any
    drills: tuple[str, ...] = ()
    epochs_evaluated: int = 0
    validation: tuple[float, ...] = ()


@dataclass(frozen=True)
class Replicas:
    """The model and the optimizer on every replica of this worker. kernel: what computes the layers there."""

    strategy: tf.distribute.Strategy
    topology: Topology
    model: LanguageModel
    optimizer: Optimizer
    loss_scale: LossScale | None
    residual: Residual | None
    place_carry: Callable[[list[Any]], Any]
    gather_carry: Callable[[Any], list[Any]]
    kernel: Choice

    @property
    def slots(self) -> dict[str, tf.Variable]:
        """All variables but the weights that are the same on every replica."""
        return {**self.optimizer.slots, **(self.loss_scale.slots if self.loss_scale else {})}


def make_replicas(strategy: tf.distribute.Strategy, topology: Topology, config: RunConfig, vocabulary: int) -> Replicas:
    """Creates all variables, in the same order on every rank, before the first step.

    Raises:
        UserError: cuDNN was asked for, and cannot be had (`raylm.model.kernels`).
    """
    kernel = choose(config, bool(tf.config.list_logical_devices("GPU")), lambda: trial(config.model))
    with strategy.scope():
        by_rows = updated_by_rows(config, vocabulary)
        model = LanguageModel(config.model, vocabulary, config.seed, kernel.kernel, by_rows)
        optimizer = make_optimizer(config.optimizer, model.weights)
        loss_scale = make_loss_scale(config.model)
        residual = None
        if config.cluster.compress != "none":
            rows = rows_of(config, vocabulary)
            size = sum(weight.shape.num_elements() for name, weight in model.weights.items() if name not in rows)
            residual = make_residual(strategy, topology, size)
    share = topology.lanes_per_replica

    @tf.function(autograph=False)
    def place(worker_carry: list[Any]) -> Any:
        def mine() -> Any:
            context = tf.distribute.get_replica_context()
            local = context.replica_id_in_sync_group - topology.rank * topology.replicas
            parts = [part[local * share : (local + 1) * share] for part in worker_carry]
            return tuple(LayerCarry(*parts[i : i + 2]) for i in range(0, len(parts), 2))

        return strategy.run(mine)

    @tf.function(autograph=False)
    def gather(carry: Any) -> list[Any]:
        def everyones(parts: Any) -> list[Any]:
            # Each replica's lanes summed with -0, which changes no bit: `all_gather` fails where a worker has one
            # device.
            before = tf.distribute.get_replica_context().replica_id_in_sync_group * share
            after = topology.workers * topology.replicas * share - share - before
            around = [[before, after], [0, 0]]
            return all_reduce_sum(
                [tf.pad(part, around, constant_values=minus_zero()) for part in tf.nest.flatten(parts)]
            )

        gathered = strategy.run(everyones, args=(carry,))
        return [strategy.experimental_local_results(part)[0][: topology.lanes] for part in gathered]

    return Replicas(strategy, topology, model, optimizer, loss_scale, residual, place, gather, kernel)


def fresh_carry(replicas: Replicas) -> Any:
    """The carry of lanes that have read nothing, on every replica."""
    return _place(replicas, replicas.model.zero_carry(replicas.topology.padded_lanes))


def capture(
    replicas: Replicas, state: State, seed: int, extra: dict[str, Any], kept: HostState | None = None
) -> Snapshot:
    """The whole state on the host. A collective: every rank must call it at the same step.

    kept: the same state in host memory, whose weights and slots are taken in place of another copy.
    """
    carry = replicas.gather_carry(state.carry)
    names = carry_names(replicas.model.config.layers)
    slots = kept.slots if kept else on_host(replicas.slots)
    return Snapshot(
        step=state.step,
        weights=kept.weights if kept else on_host(replicas.model.weights),
        slots={**slots, **(replicas.residual.gathered() if replicas.residual else {})},
        carry={name: part.numpy() for name, part in zip(names, carry, strict=True)},
        cursor=state.cursor.to_json(),
        ledger=state.ledger.to_json(),
        rng={"seed": seed},
        extra={
            **extra,
            "drills": list(state.drills),
            "epochs_evaluated": state.epochs_evaluated,
            "validation": list(state.validation),
        },
    )


def restore(replicas: Replicas, snapshot: Snapshot) -> State:
    """Puts a snapshot's weights, slots and this worker's share of the carry in place; returns the rest.

    Raises:
        UserError: the snapshot is of another model, optimizer or number of lanes; names the first difference.
    """
    assign_all("model", replicas.model.weights, snapshot.weights)
    assign_all("optimizer", replicas.slots, without_residual(snapshot.slots))
    if replicas.residual:
        replicas.residual.restore(snapshot.slots)
    topology, model = replicas.topology, replicas.model
    worker_carry = []
    for name, part in zip(carry_names(model.config.layers), tf.nest.flatten(model.zero_carry(1)), strict=True):
        lanes, width = snapshot.carry.get(name), part.shape[1]
        if lanes is None or lanes.shape != (topology.lanes, width):
            found = "nothing" if lanes is None else f"{lanes.shape[0]} lanes × {lanes.shape[1]}"
            raise UserError(
                f"the checkpoint's carry {name} holds {found}, the run has {topology.lanes} lanes × {width}: "
                "resume with the data.lanes and the model it was made with"
            )
        padded = np.zeros((topology.padded_lanes, width), np.float32)
        mine = lanes[topology.first_lane : topology.stop_lane]
        padded[: len(mine)] = mine
        worker_carry.append(padded)
    return State(
        step=snapshot.step,
        cursor=Cursor.from_json(snapshot.cursor),
        ledger=Ledger.from_json(snapshot.ledger),
        carry=_place(replicas, worker_carry),
        drills=tuple(snapshot.extra.get("drills", ())),
        epochs_evaluated=int(snapshot.extra.get("epochs_evaluated", 0)),
        validation=tuple(map(float, snapshot.extra.get("validation", ()))),
    )


@dataclass(frozen=True)
class HostState:
    """A whole state in this worker's host memory: weights, slots and the carry of its own lanes as arrays.

    residual: of each of its replicas. accounts: what the recorder and the guard's memory held then.
    """

    position: int
    weights: dict[str, np.ndarray]
    slots: dict[str, np.ndarray]
    residual: list[np.ndarray]
    carry: list[np.ndarray]
    state: State
    accounts: Any


def keep(replicas: Replicas, state: State, accounts: Any) -> HostState:
    """Copies the state to host memory. No collective: weights and slots are the same on every rank."""
    results = replicas.strategy.experimental_local_results
    return HostState(
        position=state.cursor.position,
        weights=on_host(replicas.model.weights),
        slots=on_host(replicas.slots),
        residual=replicas.residual.on_host() if replicas.residual else [],
        carry=[np.concatenate([part.numpy() for part in results(parts)]) for parts in tf.nest.flatten(state.carry)],
        state=replace(state, carry=None),
        accounts=accounts,
    )


def put_back(replicas: Replicas, kept: HostState) -> State:
    """Makes a kept state the present one, on every replica of this worker."""
    assign_all("model", replicas.model.weights, kept.weights)
    assign_all("optimizer", replicas.slots, kept.slots)
    if replicas.residual:
        replicas.residual.put(kept.residual)
    return replace(kept.state, carry=_place(replicas, kept.carry))


def make_health_check(replicas: Replicas) -> Callable[[Any], str]:
    """A function of the carry: the name of the first weight, slot or carry that holds a NaN or an infinity on any
    replica of any worker, empty where all are finite. A collective; every rank gets the same answer."""
    model, slots = replicas.model, replicas.slots
    names = [f"weight {name}" for name in model.weights] + [f"slot {name}" for name in slots]
    names += [f"carry {name}" for name in carry_names(model.config.layers)]
    residual = [replicas.residual.variable] if replicas.residual else []
    names += ["residual"] * len(residual)

    @tf.function(autograph=False)
    def count(carry: Any) -> Any:
        def mine(carry: Any) -> Any:
            tensors = [*model.weights.values(), *slots.values(), *tf.nest.flatten(carry), *residual]
            bad = [tf.reduce_any(~tf.math.is_finite(tensor)) for tensor in tensors]
            return all_reduce_sum([tf.cast(tf.stack(bad), tf.float32)])[0]

        return replicas.strategy.experimental_local_results(replicas.strategy.run(mine, args=(carry,)))[0]

    def check(carry: Any) -> str:
        bad = np.flatnonzero(count(carry).numpy())
        return names[bad[0]] if len(bad) else ""

    return check


def on_host(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Copies of variables."""
    return {name: variable.numpy() for name, variable in variables.items()}


def _place(replicas: Replicas, worker_carry: Any) -> Any:
    return replicas.place_carry([tf.constant(part) for part in tf.nest.flatten(worker_carry)])


def assign_all(kind: str, variables: Any, values: Any) -> None:
    """Gives every variable the value of its name. Raises: UserError: one is missing or of another shape."""
    unknown = next((name for name in values if name not in variables), None)
    if unknown is not None:
        raise UserError(
            f"the checkpoint's {kind} has {unknown}, which the run has not: "
            "resume with the configuration it was made with"
        )
    for name, variable in variables.items():
        found = values.get(name)
        if found is None or found.shape != tuple(variable.shape):
            shape = "nothing" if found is None else str(found.shape)
            raise UserError(
                f"the checkpoint's {kind} has {shape} for {name}, the run needs {tuple(variable.shape)}: "
                "resume with the configuration it was made with"
            )
        variable.assign(found)
