"""The machines that the autoscaler of `ray up` may still start, and the wish that makes it start them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from raylm.cluster.capacity import Demand, Resources, room
from raylm.cluster.nodes import Node

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


def lacking(demand: Demand, workers: int, machines: Sequence[Resources], nodes: Sequence[Node]) -> int:
    """Of the workers that a run lacks, as many as machines that can still be had would hold: the autoscaler takes a
    wish whole or not at all.

    workers: that there is room for already. machines: as `may_come`. nodes: those that are there to stay.
    """
    there = room(demand, (node.total for node in nodes if not node.head))
    return max(0, min(demand.most - workers, room(demand, machines) - there))


class Wish:
    """What a run asks the autoscaler for: a reservation, the one demand that is forgotten with the driver that made it.

    One that can be had would keep the run itself out, so it is let go of.
    """

    def __init__(self, demand: Demand) -> None:
        self._demand = demand
        self._group: PlacementGroup | None = None

    def be(self, workers: int) -> None:
        """Asks for room for so many workers, where nothing is asked for yet."""
        if self._group is None and workers > 0:
            self._group = placement_group([self._demand.resources] * workers)
        elif self._group is not None and placement_group_table(self._group).get("state") == "CREATED":
            self.end()

    def end(self) -> None:
        """Asks for nothing any more."""
        if self._group is not None:
            remove_placement_group(self._group)
        self._group = None
