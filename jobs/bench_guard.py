"""What the guard costs: the gate in the step, and a snapshot in host memory, each as a share of a step's time.

python jobs/bench_guard.py --recipe ptb-medium          about two minutes on two cores

Steps with the gate and steps without it alternate in one process, on the same weights, so that a machine that drifts
drifts for both; their processor time is told too, which other programs on the machine disturb less. A snapshot is
`guard.snapshot_every` steps apart: its cost is its time over that of so many steps.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_USE_LEGACY_KERAS="1")

import numpy as np
import tensorflow as tf

from raylm.config import RunConfig
from raylm.data.cursor import Cursor
from raylm.guard.ledger import Ledger
from raylm.model.dropout import Masks, mask_key
from raylm.model.shapes import rows_of
from raylm.optim.clipping import clip_factor, global_norm
from raylm.recipes import RECIPES
from raylm.training.distribute import all_reduce_sum, make_strategy
from raylm.training.state import Replicas, State, fresh_carry, keep, make_health_check, make_replicas, put_back
from raylm.training.step import Batch, Control, StepResult, compile_step, share_of_step
from raylm.training.topology import Topology

WORDS = 10_000


def main() -> None:
    """Prints the figures."""
    options = _options()
    config = RunConfig.model_validate({**RECIPES[options.recipe], "recipe": options.recipe})
    lanes, window = config.data.lanes, config.data.window
    replicas = make_replicas(make_strategy(Topology(0, 1, 1, lanes)), Topology(0, 1, 1, lanes), config, WORDS)
    ids = np.random.default_rng(0).integers(0, WORDS, (2, lanes, window)).astype(np.int32)
    batch = Batch(*map(tf.constant, (*ids, np.ones((lanes, window), np.float32), np.zeros(lanes, bool))))
    control = Control(tf.constant(0), tf.constant(0.0), tf.constant(0.0), None)  # a rate of 0: no drift
    steps = {"gated": compile_step(replicas, config), "ungated": _ungated(replicas, config)}
    carry = fresh_carry(replicas)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    processor: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(options.rounds + 2):
        for name in sorted(steps, reverse=bool(round_ % 2)):
            began = time.process_time()
            took = _seconds(partial(_step, steps[name], batch, carry, control))
            if round_ >= 2:  # the first ones compile and warm up
                seconds[name].append(took)
                processor[name].append(time.process_time() - began)
    without = statistics.median(seconds["ungated"])
    print(f"{options.recipe}, {replicas.model.parameters:,} parameters, {options.rounds} pairs of steps")
    print(f"step without the gate {1000 * without:8.1f} ms")
    for what, times in (("", seconds), (", processor", processor)):
        shares = [gated / ungated - 1 for gated, ungated in zip(times["gated"], times["ungated"], strict=True)]
        print(f"{'gate' + what:<22}{interval(shares)}")

    state = State(0, Cursor("0" * 64, "bench", 0), Ledger(), carry)
    health = make_health_check(replicas)
    health(carry)
    looks = [_seconds(lambda: health(carry)) for _ in range(10)]
    keeps = [_seconds(lambda: keep(replicas, state, None)) for _ in range(10)]
    kept = keep(replicas, state, None)
    backs = [_seconds(lambda: put_back(replicas, kept)) for _ in range(10)]
    every = config.guard.snapshot_every * without
    ring = [(look + copy) / every for look, copy in zip(looks, keeps, strict=True)]
    print(f"ring                  {interval(ring)}, a snapshot every {config.guard.snapshot_every} steps")
    for name, spent in (("look at the state", looks), ("copy it", keeps), ("put it back", backs)):
        print(f"  {name:<19} {1000 * statistics.median(spent):8.1f} ms")


def _step(step: Callable[..., Any], batch: Batch, carry: Any, control: Control) -> float:
    return float(step(batch, carry, control)[0].norm)


def _ungated(replicas: Replicas, config: RunConfig) -> Callable[..., Any]:
    """The step as it were without a guard: nothing looked at, nothing selected."""
    lanes, rows = config.data.lanes, rows_of(config, WORDS)

    def replica_step(batch: Batch, carry: Any, control: Control) -> Any:
        masks = Masks(mask_key(config.seed, control.position, tf.constant(0))) if config.model.dropout else None
        share = share_of_step(replicas.model, batch, carry, masks, control, tf.constant(0), rows=rows)
        scalars, *gradients = all_reduce_sum([share.scalars, *share.gradients])
        loss_sum, tokens, stop = tf.unstack(scalars)
        scale = 1 / float(lanes)
        norm = scale * global_norm(gradients)
        clip = clip_factor(norm, config.optimizer.clip_norm)
        replicas.optimizer.apply(gradients, [scale * clip] * len(gradients), control.learning_rate)
        return StepResult(loss_sum, tokens, norm, tf.constant(True), stop, tf.ones([]), clip), share.next_carry

    @tf.function
    def step(batch: Batch, carry: Any, control: Control) -> Any:
        return replicas.strategy.run(replica_step, args=(batch, carry, control))

    return step  # type: ignore[no-any-return]


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def interval(shares: list[float]) -> str:
    """Median and the 95 % interval of the median (sign test: order statistics)."""
    ordered, count = sorted(shares), len(shares)
    margin = int(0.98 * count**0.5) + 1
    low, high = ordered[max(count // 2 - margin, 0)], ordered[min(count // 2 + margin, count - 1)]
    return f"{100 * statistics.median(shares):+8.2f} % of a step (95 % interval {100 * low:+.2f} to {100 * high:+.2f})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What the guard costs, as a share of a step's time.")
    parser.add_argument("--recipe", choices=RECIPES, default="ptb-medium")
    parser.add_argument("--rounds", type=int, default=30, help="pairs of steps")
    return parser.parse_args()


if __name__ == "__main__":
    main()
