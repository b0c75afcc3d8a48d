"""What a cluster can hold, against what a run asks for: pure functions of what Ray says of its nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from raylm.config import ClusterConfig
from raylm.errors import UserError

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Demand:
    """A run's workers, `fewest` to `most` of them: what each needs on one node, and the replicas that it runs."""

    fewest: int
    most: int
    replicas: int
    cpus: float
    gpus: int

    @property
    def resources(self) -> dict[str, float]:
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    @property
    def elastic(self) -> bool:
        return self.fewest < self.most


def plan(asked: ClusterConfig, nodes: Sequence[Resources]) -> Demand:
    """The demand of a run on nodes of these total resources.

    Where there are GPUs, a worker takes as many as it has replicas, by default all of the smallest GPU node.

    Raises:
        UserError: the cluster cannot hold that many workers, even when nothing else runs on it.
    """
    gpus = [int(node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1]
    replicas = asked.replicas or (min(gpus) if gpus else 1)
    demand = Demand(asked.fewest_workers, asked.most_workers, replicas, asked.cpus_per_worker, replicas if gpus else 0)
    held = room(demand, nodes)
    if held < demand.fewest:
        total = {kind: sum(node.get(kind, 0) for node in nodes) for kind in demand.resources}
        raise UserError(
            f"--workers {asked.workers} of {_say(demand.resources)} each do not fit: the cluster has {_say(total)} on "
            f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}, room for {held}; ask for fewer workers, for less in "
            "each (--cluster.cpus-per-worker, --replicas), or add nodes"
        )
    return demand


def room(demand: Demand, nodes: Iterable[Resources]) -> int:
    """The number of such workers that fit on nodes of these resources; each lies on one node."""
    return sum(min(int(node.get(kind, 0) // amount) for kind, amount in demand.resources.items()) for node in nodes)


def placing(demand: Demand, count: int, free: Sequence[Resources]) -> str:
    """What the wait for workers is called, and what holds it up where the cluster is busy. free: on each node."""
    workers = f"{count} worker{'s' if count > 1 else ''}"
    found = {kind: sum(node.get(kind, 0) for node in free) for kind in demand.resources}
    short = [
        f"{found[kind]:g} of {count * amount:g} {kind}s are free"
        for kind, amount in demand.resources.items()
        if found[kind] < count * amount
    ]
    return f"waiting for room for {workers}: {', '.join(short)}" if short else f"starting {workers}"


def _say(resources: Resources) -> str:
    return ", ".join(f"{amount:g} {kind}{'s' if amount != 1 else ''}" for kind, amount in resources.items())
