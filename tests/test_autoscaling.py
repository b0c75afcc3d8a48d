"""What the autoscaler may still bring, read from what `ray up` leaves on the head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raylm.cluster.autoscaling import lacking, may_come
from raylm.cluster.capacity import Demand, Resources, plan
from raylm.cluster.nodes import Node
from raylm.config import ClusterConfig

SPOT = {"CPU": 48, "GPU": 4, "accelerator_type:L4": 1}
CONFIG: dict[str, Any] = {
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 8}, "max_workers": 2},
        "gpu": {"resources": SPOT, "max_workers": 2},
    },
}


def write(folder: Path, content: str) -> Path:
    path = folder / "ray_bootstrap_config.yaml"
    path.write_text(content)
    return path


def test_as_many_machines_as_the_cluster_may_have_those_with_gpus_first(tmp_path: Path) -> None:
    assert may_come(write(tmp_path, json.dumps(CONFIG))) == [SPOT, SPOT, {"CPU": 8}]


def test_a_run_fits_on_a_cluster_whose_machines_are_still_to_be_bought(tmp_path: Path) -> None:
    head = {"CPU": 0.0}
    demand = plan(ClusterConfig(workers=2), [head, *may_come(write(tmp_path, json.dumps(CONFIG)))])
    assert (demand.most, demand.replicas, demand.resources) == (2, 4, {"CPU": 1.0, "GPU": 4})


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "\x00", json.dumps({**CONFIG, "available_node_types": {"gpu": {}}})]
)
def test_what_is_no_such_file_brings_nothing(tmp_path: Path, content: str) -> None:
    assert may_come(write(tmp_path, content)) == []
    assert may_come(tmp_path / "missing") == []


def node(gpus: int, head: bool = False) -> Node:
    return Node("", "10.0.0.1", {"CPU": 48, "GPU": gpus}, {}, draining=False, head=head)


@pytest.mark.parametrize(
    ("fewest", "most", "workers", "nodes", "lacked"),
    [
        (1, 4, 0, [node(0, head=True)], 3),  # no more than there are machines for
        (1, 2, 0, [node(0, head=True)], 2),
        (1, 4, 1, [node(0, head=True), node(4)], 2),
        (1, 4, 2, [node(4, head=True), node(4)], 2),  # what works on the head takes no machine's place
        (1, 4, 3, [node(4), node(4), node(4)], 0),
        (2, 2, 2, [node(4), node(4)], 0),
    ],
)
def test_a_run_lacks_what_machines_that_can_still_be_had_would_hold(
    fewest: int, most: int, workers: int, nodes: list[Node], lacked: int
) -> None:
    machines: list[Resources] = [SPOT] * 3
    assert lacking(Demand(fewest, most, 4, 1.0, 4), workers, machines, nodes) == lacked
    assert lacking(Demand(fewest, most, 4, 1.0, 4), workers, [], nodes) == 0
