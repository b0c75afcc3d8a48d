"""What `bench_scaling.py` compares: one process of a training on several, by raylm and by PyTorch's DDP with gloo.

As a program: `python bench_scaling_workers.py`, a `Place` as JSON on the first line of standard input; says "ready",
then for each line `step VARIANT COUNT` or `reduce VARIANT COUNT` one line, the seconds that each of them took.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

WORDS = 10_000
Timed = Callable[[str, str, int], float]


@dataclass(frozen=True)
class Place:
    """One process. library: raylm or torch. cores: that it may use. ports: one a worker. variants: of raylm, by name,
    what differs from the recipe."""

    library: str
    recipe: str
    rank: int
    workers: int
    replicas: int
    cores: list[int]
    ports: list[int]
    variants: dict[str, dict[str, Any]]


def batch(lanes: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets [lanes, window], distributed like words."""
    shares = 1 / np.arange(1, WORDS + 1)
    ids = np.random.default_rng(0).choice(WORDS, (2, lanes, window), p=shares / shares.sum())
    return tuple(ids.astype(np.int32))


def raylm_timed(place: Place) -> Timed:
    """raylm's compiled step, all of the guard's gate and the sum over replicas in it."""
    if place.workers > 1:
        cluster = {"worker": [f"127.0.0.1:{port}" for port in place.ports]}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": place.rank}})
    import tensorflow as tf

    from raylm.config import RunConfig
    from raylm.recipes import RECIPES
    from raylm.training.distribute import make_strategy
    from raylm.training.exchange import make_all_reduce, seconds
    from raylm.training.state import fresh_carry, make_replicas
    from raylm.training.step import Batch, Control, compile_step
    from raylm.training.topology import Topology

    recipe: Mapping[str, Any] = RECIPES[place.recipe]
    configs = {
        name: RunConfig.model_validate({**recipe, "recipe": place.recipe, **changes})
        for name, changes in place.variants.items()
    }
    data = next(iter(configs.values())).data
    topology = Topology(place.rank, place.workers, place.replicas, data.lanes)
    strategy = make_strategy(topology)
    mine = slice(topology.first_lane, topology.stop_lane)
    ids = (part[mine] for part in batch(data.lanes, data.window))
    ones, never = np.ones((topology.padded_lanes, data.window), np.float32), np.zeros(topology.padded_lanes, bool)
    window = Batch(*map(tf.constant, (*ids, ones, never)))
    replicas = {name: make_replicas(strategy, topology, config, WORDS) for name, config in configs.items()}
    step = {name: compile_step(replicas[name], config) for name, config in configs.items()}
    reduce = {name: make_all_reduce(replicas[name], config) for name, config in configs.items()}
    carry = {name: fresh_carry(each) for name, each in replicas.items()}

    def timed(what: str, name: str, count: int) -> float:
        if what == "reduce":
            return seconds(reduce[name], count)
        began = time.perf_counter()
        for position in range(count):
            control = Control(tf.constant(position), tf.constant(0.01), tf.constant(0.0), None)
            result, carry[name] = step[name](window, carry[name], control)
        float(result.norm)
        return (time.perf_counter() - began) / count

    return timed


def torch_timed(place: Place) -> Timed:
    """`nn.LSTM`, cross-entropy, `clip_grad_norm_`, SGD, the carry detached between windows, DDP over several."""
    import torch
    import torch.distributed as dist
    from torch import nn

    from raylm.config import RunConfig
    from raylm.recipes import RECIPES

    torch.set_num_threads(len(place.cores))
    config = RunConfig.model_validate({**RECIPES[place.recipe], "recipe": place.recipe})
    size, lanes, window = config.model, config.data.lanes // place.workers, config.data.window

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(WORDS, size.hidden)
            self.lstm = nn.LSTM(size.hidden, size.hidden, size.layers, dropout=size.dropout)
            self.softmax = nn.Linear(size.hidden, WORDS)
            self.drop = nn.Dropout(size.dropout)

        def forward(self, inputs: Any, targets: Any, carry: Any) -> Any:
            hidden, carry = self.lstm(self.drop(self.embedding(inputs)), carry)
            logits = self.softmax(self.drop(hidden))
            return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()), carry

    model: Any = Model()
    parameters = list(model.parameters())
    if place.workers > 1:
        address = f"tcp://127.0.0.1:{place.ports[0]}"
        dist.init_process_group("gloo", init_method=address, rank=place.rank, world_size=place.workers)
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    mine = slice(place.rank * lanes, (place.rank + 1) * lanes)
    inputs, targets = (
        torch.from_numpy(ids[mine].T.astype(np.int64)).contiguous() for ids in batch(config.data.lanes, window)
    )
    zeros = torch.zeros(size.layers, lanes, size.hidden)
    carry = (zeros, zeros)

    def timed(what: str, _: str, count: int) -> float:
        nonlocal carry
        began = time.perf_counter()
        for _step in range(count):
            if what == "reduce":
                for parameter in parameters:
                    dist.all_reduce(parameter.grad)
                continue
            optimizer.zero_grad(set_to_none=False)
            loss, after = model(inputs, targets, carry)
            (window * loss).backward()
            nn.utils.clip_grad_norm_(parameters, config.optimizer.clip_norm or float("inf"))
            optimizer.step()
            carry = tuple(part.detach() for part in after)
        if what == "step":
            loss.item()
        return (time.perf_counter() - began) / count

    return timed


def _main() -> None:
    place = Place(**json.loads(sys.stdin.readline()))
    os.sched_setaffinity(0, place.cores)
    timed = raylm_timed(place) if place.library == "raylm" else torch_timed(place)
    print("ready", flush=True)
    for line in sys.stdin:
        what, name, count = line.split()
        print(timed(what, name, int(count)), flush=True)


if __name__ == "__main__":
    _main()
