"""The machines that the autoscaler of `ray up` may still start, and the wish that makes it start them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.util.placement_group import placement_group, remove_placement_group

from raylm.cluster.capacity import Demand, Resources

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves, on the head, what its autoscaler goes by: jobs' drivers run there too."""


def may_come(path: Path = BOOTSTRAP) -> list[Resources]:
    """The resources of every worker machine that there can be, most GPUs first; none where no autoscaler is."""
    try:
        config = json.loads(path.expanduser().read_bytes())
        machines: list[Resources] = [
            {name: float(amount) for name, amount in kind["resources"].items()}
            for title, kind in config["available_node_types"].items()
            for _ in range(kind["max_workers"] if title != config["head_node_type"] else 0)
        ]
        return sorted(machines, key=lambda machine: -machine.get("GPU", 0))[: config["max_workers"]]
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return []


@contextmanager
def wish(demand: Demand) -> Iterator[None]:
    """Has the autoscaler start machines for all workers of a run, for as long as the block lasts or this process does.

    A reservation that cannot be had yet is the one demand that it forgets with the driver that made it.
    """
    group = placement_group([demand.resources] * demand.most)
    try:
        yield
    finally:
        remove_placement_group(group)
