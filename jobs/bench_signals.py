"""What the signals cost that `raylm diagnose` reads, as a share of a step's time, and that they change no bit.

python jobs/bench_signals.py --recipe ptb-medium        about two minutes on two cores

Steps with them and steps without alternate in one process, as `jobs/bench_guard.py` does it. First both make a few real
updates from the same weights: the digests of what they end with must be equal.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_USE_LEGACY_KERAS="1")

import numpy as np
import tensorflow as tf
from bench_guard import WORDS, interval

from raylm.config import RunConfig
from raylm.model.language_model import initial_weights
from raylm.recipes import RECIPES
from raylm.training.distribute import make_strategy
from raylm.training.signals import named
from raylm.training.state import Replicas, assign_all, fresh_carry, make_replicas
from raylm.training.step import Batch, Control, compile_step
from raylm.training.topology import Topology

UPDATES = 4
DUE = 2
"""Every so many windows the signals are due here; in training, every `report.log_every`."""


def main() -> None:
    """Prints the figures."""
    options = _options()
    config = RunConfig.model_validate({**RECIPES[options.recipe], "recipe": options.recipe})
    topology = Topology(0, 1, 1, config.data.lanes)
    replicas = make_replicas(make_strategy(topology), topology, config, WORDS)
    steps = {name: compile_step(replicas, _with_signals(config, name == "on")) for name in ("on", "off")}
    batch = _batch(config)
    digests = {name: _digest(step, replicas, config, batch) for name, step in steps.items()}
    print(f"{options.recipe}, {replicas.model.parameters:,} parameters, {options.rounds} pairs of steps")
    print(f"{UPDATES} updates with and without end {'the same' if len(set(digests.values())) == 1 else 'NOT THE SAME'}")
    carry = fresh_carry(replicas)
    wall: dict[str, list[float]] = {name: [] for name in steps}
    processor: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(4 + options.rounds):
        for name in sorted(steps, reverse=bool(round_ // 2 % 2)):
            still = Control(tf.constant(round_), tf.constant(0.0), tf.constant(0.0), None)
            began, worked = time.perf_counter(), time.process_time()
            result, _ = steps[name](batch, carry, still)
            [float(value) for value in result[:6]], named(replicas.model, result.signals)  # as the loop reads them
            wall[name].append(time.perf_counter() - began)
            processor[name].append(time.process_time() - worked)
    print(f"step without          {1000 * statistics.median(wall['off'][4:]):8.1f} ms")
    every = config.report.log_every
    for what, times in (("", wall), (", processor", processor)):
        shares = [on / off - 1 for on, off in zip(times["on"], times["off"], strict=True)]
        due, other = shares[4::DUE], shares[5::DUE]
        print(f"{'due' + what:<22}{interval(due)}")
        print(f"{'not due' + what:<22}{interval(other)}")
        mean = (statistics.median(due) + (every - 1) * statistics.median(other)) / every
        print(f"{f'one in {every} due' + what:<28}{100 * mean:+.2f} % of a step")


def _with_signals(config: RunConfig, on: bool) -> RunConfig:
    report = config.report.model_copy(update={"signals": on, "log_every": DUE})
    return config.model_copy(update={"report": report})


def _batch(config: RunConfig) -> Batch:
    lanes = config.data.lanes
    window = config.data.window if config.data.mode == "stream" else max(config.data.buckets)
    ids = np.random.default_rng(0).integers(0, WORDS, (2, lanes, window)).astype(np.int32)
    return Batch(*map(tf.constant, (*ids, np.ones((lanes, window), np.float32), np.zeros(lanes, bool))))


def _digest(step: Callable[..., Any], replicas: Replicas, config: RunConfig, batch: Batch) -> str:
    """Of the weights after some updates from fresh ones."""
    assign_all("model", replicas.model.weights, initial_weights(config.model, WORDS, config.seed))
    for slot in replicas.optimizer.slots.values():
        slot.assign(tf.zeros_like(slot))
    carry = fresh_carry(replicas)
    for position in range(UPDATES):
        rate = tf.constant(config.schedule.learning_rate)
        _, carry = step(batch, carry, Control(tf.constant(position), rate, tf.constant(0.0), None))
    digest = hashlib.sha256()
    for weight in replicas.model.weights.values():
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What the signals cost, as a share of a step's time.")
    parser.add_argument("--recipe", choices=RECIPES, default="ptb-medium")
    parser.add_argument("--rounds", type=int, default=60, help="pairs of steps")
    return parser.parse_args()


if __name__ == "__main__":
    main()
