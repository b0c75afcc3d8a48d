"""A run on cluster.yaml's machines that loses them one after the other: taken back by AWS, killed, cut off."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_image import TINY, Cluster
from cluster_machines import Machine, missing, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400), pytest.mark.skipif(bool(missing()), reason=missing())]

TESTS = Path(__file__).parent


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, workers=4)  # as many as are lost, and one
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.close()


def kill(machine: Machine) -> None:
    machine.pull_the_plug()


def cut(machine: Machine) -> None:
    machine.cut_off()


def take_back(machine: Machine) -> None:
    """AWS's notice, two minutes ahead: the watcher that cluster.yaml started finds it."""
    machine.run("ip", "addr", "add", "169.254.169.254/32", "dev", "lo")
    machine.start(sys.executable, str(TESTS / "metadata_service.py"), "120")


def test_training_goes_on_when_a_node_is_taken_back_another_killed_and_a_third_cut_off(cluster: Cluster) -> None:
    place = ("--corpus", str(cluster.text), "--cache-dir", str(cluster.folder / "cache"), "--name", "losses")
    endless = ("--steps", "1000000", "--checkpoint-every", "50", "--learning-rate", "0.001", "--workers", "1:2")
    submit = ("ray", "job", "submit", "--submission-id", "losses", "--")
    cluster.start(*submit, "python", "jobs/train_ptb.py", *TINY, *place, *endless)
    events = cluster.runs / "losses" / "events.jsonl"
    wait_until(lambda: len(read(events, "step")) > 50, 400, "the first steps")
    for lose in (take_back, kill, cut):
        wait_until(lambda: len(training(cluster)) == 2, 500, "two nodes train")
        began, before = time.monotonic(), len(read(events, "resume"))
        lost = training(cluster)[0]
        lose(lost)
        cluster.workers.remove(lost)
        wait_until(lambda was=before: went_on(events, was), 500, f"steps without {lost.name}")
        if lose is take_back:
            kill(lost)  # as AWS does in the end
        print(f"{lose.__name__}: {time.monotonic() - began:.0f} s from the loss to a step of the next attempt")
    assert lost_steps(events) <= 1  # of the node that AWS took back: the run was told in time
    assert cluster.user("ray", "job", "stop", "losses").returncode == 0
    summary = json.loads((cluster.runs / "losses" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["resumes"] >= 3


def training(cluster: Cluster) -> list[Machine]:
    """The machines on which a worker of the run is."""
    return [machine for machine in cluster.workers if "RayTrainWorker" in machine.run("ps", "axww").stdout]


def read(events: Path, *kinds: str) -> list[dict[str, Any]]:
    lines = events.read_text().splitlines() if events.exists() else []
    return [event for event in (json.loads(line) for line in lines if line.endswith("}")) if event["kind"] in kinds]


def went_on(events: Path, before: int) -> bool:
    """Whether the run has resumed more often than before, and stepped since."""
    kinds = [event["kind"] for event in read(events, "resume", "step")]
    return kinds.count("resume") > before and kinds[-1] == "step"


def lost_steps(events: Path) -> int:
    """The steps that were made again after the first loss."""
    kinds = read(events, "step", "resume")
    at = [event["kind"] for event in kinds].index("resume")
    return max(int(event["step"]) for event in kinds[:at]) - int(kinds[at]["step"])
