"""What Ray says of the cluster's nodes now, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ray
from ray._private.state import state


@dataclass(frozen=True)
class Node:
    """A node that is alive: its resources, those of them that nothing uses, whether it is to go soon, and whether it is
    the head."""

    identity: str
    address: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    draining: bool
    head: bool = False


def look() -> list[Node]:
    """The nodes of the cluster that this process is connected to."""
    free = state.available_resources_per_node()
    draining = state.get_draining_nodes()
    return [
        Node(
            identity=node["NodeID"],
            address=node["NodeManagerAddress"],
            total=node["Resources"],
            free=free.get(node["NodeID"], {}),
            draining=node["NodeID"] in draining,
            head="node:__internal_head__" in node["Resources"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def this_node() -> str:
    """The identity of the node that this process is on."""
    return str(ray.get_runtime_context().get_node_id())
