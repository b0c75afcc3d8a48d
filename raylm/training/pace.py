"""From a plan to hours: a measured pace, else a guess from what a device is assumed to reach. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from raylm.config import RunConfig
from raylm.training.devices import Device, speed
from raylm.training.plan import Plan, Text, operations
from raylm.training.topology import Topology


@dataclass(frozen=True)
class Time:
    """Seconds of training and, always estimated, of evaluation; the checkpoints that are written in that time."""

    tokens_per_second: float
    training: float
    evaluation: float
    checkpoints: int


def time_of(
    config: RunConfig, plan: Plan, text: Text, topology: Topology, device: Device, pace: float | None = None
) -> Time:
    """How long a run takes. pace: tokens a second, where it was measured."""
    guess = text.targets / text.windows / step_seconds(config, text, topology, device)
    pace = pace or guess
    checkpoints = plan.steps // config.checkpoint.every + plan.evaluations
    return Time(pace, plan.targets / pace, evaluation_seconds(config, text, plan, device), checkpoints)


def step_seconds(config: RunConfig, text: Text, topology: Topology, device: Device) -> float:
    """A guess at an update's time, the sum over replicas left out."""
    assumed = speed(config, device)
    targets = text.targets / text.windows / (topology.workers * topology.replicas)
    window = config.data.window if config.data.mode == "stream" else targets / topology.lanes_per_replica
    loops = 2 * config.model.layers * window * topology.shards_per_replica
    return targets * operations(config, text.vocabulary)[0] / assumed.flops + loops * assumed.loop_seconds


def evaluation_seconds(config: RunConfig, text: Text, plan: Plan, device: Device) -> float:
    """A guess at the time of all evaluations, of the valid text after each epoch and of the test text at the end: one
    replica reads one lane, or some sentences at once, while the others wait."""
    assumed = speed(config, device)
    targets = plan.evaluations * text.held_out[0] + text.held_out[1]
    at_once = 1 if config.data.mode == "stream" else 16
    loops = config.model.layers * assumed.loop_seconds / at_once
    return targets * (operations(config, text.vocabulary)[1] / assumed.flops + loops)
