"""What a cluster can hold is found out before anything starts, from what its nodes have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from raylm.cluster.capacity import Demand, plan
from raylm.config import ClusterConfig
from raylm.errors import UserError

LAPTOP = [{"CPU": 2.0, "memory": 8e9}]
HEAD_AND_TWO = [{"CPU": 0.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}]
UNEVEN = [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0, "GPU": 8.0}, {"CPU": 4.0}]


def planned(nodes: list[Mapping[str, float]], **asked: Any) -> Demand:
    return plan(ClusterConfig.model_validate(asked), nodes)


@pytest.mark.parametrize(
    ("nodes", "asked", "demand"),
    [
        (LAPTOP, {}, Demand(1, 1, 1, 1.0, 0)),
        (LAPTOP, {"workers": 2}, Demand(2, 2, 1, 1.0, 0)),
        (LAPTOP, {"replicas": 2}, Demand(1, 1, 2, 1.0, 0)),
        (LAPTOP, {"workers": 4, "cpus_per_worker": 0.5}, Demand(4, 4, 1, 0.5, 0)),
        (HEAD_AND_TWO, {}, Demand(1, 1, 4, 1.0, 4)),
        (HEAD_AND_TWO, {"workers": 2}, Demand(2, 2, 4, 1.0, 4)),
        (HEAD_AND_TWO, {"workers": 8, "replicas": 1}, Demand(8, 8, 1, 1.0, 1)),
        (UNEVEN, {"workers": 2}, Demand(2, 2, 1, 1.0, 1)),
        (UNEVEN, {"workers": 2, "replicas": 4}, Demand(2, 2, 4, 1.0, 4)),
        (LAPTOP, {"workers": "1:4"}, Demand(1, 4, 1, 1.0, 0)),
        (HEAD_AND_TWO, {"workers": "2:8"}, Demand(2, 8, 4, 1.0, 4)),
    ],
)
def test_a_worker_takes_the_gpus_of_its_replicas_by_default_all_of_the_smallest_gpu_node(
    nodes: list[Mapping[str, float]], asked: dict[str, Any], demand: Demand
) -> None:
    assert planned(nodes, **asked) == demand


@pytest.mark.parametrize(
    ("nodes", "asked", "said"),
    [
        (LAPTOP, {"workers": 3}, ["--workers 3 of 1 CPU each", "the cluster has 2 CPUs on 1 node", "room for 2"]),
        (LAPTOP, {"workers": "3:9"}, ["--workers 3:9 of 1 CPU each", "room for 2"]),
        (LAPTOP, {"cpus_per_worker": 2.5}, ["2.5 CPUs each", "room for 0", "--cluster.cpus-per-worker"]),
        (HEAD_AND_TWO, {"workers": 3}, ["1 CPU, 4 GPUs each", "32 CPUs, 8 GPUs on 3 nodes", "room for 2"]),
        (HEAD_AND_TWO, {"replicas": 5}, ["5 GPUs each", "room for 0", "--replicas"]),
        ([], {}, ["0 CPUs on 0 nodes", "room for 0"]),
    ],
)
def test_what_does_not_fit_is_refused_with_what_is_there_and_what_was_asked(
    nodes: list[Mapping[str, float]], asked: dict[str, Any], said: list[str]
) -> None:
    """A sum over nodes is not enough: a worker lies on one node."""
    with pytest.raises(UserError) as refusal:
        planned(nodes, **asked)
    assert "\n" not in str(refusal.value)
    for part in said:
        assert part in str(refusal.value)


def test_workers_ask_ray_for_gpus_only_where_there_are_some() -> None:
    assert planned(LAPTOP).resources == {"CPU": 1.0}
    assert planned(HEAD_AND_TWO).resources == {"CPU": 1.0, "GPU": 4}
