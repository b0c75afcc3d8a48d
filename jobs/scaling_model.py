"""A model of a training on many GPUs: the share of its time in which each computes.

It takes the assumptions that it prints; what it says of GPUs was never tried on any. `python jobs/bench_scaling.py`
prints it, and holds it to what two workers take on this machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench_scaling_workers import WORDS
from rich.table import Table

from raylm.config import RunConfig
from raylm.model.shapes import rows_of, weight_shapes
from raylm.recipes import RECIPES


@dataclass(frozen=True)
class Assumptions:
    """What the model of many GPUs takes. Bytes and operations a second, seconds."""

    flops: float = 22e12  # a third of an H100's or H200's single-precision peak
    loop_seconds: float = 1e-4  # a time step of a layer, forwards or backwards, beside its products
    lanes: int = 64  # of each GPU, however many there are
    gpus_per_node: int = 8
    node_bytes: float = 300e9  # that each GPU of a node sends to the others
    network_bytes: float = 50e9  # that each node sends to the others: 400 Gbit/s
    latency: float = 2e-5  # of each of the 2 log2(n) messages in a row
    overlap: float = 0.0  # of the sum with the computation: raylm's begins where the last gradient ends


def configuration(recipe: str) -> RunConfig:
    """A recipe's."""
    return RunConfig.model_validate({**RECIPES[recipe], "recipe": recipe})


def gradient_bytes(config: RunConfig, lanes: int, replicas: int) -> int:
    """What the replicas sum up in a step in which each has so many lanes: gradients in rows where those are fewer."""
    data = config.data.model_copy(update={"lanes": lanes * replicas})
    kept = rows_of(config.model_copy(update={"data": data}), WORDS)
    shapes = weight_shapes(config.model, WORDS)
    rows = lanes * replicas * config.data.window
    return 4 * sum(rows * (shape[1] + 1) if name in kept else math.prod(shape) for name, shape in shapes.items())


def sum_seconds(size: float, gpus: int, a: Assumptions) -> float:
    """A ring within each node, then one across the nodes."""
    nodes, within = math.ceil(gpus / a.gpus_per_node), min(gpus, a.gpus_per_node)
    ring = 2 * (within - 1) / within * size / a.node_bytes + 2 * (nodes - 1) / nodes * size / a.network_bytes
    return ring + 2 * math.log2(gpus) * a.latency


def compute_seconds(config: RunConfig, a: Assumptions) -> float:
    """A step's on one GPU: products forward and twice backward, and the loops over time."""
    shapes = weight_shapes(config.model, WORDS)
    matrices = sum(math.prod(shape) for name, shape in shapes.items() if len(shape) > 1 and name != "embedding")
    window = config.data.window
    return 6 * a.lanes * window * matrices / a.flops + 2 * config.model.layers * window * a.loop_seconds


def model_table(recipes: Sequence[str], a: Assumptions) -> Table:
    """The share of its time that each of so many GPUs computes in."""
    shown = Table(title="a model of many GPUs, untried: share of the time that is computation")
    for column in ("", "ms of computation", "8 GPUs", "64", "256"):
        shown.add_column(column, justify="left" if not column else "right")
    for recipe in recipes:
        config = configuration(recipe)
        took = compute_seconds(config, a)
        for name, factor in (("", 1.0), (", int16", 0.5)):
            sums = [sum_seconds(factor * gradient_bytes(config, a.lanes, gpus), gpus, a) for gpus in (8, 64, 256)]
            shares = [f"{took / (took + (1 - a.overlap) * each):.0%}" for each in sums]
            shown.add_row(recipe + name, f"{1000 * took:.1f}", *shares)
    return shown
