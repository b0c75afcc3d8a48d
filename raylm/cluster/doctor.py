"""Asks every node of a cluster for its facts, in a bounded time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.cloudpickle.cloudpickle import register_pickle_by_value
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylm.cluster import facts
from raylm.cluster.autoscaling import may_come
from raylm.cluster.capacity import plan
from raylm.cluster.checkup import NodeFacts, Row
from raylm.cluster.connection import gist
from raylm.cluster.nodes import Node, look
from raylm.config import ClusterConfig
from raylm.errors import UserError

_SECONDS_FOR_A_CLOCK = 5.0


@dataclass(frozen=True)
class Answers:
    """What the nodes said. silent: those that did not, and why."""

    nodes: tuple[NodeFacts, ...]
    silent: Mapping[str, str]


def examine(question: Mapping[str, Any], seconds: float) -> Answers:
    """The facts of every node of the cluster that this process is connected to, within about `seconds`."""
    register_pickle_by_value(facts)
    until = time.monotonic() + seconds
    nodes = look()
    places = {node.identity: _place(node, nodes) for node in nodes}
    actors = {node.identity: _examiner(node, places[node.identity]) for node in nodes}
    told, silent = _answers({node: actor.collect.remote(dict(question)) for node, actor in actors.items()}, until)
    found = []
    for node in nodes:
        if node.identity in told:
            gpus, (ahead, within) = int(node.total.get("GPU", 0)), _clock(actors[node.identity])
            here = told[node.identity]
            found.append(
                NodeFacts(places[node.identity], ray_gpus=gpus, clock_ahead=ahead, clock_within=within, **here)
            )
    return Answers(tuple(found), {places[identity]: why for identity, why in silent.items()})


def room_row(asked: ClusterConfig) -> Row:
    """Whether the workers that are asked for fit."""
    nodes = look()
    try:
        demand = plan(asked, [*(node.total for node in nodes if not node.draining), *may_come()])
    except UserError as problem:
        found, _, advice = str(problem).rpartition("; ")
        return Row("workers", "cluster", "wrong", found, advice)
    needs = ", ".join(f"{amount:g} {kind}" for kind, amount in demand.resources.items())
    return Row("workers", "cluster", "ok", f"{asked.workers} of {demand.replicas} replicas fit ({needs} each)")


def has_token() -> bool:
    """Whether Ray finds a token here, wherever it looks for one."""
    return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


def _examiner(node: Node, place: str) -> Any:
    here = NodeAffinitySchedulingStrategy(node.identity, soft=False)
    return ray.remote(facts.Examiner).options(num_cpus=0, scheduling_strategy=here, name=f"doctor on {place}").remote()


def _answers(asked: Mapping[str, Any], until: float) -> tuple[dict[str, Any], dict[str, str]]:
    """What came in time, by node; why what did not."""
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=max(0.0, until - time.monotonic()))
    told, silent = {}, {}
    for identity, reference in asked.items():
        try:
            if reference in ready:
                told[identity] = ray.get(reference)
            else:
                silent[identity] = "did not answer in time (--timeout)"
        except RayError as error:
            silent[identity] = gist(error)
    return told, silent


def _clock(actor: Any) -> tuple[float, float]:
    """Seconds that a node's clock is before ours, and how exactly that is known: half the way there and back."""
    sent, began = time.time(), time.monotonic()
    try:
        theirs = ray.get(actor.clock.remote(), timeout=_SECONDS_FOR_A_CLOCK)
    except (RayError, TimeoutError):
        return 0.0, float("inf")
    half = (time.monotonic() - began) / 2
    return theirs - (sent + half), half


def _place(node: Node, nodes: Sequence[Node]) -> str:
    """A node's address, with the beginning of its identity where several have it."""
    alone = sum(other.address == node.address for other in nodes) == 1
    return node.address if alone else f"{node.address} ({node.identity[:6]})"
