"""What `--exact-elastic` costs: its step beside the usual one, on one worker.

python jobs/bench_elastic.py --recipe ptb-medium                  one replica
python jobs/bench_elastic.py --recipe ptb-medium --replicas 2     two on logical devices of this machine

The two kinds of steps alternate in one process, on the same weights, so that a machine that drifts drifts for both;
their processor time is told too, which other programs on the machine disturb less. `--workers 2` starts two processes,
each with one replica, whose steps alternate alike.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_USE_LEGACY_KERAS="1")

import numpy as np
import tensorflow as tf

from raylm.config import RunConfig
from raylm.recipes import RECIPES
from raylm.training.distribute import make_strategy
from raylm.training.state import fresh_carry, make_replicas
from raylm.training.step import Batch, Control, compile_step
from raylm.training.topology import Topology

WORDS = 10_000


def main() -> None:
    """Prints the figures; with several workers, those of the first."""
    options = _options()
    if options.rank is None and options.workers > 1:
        _start(options.workers)
    else:
        _measure(options)


def _measure(options: argparse.Namespace) -> None:
    rank = options.rank or 0
    configs = {
        kind: RunConfig.model_validate(
            {**RECIPES[options.recipe], "cluster": {"exact_elastic": kind == "exact", "virtual_shards": options.shards}}
        )
        for kind in ("usual", "exact")
    }
    data = configs["usual"].data
    strategy = make_strategy(Topology(rank, options.workers, options.replicas, data.lanes))
    random = np.random.default_rng(0)
    control = Control(tf.constant(0), tf.constant(0.0), tf.constant(0.0), None)  # a rate of 0: no drift
    steps, batches, carries = {}, {}, {}
    for kind, config in configs.items():
        topology = Topology(rank, options.workers, options.replicas, data.lanes, config.cluster.fixed_shards)
        made = make_replicas(strategy, topology, config, WORDS)
        held = topology.padded_lanes
        ids = random.integers(0, WORDS, (2, held, data.window)).astype(np.int32)
        weights, reset = np.ones((held, data.window), np.float32), np.zeros(held, bool)
        batches[kind] = Batch(*map(tf.constant, (*ids, weights, reset)))
        steps[kind], carries[kind] = compile_step(made, config), fresh_carry(made)
    seconds: dict[str, list[float]] = {kind: [] for kind in configs}
    processor: dict[str, list[float]] = {kind: [] for kind in configs}
    for round_ in range(options.rounds + 2):
        for kind in sorted(configs, reverse=bool(round_ % 2)):
            began, worked = time.perf_counter(), time.process_time()
            float(steps[kind](batches[kind], carries[kind], control)[0].norm)
            if round_ >= 2:  # the first ones compile and warm up
                seconds[kind].append(time.perf_counter() - began)
                processor[kind].append(time.process_time() - worked)
    if rank:
        return
    place = f"{options.workers} workers x {options.replicas} replicas, {options.shards} virtual shards"
    print(f"{options.recipe}, {place}, {options.rounds} pairs of steps")
    for what, times in (("time", seconds), ("processor time", processor)):
        ratios = sorted(exact / usual for exact, usual in zip(times["exact"], times["usual"], strict=True))
        middle, quarter = statistics.median(ratios), len(ratios) // 4
        print(
            f"{what:<15} usual {1000 * statistics.median(times['usual']):7.1f} ms   exact "
            f"{1000 * statistics.median(times['exact']):7.1f} ms   ratio {middle:.2f} "
            f"({ratios[quarter]:.2f} to {ratios[-1 - quarter]:.2f})"
        )
    print(
        f"peak memory     {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB, of both kinds together"
    )


def _start(workers: int) -> None:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(workers)]
    addresses = [f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes]
    for probe in probes:
        probe.close()
    running = []
    for rank in range(workers):
        place = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(place)}
        running.append(subprocess.Popen([sys.executable, *sys.argv, "--rank", str(rank)], env=environment))
    sys.exit(max(each.wait() for each in running))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="ptb-small")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
