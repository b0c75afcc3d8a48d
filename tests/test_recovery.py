"""The oracle: a fault and its recovery end in the state of a clean run with the same windows left out.

The real loop on a tiny model, in processes of its own; each topology's runs share them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guard_runs import config, run_all

from raylm.checkpoint.store import CheckpointStore
from raylm.guard.drills import SITES, VALUES
from raylm.observe.events import read_events

STRUCK = 6  # between two snapshots of config()
Summaries = Mapping[str, Mapping[str, Any]]


def drilled(*drills: str, **changes: Any) -> dict[str, Any]:
    return config(drill=list(drills), checkpoint={"every": 3}, **changes)


CLEAN = {"clean": config(), "left out": config(guard={"leave_out": [f"{STRUCK}:{STRUCK + 1}"]})}


def every_kind(sites: Mapping[str, str] | list[str]) -> dict[str, dict[str, Any]]:
    """A run for each site and value, struck once and each time."""
    kinds = [f"{value}-{site}@{STRUCK}" for site in sites for value in VALUES]
    kinds += [f"bad-id@{STRUCK}", f"no-target@{STRUCK}"]
    return {f"{kind}{sticky}": drilled(f"{kind}{sticky}") for kind in kinds for sticky in ("", ":sticky")}


def assert_oracle(folder: Path, summaries: Summaries) -> None:
    """Every drilled run ended as the clean one, or as the one told to leave the window out."""
    clean, left_out = summaries["clean"], summaries["left out"]
    assert clean["rollbacks"] == left_out["rollbacks"] == 0
    assert clean["state_sha256"] != left_out["state_sha256"]
    for name, summary in summaries.items():
        if "@" not in name:
            continue
        expected, rollbacks = (left_out, 2) if "sticky" in name else (clean, 1)
        assert summary["status"] == "completed", (name, summary)
        assert summary["state_sha256"] == expected["state_sha256"], name
        assert summary["rollbacks"] == rollbacks, name
        incidents = [event for event in read_events(folder / name) if event["kind"] == "incident"]
        on_time = {STRUCK, STRUCK + 1} if "slot" in name or "weight" in name else {STRUCK}
        assert all(event["position"] in on_time for event in incidents[1:]), (name, incidents)
        assert all(STRUCK <= event["position"] <= STRUCK + 1 for event in incidents), (name, incidents)
        assert_finite_checkpoints(folder / name)


def assert_finite_checkpoints(run: Path) -> None:
    store = CheckpointStore(run / "checkpoints")
    assert store.candidates()
    for path in store.candidates():
        snapshot = store.load(path)
        for arrays in (snapshot.weights, snapshot.slots, snapshot.carry):
            assert all(np.isfinite(array).all() for array in arrays.values())


ALWAYS = [f"nan-loss@{window}:sticky" for window in range(STRUCK, 90)]


@pytest.fixture(scope="module")
def one_replica(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summaries]:
    """Runs on one replica; `every step fails` was killed in its fifth rollback and went on."""
    folder = tmp_path_factory.mktemp("one-replica")
    every_step = {"every step fails": drilled(*ALWAYS, steps=60)}
    run_all(folder, every_step, kill_at_rollback=5)
    faults = ["nan-loss@6", "neginf-recurrent-gradient@6:sticky", "nan-weight@6", "nan-slot@6:sticky", "nan-carry@6"]
    nearby = {
        "some fail": drilled(*ALWAYS[:3], steps=30, guard={"recovery": 20}),
        "told": config(steps=30, guard={"recovery": 20, "leave_out": ["6:9"], "slow_down": ["0:0.5"]}),
    }
    return folder, run_all(folder, {**CLEAN, **{fault: drilled(fault) for fault in faults}, **nearby, **every_step})


def test_recovery_on_one_replica_ends_in_the_state_of_a_clean_run(one_replica: tuple[Path, Summaries]) -> None:
    assert_oracle(*one_replica)


def test_faults_that_go_on_end_in_the_state_of_a_clean_run_told_of_them(one_replica: tuple[Path, Summaries]) -> None:
    folder, summaries = one_replica
    rollbacks = [event for event in read_events(folder / "some fail") if event["kind"] == "rollback"]
    assert [event["skip"] for event in rollbacks] == [None, [6, 7], None, [7, 9]]
    assert rollbacks[-1]["to_step"] == 0
    assert summaries["some fail"]["state_sha256"] == summaries["told"]["state_sha256"]


def test_a_run_whose_every_step_fails_ends_within_its_budget_even_killed_in_a_rollback(
    one_replica: tuple[Path, Summaries],
) -> None:
    folder, summaries = one_replica
    summary = summaries["every step fails"]
    assert (summary["status"], summary["rollbacks"], summary["resumes"]) == ("failed", 8, 1)
    assert "guard.max_rollbacks_per_incident" in summary["reason"]
    assert_finite_checkpoints(folder / "every step fails")


@pytest.mark.slow
def test_recovery_of_two_replicas_where_one_alone_is_struck_ends_in_the_state_of_a_clean_run(tmp_path: Path) -> None:
    faults = ["nan-hidden@6:replica=1", "nan-loss@6:sticky,replica=1", "inf-weight@6:replica=1"]
    summaries = run_all(tmp_path, {**CLEAN, **{fault: drilled(fault) for fault in faults}}, replicas=2)
    assert_oracle(tmp_path, summaries)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("workers", "replicas"), [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4)])
def test_recovery_from_every_fault_on_every_topology(tmp_path: Path, workers: int, replicas: int) -> None:
    runs = {**CLEAN, **every_kind(SITES)}
    summaries = run_all(tmp_path, runs, replicas=replicas, workers=workers, seconds=2900)
    assert_oracle(tmp_path, summaries)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("workers", "replicas"), [(1, 2), (1, 4), (2, 1), (2, 2)])
def test_recovery_from_faults_of_one_replica_on_every_topology(tmp_path: Path, workers: int, replicas: int) -> None:
    last = workers * replicas - 1
    faults = [f"{value}-{site}@6:sticky,replica={last}" for site in SITES if site != "carry" for value in VALUES]
    summaries = run_all(
        tmp_path, {**CLEAN, **{fault: drilled(fault) for fault in faults}}, replicas, workers, seconds=2900
    )
    assert_oracle(tmp_path, summaries)


@pytest.mark.slow
def test_a_kill_between_two_rollbacks_changes_nothing(tmp_path: Path) -> None:
    for kill_at in (1, 2):
        once = {f"sticky{kill_at}@": drilled("nan-loss@6:sticky")}
        run_all(tmp_path, once, kill_at_rollback=kill_at)
        summaries = run_all(tmp_path, {**once, **CLEAN})
        assert_oracle(tmp_path, summaries)
        for name in CLEAN:
            (tmp_path / name).rename(tmp_path / f"{name} {kill_at}")
