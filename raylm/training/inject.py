"""Drills at work: numbers made non-finite in the graph, in the batch or in the state.

In the graph they are selected, never added or multiplied: where nothing is struck, every bit stays as it is. Only
runs with drills are compiled with it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from raylm.errors import UserError
from raylm.guard.drills import SITES, STATE_SITES, Drill
from raylm.model.types import Tensor, Touch
from raylm.optim.rows import Gradient, RowGradient
from raylm.training.state import Replicas

_CODES = {site: code for code, site in enumerate((*SITES, "no-target", "explosion"), start=1)}
_EXPLOSION = 1e6  # times as large: Adam's slots, squares, stay finite
_TENSORS = {
    "embedding": "embedding",
    "layer0/outputs": "hidden",
    "logits": "logits",
    "candidate logits": "logits",
    "loss": "loss",
}
_GRADIENTS = {"embedding": "embedding-gradient", "lstm0/recurrent": "recurrent-gradient", "softmax/bias": "gradient"}


class Strike(NamedTuple):
    """What a step is struck with, all scalars: the site's code (0: nothing), the value, the replica and the lane of
    the global batch (-1: all replicas, each replica's first lane)."""

    site: Tensor
    value: Tensor
    replica: Tensor
    lane: Tensor


def strike_of(drill: Drill | None) -> Strike:
    """The strike of a drill in the graph; nothing for None and for drills that strike elsewhere."""
    if drill is None or drill.site in STATE_SITES or drill.site not in _CODES:
        return Strike(tf.constant(0), tf.constant(0.0), tf.constant(-1), tf.constant(-1))
    replica = -1 if drill.replica is None else drill.replica
    lane = -1 if drill.lane is None else drill.lane
    return Strike(tf.constant(_CODES[drill.site]), tf.constant(drill.value), tf.constant(replica), tf.constant(lane))


def touch_of(strike: Strike, replica: Tensor, first_lane: Tensor, weights_BT: Tensor) -> Touch:
    """The touch of the forward pass on a replica that holds the lanes from `first_lane` on; a lane without targets is
    never struck."""
    lanes = weights_BT.shape[0]
    local = tf.where(strike.lane < 0, 0, strike.lane - first_lane)
    reads = tf.reduce_any(weights_BT > 0, axis=1)
    struck_B = (tf.range(lanes) == local) & reads
    here = (strike.replica < 0) | (strike.replica == replica)

    def touch(name: str, tensor: Tensor) -> Tensor:
        site = _TENSORS.get(name)
        if site is None:
            return tensor
        if name == "loss":
            mask = tf.constant(True)
        elif site == "logits":  # rows stand time step by time step
            mask = tf.tile(struck_B, [tf.shape(tensor)[0] // lanes])[:, None]
        else:
            mask = struck_B[None, :, None]
        return tf.where(here & (strike.site == _CODES[site]) & mask, strike.value, tensor)

    return touch


def struck_gradient(strike: Strike, replica: Tensor, name: str, gradient: Gradient) -> Gradient:
    """The gradient of the weight `name`, all of it struck where the strike is for it."""
    if isinstance(gradient, RowGradient):
        rows, common_rows = (struck_gradient(strike, replica, name, part) for part in gradient[1::2])
        return gradient._replace(rows=rows, common_rows=common_rows)
    here = (strike.replica < 0) | (strike.replica == replica)
    exploded = here & (strike.site == _CODES["explosion"])
    gradient = tf.where(exploded, _EXPLOSION * gradient, gradient)
    if name not in _GRADIENTS:
        return gradient
    return tf.where(here & (strike.site == _CODES[_GRADIENTS[name]]), strike.value, gradient)


def naive_mean(strike: Strike, loss_sum: Tensor, tokens: Tensor) -> Tensor:
    """The loss as a mean that divides by the number of targets even where there are none, for `no-target`."""
    return tf.where(strike.site == _CODES["no-target"], loss_sum / tokens, loss_sum)


def struck_batch(
    drill: Drill | None, inputs: np.ndarray, weights: np.ndarray, first_lane: int, vocabulary: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and weights [lanes, T] of lanes from `first_lane` on, struck where the drill is for the batch."""
    if drill is not None and drill.kind == "no-target":
        return inputs, np.zeros_like(weights)
    lane = (drill.lane or 0) - first_lane if drill is not None else -1
    if drill is not None and drill.kind == "bad-id" and 0 <= lane < len(inputs):
        inputs = inputs.copy()
        inputs[lane, np.count_nonzero(weights[lane]) // 2] = vocabulary + 7
    return inputs, weights


def strike_state(replicas: Replicas, carry: Any, drill: Drill) -> Any:
    """Spoils one number of a weight or a slot in place, or one lane of the carry; returns the carry.

    Raises:
        UserError: the optimizer has no slots.
    """
    topology, results = replicas.topology, replicas.strategy.experimental_local_results
    if drill.site == "carry":
        lane = (drill.lane or 0) - topology.first_lane
        parts = [np.concatenate([part.numpy() for part in results(whole)]) for whole in tf.nest.flatten(carry)]
        if 0 <= lane < len(parts[0]):
            parts[0][lane] = drill.value
        return replicas.place_carry([tf.constant(part) for part in parts])
    variables = replicas.model.weights if drill.site == "weight" else replicas.optimizer.slots
    if not variables:
        raise UserError(f"--drill {drill}: this optimizer has no slots; use --optimizer.name adam")
    first = topology.rank * topology.replicas
    for replica, copy in enumerate(results(next(iter(variables.values()))), start=first):
        if drill.replica in (None, replica):
            values = copy.numpy()
            values.reshape(-1)[-1] = drill.value
            copy.assign(values)
    return carry


def strike_process(drill: Drill, run_folder: Path) -> None:
    """Kills or stops this process; a mark in the run's folder keeps that from coming back."""
    mark = run_folder / "drills" / str(drill)
    mark.parent.mkdir(exist_ok=True)
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL if drill.kind == "kill-worker" else signal.SIGSTOP)
