"""When the driver asks the workers to save and return, and when it gives up: decided from values alone."""

from __future__ import annotations

import signal

from raylm.cluster.attempt import run_name
from raylm.cluster.capacity import Demand, room
from raylm.cluster.nodes import Node
from raylm.cluster.pause import SECONDS_TO_GATHER, SECONDS_TO_STAY, Failures, Growth, leaving

DEMAND = Demand(1, 4, 1, 1.0, 0)


def node(name: str, free: float = 0, draining: bool = False) -> Node:
    return Node(name, f"10.0.0.{name}", {"CPU": 1}, {"CPU": free}, draining)


def test_failures_are_counted_since_the_newest_checkpoint() -> None:
    failures = Failures(allowed=2)
    for saved in (0, 10, 20, 30, 40, 50):
        failures = failures.after(saved)
        assert (failures.count, failures.too_many) == (1, False)
    for count in (2, 3):
        failures = failures.after(50)
        assert failures.count == count
    assert failures.too_many
    assert failures.say() == "workers failed 3 times without a newer checkpoint (cluster.max_failures 2)"


def test_a_run_that_allows_no_failure_ends_with_the_first() -> None:
    failures = Failures(allowed=0).after(100)
    assert failures.too_many
    assert failures.say() == "a worker failed"


def test_only_the_drain_of_a_node_with_workers_or_with_the_driver_stops_the_workers() -> None:
    nodes = [node("1"), node("2", draining=True), node("3")]
    assert leaving(nodes, hosts={"1", "3"}, here="1") is None
    elsewhere = leaving(nodes, hosts={"2", "3"}, here="1")
    assert elsewhere is not None
    assert (elsewhere.why, elsewhere.number) == ("node 10.0.0.2 is drained", None)
    own = leaving(nodes, hosts={"1"}, here="2")
    assert own is not None
    assert own.number == signal.SIGTERM


def test_room_for_all_is_taken_once_it_stays_and_room_for_some_once_no_more_comes() -> None:
    some, all_of_it = [node("1"), node("2", free=1)], [node("1"), node("2", free=1), node("3", free=5)]
    growth = Growth().seen(DEMAND, 1, some, now=100)
    assert growth.workers == 2
    assert growth.pause(DEMAND, 100 + SECONDS_TO_STAY) is None
    assert growth.pause(DEMAND, 100 + SECONDS_TO_GATHER) is not None
    growth = growth.seen(DEMAND, 1, all_of_it, now=101)
    assert growth.workers == DEMAND.most
    assert growth.pause(DEMAND, 100 + SECONDS_TO_STAY) is not None


def test_room_that_is_gone_again_or_about_to_go_is_no_reason_to_restart() -> None:
    growth = Growth().seen(DEMAND, 1, [node("1"), node("2", free=3)], now=100)
    growth = growth.seen(DEMAND, 1, [node("1"), node("2")], now=101)
    assert growth.pause(DEMAND, 1000) is None
    growth = Growth().seen(DEMAND, 1, [node("1"), node("2", free=3, draining=True)], now=100)
    assert growth.pause(DEMAND, 1000) is None
    assert Growth().seen(DEMAND, 4, [node("1", free=8)], now=100).pause(DEMAND, 1000) is None


def test_room_is_counted_node_by_node() -> None:
    assert room(Demand(1, 9, 1, 2.0, 0), [{"CPU": 3}, {"CPU": 5}, {"CPU": 1}, {}]) == 3


def test_each_attempt_has_a_name_of_its_own_in_rays_records() -> None:
    assert len({run_name() for _ in range(100)}) == 100
