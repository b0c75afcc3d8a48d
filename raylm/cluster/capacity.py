"""What a cluster can hold, against what a run asks for: pure functions of what Ray says of its nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raylm.config import ClusterConfig
from raylm.errors import UserError


@dataclass(frozen=True)
class Demand:
    """What each of `workers` workers needs on one node, and the replicas that it runs."""

    workers: int
    replicas: int
    cpus: float
    gpus: int

    @property
    def resources(self) -> dict[str, float]:
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def plan(asked: ClusterConfig, nodes: Sequence[Mapping[str, float]]) -> Demand:
    """The demand of a run on nodes of these total resources.

    Where there are GPUs, a worker takes as many as it has replicas, by default all of the smallest GPU node.

    Raises:
        UserError: the cluster cannot hold that many workers, even when nothing else runs on it.
    """
    gpus = [int(node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1]
    replicas = asked.replicas or (min(gpus) if gpus else 1)
    demand = Demand(asked.workers, replicas, asked.cpus_per_worker, replicas if gpus else 0)
    room = sum(_fit(node, demand) for node in nodes)
    if room < asked.workers:
        total = {kind: sum(node.get(kind, 0) for node in nodes) for kind in demand.resources}
        raise UserError(
            f"--workers {asked.workers} of {_say(demand.resources)} each do not fit: the cluster has {_say(total)} on "
            f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}, room for {room}; ask for fewer workers, for less in "
            "each (--cluster.cpus-per-worker, --replicas), or add nodes"
        )
    return demand


def _fit(node: Mapping[str, float], demand: Demand) -> int:
    return min(int(node.get(kind, 0) // amount) for kind, amount in demand.resources.items())


def _say(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {kind}{'s' if amount != 1 else ''}" for kind, amount in resources.items())
