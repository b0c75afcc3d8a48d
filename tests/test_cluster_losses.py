"""A run on cluster.yaml's machines that loses them one after the other: killed, cut off, taken back by AWS."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_image import TINY, Cluster
from cluster_machines import Machine, missing, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400), pytest.mark.skipif(bool(missing()), reason=missing())]

TESTS = Path(__file__).parent


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, workers=3)
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


def test_training_goes_on_when_a_node_is_killed_another_cut_off_and_a_third_taken_back(cluster: Cluster) -> None:
    place = ("--corpus", str(cluster.text), "--cache-dir", str(cluster.folder / "cache"), "--name", "losses")
    endless = ("--steps", "1000000", "--checkpoint-every", "50", "--learning-rate", "0.1", "--workers", "1:2")
    submit = ("ray", "job", "submit", "--submission-id", "losses", "--")
    cluster.start(*submit, "python", "jobs/train_ptb.py", *TINY, *place, *endless)
    events = cluster.runs / "losses" / "events.jsonl"
    wait_until(lambda: steps(events) > 50, 400, "the first steps")
    for lose in (kill, cut, take_back):
        wait_until(lambda: len(training(cluster)) == 2, 500, "two nodes train")
        began = time.monotonic()
        reached = steps(events)
        lost = training(cluster)[0]
        lose(lost)
        cluster.workers.remove(lost)
        went_on(events, reached, lost)
        print(f"{lose.__name__}: {time.monotonic() - began:.0f} s from the loss to a step of the next attempt")
    assert cluster.user("ray", "job", "stop", "losses").returncode == 0
    summary = json.loads((cluster.runs / "losses" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["resumes"] >= 3


def training(cluster: Cluster) -> list[Machine]:
    """The machines on which a worker of the run is."""
    return [machine for machine in cluster.workers if "RayTrainWorker" in machine.run("ps", "axww").stdout]


def steps(events: Path) -> int:
    lines = events.read_text().splitlines() if events.exists() else []
    return max((json.loads(line)["step"] for line in lines[-200:] if line.endswith("}")), default=0)


def went_on(events: Path, reached: int, lost: Machine) -> None:
    def resumed() -> bool:
        kinds = [json.loads(line) for line in events.read_text().splitlines() if line.endswith("}")]
        last = max((at for at, event in enumerate(kinds) if event["kind"] == "resume"), default=None)
        return last is not None and any(event["kind"] == "step" and event["step"] > reached for event in kinds[last:])

    wait_until(resumed, 500, f"steps after {reached} without {lost.name}")
