"""What the loss and the update cost: time in alternation in one process, peak memory in a process each.

python jobs/bench_softmax.py loss                              V = 10,000 and 100,000, about three minutes
python jobs/bench_softmax.py update --recipe ptb-medium        about a minute

Times are ratios of medians to the first line's, of the clock and of the processor's time, which other programs on the
machine disturb less. Memory is what the peak of three steps lies above what the process held before.

loss: 700 rows, forward and backward, all words at once, in pieces of some words, or sampled.
update: whole steps. `passes`: gradients whole, scaled in one pass and subtracted in another, as plain TensorFlow code
does; `whole`: clipped and applied in one pass; `rows`: the embedding's gradient kept as rows, too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_USE_LEGACY_KERAS="1")

import numpy as np
import tensorflow as tf

from raylm.config import RunConfig
from raylm.model.loss import cross_entropy_sum
from raylm.model.sampling import draw_candidates, sampled_cross_entropy_sum
from raylm.model.shapes import rows_of
from raylm.optim.optimizers import Adam, make_optimizer
from raylm.recipes import RECIPES
from raylm.training.distribute import make_strategy
from raylm.training.state import fresh_carry, make_replicas
from raylm.training.step import Batch, Control, compile_step
from raylm.training.topology import Topology

ROWS, WORDS = 700, 10_000
SHAPES = {10_000: 650, 100_000: 512}  # words: width
UPDATES = ("passes", "whole", "rows")


def main() -> None:
    """Prints the figures."""
    options = _options()
    if options.memory:
        print(f"{_peak(_made(options, options.memory)):.0f}")
        return
    for case, kinds in _cases(options):
        print(f"\n{case}\n{'':24}{'median':>10}{'ratio':>8}{'processor':>11}{'peak memory':>13}")
        timed = _alternate({kind: _made(options, kind) for kind in kinds}, options.rounds)
        for kind, (clock, processor) in timed.items():
            first = timed[kinds[0]]
            megabytes = subprocess.check_output([sys.executable, *sys.argv, "--memory", kind], text=True).split()[-1]
            print(
                f"{kind:24}{clock * 1e3:7.1f} ms{clock / first[0]:8.3f}{processor / first[1]:11.3f}{megabytes:>9} MiB",
                flush=True,
            )


def _cases(options: argparse.Namespace) -> list[tuple[str, Sequence[str]]]:
    if options.what == "update":
        return [(f"{options.recipe}, {options.optimizer}", UPDATES)]
    return [
        (
            f"{words:,} words, width {width}",
            [f"{words}:{kind}" for kind in ("all", words // 3 + 1, words // 10, "8192s")],
        )
        for words, width in SHAPES.items()
    ]


def _made(options: argparse.Namespace, kind: str) -> Callable[[], Any]:
    return _loss(kind) if options.what == "loss" else _step(options, kind)


def _loss(kind: str) -> Callable[[], Any]:
    """One forward and backward pass; kind: WORDS:all, WORDS:CHUNK, or WORDS:COUNTs for so many sampled."""
    words, way = int(kind.split(":")[0]), kind.split(":")[1]
    width, random = SHAPES[words], np.random.default_rng(0)
    hidden = tf.constant(random.normal(size=(ROWS, width)).astype(np.float32))
    targets, weights = tf.constant(random.integers(0, words, ROWS).astype(np.int32)), tf.ones([ROWS])
    softmax, bias = tf.Variable(random.random((words, width), np.float32) / 10), tf.Variable(tf.zeros([words]))

    @tf.function
    def passes() -> Any:
        with tf.GradientTape() as tape:
            tape.watch([hidden, softmax, bias])
            if way.endswith("s"):
                candidates = draw_candidates(0, tf.constant(0), int(way[:-1]), words)
                loss = sampled_cross_entropy_sum(hidden, softmax, bias, targets, weights, candidates)
            else:
                chunk = None if way == "all" else int(way)
                loss = cross_entropy_sum(hidden, softmax, bias, targets, weights, chunk=chunk)
        gradient = tape.gradient(loss, [hidden, softmax])
        rows = gradient[1].values if isinstance(gradient[1], tf.IndexedSlices) else gradient[1]
        return loss + gradient[0][0, 0] + rows[0, 0]

    return passes  # type: ignore[no-any-return]


def _step(options: argparse.Namespace, kind: str) -> Callable[[], Any]:
    """One training step of a recipe on words drawn log-uniformly."""
    config = RunConfig.model_validate({**RECIPES[options.recipe], "recipe": options.recipe})
    config = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"name": options.optimizer})})
    lanes, window = config.data.lanes, config.data.window
    topology = Topology(0, 1, 1, lanes)
    strategy = make_strategy(topology)
    make = make_optimizer if kind != "passes" else lambda config, weights: _in_passes(make_optimizer(config, weights))
    with mock.patch("raylm.training.state.make_optimizer", make):
        replicas = make_replicas(strategy, topology, config, WORDS)
    step = compile_step(replicas, config)
    ids = np.exp(np.random.default_rng(0).random((2, lanes, window)) * np.log(WORDS)).astype(np.int32) - 1
    batch = Batch(*map(tf.constant, (*ids, np.ones((lanes, window), np.float32), np.zeros(lanes, bool))))
    control = Control(tf.constant(0), tf.constant(1e-3), tf.constant(0.0), None)
    carry = fresh_carry(replicas)

    rows = rows_of(config, WORDS) if kind == "rows" else {}

    def one() -> Any:
        nonlocal carry
        with mock.patch("raylm.training.step.rows_of", return_value=rows):  # the first call compiles
            result, carry = step(batch, carry, control)
        return result.norm

    return one


def _in_passes(optimizer: Any) -> Any:
    """The optimizer with an update as plain TensorFlow code writes it."""
    weights, slots = optimizer.weights, optimizer.slots

    def sgd(gradients: Sequence[Any], factors: Sequence[Any], learning_rate: Any) -> None:
        for weight, gradient, factor in zip(weights.values(), gradients, factors, strict=True):
            weight.assign_sub(factor * learning_rate * gradient)

    def adam(gradients: Sequence[Any], factors: Sequence[Any], learning_rate: Any) -> None:
        slots["updates"].assign_add(1.0)
        count = slots["updates"].read_value()
        root = tf.sqrt(1 - optimizer.beta2**count)
        rate = learning_rate * root / (1 - optimizer.beta1**count)
        for (name, weight), gradient, factor in zip(weights.items(), gradients, factors, strict=True):
            first, second, clipped = slots[f"{name}/first"], slots[f"{name}/second"], factor * gradient
            first.assign_sub((1 - optimizer.beta1) * (first - clipped))
            second.assign_sub((1 - optimizer.beta2) * (second - tf.square(clipped)))
            weight.assign_sub(rate * first / (tf.sqrt(second) + optimizer.epsilon * root))

    optimizer.apply = adam if isinstance(optimizer, Adam) else sgd
    return optimizer


def _alternate(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds of the clock and of the processor of each."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for round_ in range(rounds + 2):
        for name in sorted(functions, reverse=bool(round_ % 2)):
            began = time.perf_counter(), time.process_time()
            functions[name]().numpy()
            if round_ >= 2:  # the first ones compile and warm up
                taken[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return {name: tuple(map(statistics.median, zip(*each, strict=True))) for name, each in taken.items()}


def _peak(function: Callable[[], Any]) -> float:
    """MiB of resident memory that three calls take at most above what was held before."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    for _ in range(3):
        function().numpy()
    return _resident("VmHWM") - before


def _resident(name: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("loss", "update"))
    parser.add_argument("--recipe", default="ptb-small", help="update: whose steps")
    parser.add_argument("--optimizer", default="sgd", choices=("sgd", "adam"), help="update: in place of the recipe's")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
