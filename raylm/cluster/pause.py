"""When a run's workers are asked to save and return, and when it gives up: pure decisions of the driver."""

from __future__ import annotations

import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from raylm.cluster.capacity import Demand, room
from raylm.cluster.nodes import Node

SECONDS_TO_GATHER = 30.0
"""Nodes that come one after another are waited for so long, so that not each of them costs a restart."""

SECONDS_TO_STAY = 2.0
"""Room that is gone at the next look is no reason to restart."""


@dataclass(frozen=True)
class Pause:
    """Why the workers are asked to save and return. number: the signal that the run then ends with, as it were; None
    where it goes on in another attempt."""

    why: str
    number: int | None = None


def leaving(nodes: Sequence[Node], hosts: Collection[str], here: str) -> Pause | None:
    """A pause where a node with workers is to go; an end where it is the driver's own.

    hosts: identities of the nodes that hold the workers. here: that of the driver's.
    """
    for node in nodes:
        if node.draining and node.identity == here:
            return Pause(f"node {node.address}, where the run was started, is drained", signal.SIGTERM)
    for node in nodes:
        if node.draining and node.identity in hosts:
            return Pause(f"node {node.address} is drained")
    return None


@dataclass(frozen=True)
class Growth:
    """Room for more workers than run. workers: how many would fit. since: when more fitted first, in seconds."""

    workers: int = 0
    since: float | None = None

    def seen(self, demand: Demand, workers: int, nodes: Sequence[Node], now: float) -> Growth:
        """After a look at the nodes, with so many workers running."""
        held = workers + room(demand, (node.free for node in nodes if not node.draining))
        held = min(held, demand.most)
        return Growth(held, (self.since or now) if held > workers else None)

    def pause(self, demand: Demand, now: float) -> Pause | None:
        """A pause where the room has stayed, and no more is to come or was waited for long enough."""
        if self.since is None:
            return None
        wait = SECONDS_TO_STAY if self.workers == demand.most else SECONDS_TO_GATHER
        return Pause(f"there is room for {self.workers} workers now") if now - self.since >= wait else None


@dataclass(frozen=True)
class Failures:
    """Failures in a row without progress, of which `allowed` are answered with a restart. saved: the step of the
    newest checkpoint at the last one."""

    allowed: int
    count: int = 0
    saved: int = -1

    def after(self, saved: int) -> Failures:
        """After one more failure, where the newest checkpoint is of step `saved`."""
        return replace(self, count=1 if saved > self.saved else self.count + 1, saved=max(saved, self.saved))

    @property
    def too_many(self) -> bool:
        return self.count > self.allowed

    def say(self) -> str:
        """What happened, as the beginning of a line."""
        if self.count == 1:
            return "a worker failed"
        return f"workers failed {self.count} times without a newer checkpoint (cluster.max_failures {self.allowed})"
