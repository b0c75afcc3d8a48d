"""What tests of the step and of the loop run in processes of their own."""

from __future__ import annotations

import gc
import io
import itertools
import resource
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import tensorflow as tf
from tensorflow.python.eager.polymorphic_function.polymorphic_function import Function

from raylm.checkpoint.mirror import Mirror
from raylm.cli import main as command_line
from raylm.config import RunConfig
from raylm.data.dataset import open_dataset
from raylm.errors import UserError
from raylm.model.language_model import carry_names
from raylm.observe.summary import Summary
from raylm.training.agreement import check_same_start, weights_agree
from raylm.training.datasets import Datasets
from raylm.training.distribute import make_strategy
from raylm.training.loop import Outside, train
from raylm.training.signals import named
from raylm.training.state import Replicas, fresh_carry, make_replicas
from raylm.training.step import Batch, Control, compile_step
from raylm.training.topology import Topology

Arrays = dict[str, np.ndarray]


class Window(NamedTuple):
    """One window of all lanes, as `Batch`, and what the host says of it, as `Control`."""

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    reset: np.ndarray
    learning_rate: float = 0.5
    position: int = 0
    stop: float = 0.0


@dataclass(frozen=True)
class Stepped:
    """The state after a step, and what the step said."""

    weights: Arrays
    slots: Arrays
    carry: Arrays
    result: dict[str, float]
    signals: dict[str, float] = field(default_factory=dict)


def steps(
    replicas: int,
    lanes: int,
    words: int,
    scenarios: dict[str, tuple[dict[str, Any], list[Window]]],
    rank: int = 0,
    workers: int = 1,
    virtual_shards: int | None = None,
) -> dict[str, list[Stepped]]:
    """For each (configuration, windows): the state before the first step and after each, from fresh weights."""
    topology = Topology(rank, workers, replicas, lanes, virtual_shards)
    strategy = make_strategy(topology)
    return {
        name: _steps(strategy, topology, RunConfig.model_validate(tree), words, windows)
        for name, (tree, windows) in scenarios.items()
    }


def _steps(
    strategy: tf.distribute.Strategy, topology: Topology, config: RunConfig, words: int, windows: list[Window]
) -> list[Stepped]:
    made = make_replicas(strategy, topology, config, words)
    check_same_start(made, step=70_000)
    step = compile_step(made, config)
    names = carry_names(config.model.layers)

    def look(carry: Any, result: dict[str, float], signals: dict[str, float]) -> Stepped:
        gathered = [part.numpy() for part in made.gather_carry(carry)]
        return Stepped(
            {name: weight.numpy() for name, weight in made.model.weights.items()},
            {name: slot.numpy() for name, slot in made.slots.items()},
            dict(zip(names, gathered, strict=True)),
            result,
            signals,
        )

    carry = fresh_carry(made)
    states = [look(carry, {}, {})]
    for window in windows:
        mine = (part[topology.first_lane : topology.stop_lane] for part in window[:4])
        batch = Batch(*(tf.constant(_padded(part, topology.padded_lanes)) for part in mine))
        control = Control(
            position=tf.constant(window.position),
            learning_rate=tf.constant(window.learning_rate),
            stop=tf.constant(window.stop),
            strike=None,
        )
        result, carry = step(batch, carry, control)
        told = dict(zip(result._fields, map(float, result[:6]), strict=False))
        states.append(look(carry, told, named(made.model, result.signals)))
    _check_agreement(made)
    return states


def _check_agreement(made: Replicas) -> None:
    """All replicas hold the same weights, and one bit of one weight of the last is seen to differ."""
    assert weights_agree(made)
    topology, weight = made.topology, made.model.weights["embedding"]
    if topology.rank == topology.workers - 1 and topology.workers * topology.replicas > 1:
        last = made.strategy.experimental_local_results(weight)[-1]
        value = last.numpy()
        value.view(np.uint32)[0, 0] ^= 1
        last.assign(value)
    assert weights_agree(made) == (topology.workers * topology.replicas == 1)


def _padded(values: np.ndarray, lanes: int) -> np.ndarray:
    return np.concatenate([values, np.zeros((lanes - len(values), *values.shape[1:]), values.dtype)])


@dataclass
class Attempt:
    """One attempt at a run: its end, or the mistake that it met; what it told the world on the way."""

    summary: Summary | None = None
    mistake: str | None = None
    published: list[dict[str, Any]] = field(default_factory=list)
    reports: list[tuple[dict[str, float], str | None]] = field(default_factory=list)


def attempt(
    config: RunConfig,
    data: Path,
    folder: Path,
    replicas: int = 1,
    stop_at: int | None = None,
    rank: int = 0,
    workers: int = 1,
    hear: Callable[[Mapping[str, Any]], None] = lambda event: None,
    mirror: Mirror | None = None,
) -> Attempt:
    """Trains from the newest checkpoint in `folder` on; asks to stop after `stop_at` more steps."""
    told = Attempt()
    asked = itertools.count()

    def publish(event: Mapping[str, Any]) -> None:
        told.published.append(dict(event))
        hear(event)

    outside = Outside(
        publish=publish,
        stop_requested=lambda: stop_at is not None and next(asked) >= stop_at,
        report=lambda metrics, path: told.reports.append((dict(metrics), path and str(path))),
    )
    datasets = Datasets("tiny", *(open_dataset(data / split) for split in ("train", "valid", "test")))
    try:
        topology = Topology(rank, workers, replicas, config.data.lanes, config.cluster.fixed_shards)
        told.summary = train(config, datasets, topology, folder, outside, mirror)
    except UserError as mistake:
        told.mistake = str(mistake)
    return told


def attempts(config: RunConfig, data: Path, folder: Path, stops: list[int | None], replicas: int = 1) -> list[Attempt]:
    """One attempt after the other at the same run, each stopped after so many more steps, None for not at all."""
    return [attempt(config, data, folder, replicas, stop) for stop in stops]


def mistakes(configs: list[RunConfig], data: Path, folder: Path) -> list[str | None]:
    """What attempts to go on with other configurations meet."""
    return [attempt(config, data, folder).mistake for config in configs]


def attempt_on_a_full_disk(config: RunConfig, data: Path, folder: Path, most_bytes: int) -> Attempt:
    """An attempt in which no file can grow beyond `most_bytes`."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
    return attempt(config, data, folder)


def traces(config: RunConfig, data: Path, folder: Path) -> list[tuple[int, int]]:
    """Of each update of an attempt: its epoch, and how often anything was traced in this process before."""
    counts: list[tuple[int, int]] = []

    def hear(event: Mapping[str, Any]) -> None:
        if event["kind"] == "step":
            functions = [each for each in gc.get_objects() if isinstance(each, Function)]
            counts.append((event["epoch"], sum(each.experimental_get_tracing_count() for each in functions)))

    attempt(config, data, folder, hear=hear)
    return counts


def said(*words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `raylm WORDS`."""
    out, err = io.StringIO(), io.StringIO()
    with mock.patch.object(sys, "argv", ["raylm", *words]), redirect_stdout(out), redirect_stderr(err):
        try:
            command_line.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()
