"""What checkpoints cost: a step's time while one is written against not, and the time to take one up again.

python jobs/bench_checkpoint.py --recipe ptb-medium     about two minutes on two cores that nobody else uses

Blocks of steps with a checkpoint being written behind them and blocks without alternate in one process, so that a
machine that drifts drifts for both; the steps compared are those during which the writing went on. Then, for each
recipe: writing, reading with every byte verified, and putting the state in place, which is all of raylm's own share of
a resume that grows with the model.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_USE_LEGACY_KERAS="1")

import numpy as np
import tensorflow as tf

from raylm.checkpoint.background import BackgroundWriter
from raylm.checkpoint.snapshot import Snapshot
from raylm.checkpoint.store import CheckpointStore
from raylm.config import RunConfig
from raylm.data.cursor import Cursor
from raylm.guard.ledger import Ledger
from raylm.recipes import RECIPES
from raylm.training.distribute import make_strategy
from raylm.training.state import Replicas, State, capture, fresh_carry, keep, make_replicas, restore
from raylm.training.step import Batch, Control, compile_step
from raylm.training.topology import Topology

WORDS = 10_000


@dataclass
class Blocks:
    """Seconds of the steps without a writing, of those during one, of the captures, of the writings, and of a processor
    in the writings."""

    without: list[float]
    during: list[float]
    shares: list[float]
    captures: list[float]
    writings: list[float]
    processor: list[float]


def main() -> None:
    """Prints the figures, with the load of the machine before and after."""
    options = _options()
    print(f"load {_load()} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        _print_stall(options, Path(folder))
        for recipe in options.resume:
            _print_resume(recipe, Path(folder) / recipe)
    print(f"load {_load()} at the end")


def _print_stall(options: argparse.Namespace, folder: Path) -> None:
    config, replicas, state = _made(options.recipe)
    blocks = _measure(config, replicas, state, CheckpointStore(folder / "stall"), options.rounds, options.steps)
    step = statistics.median(blocks.without)
    print(f"{options.recipe}, {replicas.model.parameters:,} parameters, {options.rounds} pairs of blocks")
    print(f"step, nothing written     {1000 * step:8.1f} ms")
    print(f"step during a writing     {_interval(blocks.shares)} of a step, {len(blocks.during)} steps")
    print(f"capture, training waits   {1000 * statistics.median(blocks.captures):8.1f} ms")
    processor = statistics.median(blocks.processor)
    print(f"writing                   {statistics.median(blocks.writings):8.2f} s, {processor:.2f} s of a processor")
    slower = sum(blocks.during) - len(blocks.during) * step + sum(blocks.captures)
    every = config.checkpoint.every
    print(f"all of it                 {100 * slower / options.rounds / every / step:8.2f} %, one every {every} steps")


def _measure(
    config: RunConfig, replicas: Replicas, state: State, store: CheckpointStore, rounds: int, steps: int
) -> Blocks:
    step, carry = _step_of(config, replicas), state.carry
    for _ in range(2):  # compile and warm up
        carry = step(carry)
    found, writer = Blocks([], [], [], [], [], []), BackgroundWriter()
    for round_ in range(rounds):
        took: dict[bool, list[float]] = {}
        for writing in sorted((False, True), reverse=bool(round_ % 2)):
            if writing:
                kept = keep(replicas, state, None)  # as the guard's ring has it anyway
                captured = time.perf_counter()
                snapshot = capture(replicas, state, config.seed, {}, kept)
                writer.begin(partial(_write, store, snapshot, writer.rest, found.writings, found.processor))
                found.captures.append(time.perf_counter() - captured)
            took[writing] = []
            for _ in range(steps):
                began = time.perf_counter()
                carry = step(carry)
                if writer.busy or not writing:
                    took[writing].append(time.perf_counter() - began)
            writer.wait()
        found.without += took[False]
        found.during += took[True]
        if took[True]:
            found.shares.append(statistics.mean(took[True]) / statistics.mean(took[False]) - 1)
    return found


def _print_resume(recipe: str, folder: Path) -> None:
    config, replicas, state = _made(recipe)
    store = CheckpointStore(folder)
    snapshot = capture(replicas, state, config.seed, {})
    saves = [_seconds(partial(store.save, snapshot, config={}, dataset_id="bench")) for _ in range(3)]
    size = store.list()[-1].bytes / (1 << 20)
    loads = [_seconds(lambda: store.load_newest(print)) for _ in range(5)]
    loaded = store.load_newest(print)[1]
    puts = [_seconds(partial(restore, replicas, loaded)) for _ in range(5)]
    times = ", ".join(
        f"{name} {1000 * statistics.median(spent):,.0f} ms"
        for name, spent in (("save", saves), ("load and verify", loads), ("put in place", puts))
    )
    print(f"{recipe:<12}{size:8.1f} MiB: {times}")


def _made(recipe: str) -> tuple[RunConfig, Replicas, State]:
    config = RunConfig.model_validate({**RECIPES[recipe], "recipe": recipe})
    topology = Topology(0, 1, 1, config.data.lanes)
    replicas = make_replicas(make_strategy(topology), topology, config, WORDS)
    return config, replicas, State(0, Cursor("0" * 64, "bench", 0), Ledger(), fresh_carry(replicas))


def _step_of(config: RunConfig, replicas: Replicas) -> Callable[[Any], Any]:
    lanes, window = config.data.lanes, config.data.window
    ids = np.random.default_rng(0).integers(0, WORDS, (2, lanes, window)).astype(np.int32)
    batch = Batch(*map(tf.constant, (*ids, np.ones((lanes, window), np.float32), np.zeros(lanes, bool))))
    control = Control(tf.constant(0), tf.constant(0.0), tf.constant(0.0), None)  # a rate of 0: no drift
    compiled = compile_step(replicas, config)

    def step(carry: Any) -> Any:
        result, after = compiled(batch, carry, control)
        float(result.norm)  # waits for the device
        return after

    return step


def _write(
    store: CheckpointStore,
    snapshot: Snapshot,
    rest: Callable[[], None],
    writings: list[float],
    processor: list[float],
) -> None:
    began = time.thread_time()
    writings.append(_seconds(lambda: store.save(snapshot, config={}, dataset_id="bench", rest=rest)))
    processor.append(time.thread_time() - began)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _load() -> str:
    return " ".join(f"{load:.1f}" for load in os.getloadavg())


def _interval(shares: list[float]) -> str:
    """Median and the 95 % interval of the median (sign test: order statistics)."""
    ordered, count = sorted(shares), len(shares)
    margin = int(0.98 * count**0.5) + 1
    low, high = ordered[max(count // 2 - margin, 0)], ordered[min(count // 2 + margin, count - 1)]
    return f"{100 * statistics.median(shares):+8.2f} % (95 % interval {100 * low:+.2f} to {100 * high:+.2f})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What checkpoints cost while they are written and taken up again.")
    parser.add_argument("--recipe", choices=RECIPES, default="ptb-medium", help="whose steps are timed")
    parser.add_argument("--rounds", type=int, default=20, help="pairs of blocks")
    parser.add_argument("--steps", type=int, default=5, help="steps of a block")
    parser.add_argument("--resume", nargs="*", default=["ptb-small", "ptb-medium", "ptb-large"], help="recipes to load")
    parser.add_argument("--folder", help="where to write; default the system's temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
