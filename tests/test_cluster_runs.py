"""Whole runs on a real Ray cluster with token authentication: the user's own commands, processes killed for real.

One cluster serves all tests here. The model and the text are tiny; the time goes into starting processes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(420)]

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
TINY = (
    *("--data.lanes", "4", "--data.window", "5", "--model.hidden", "8", "--model.dropout", "0.3", "--steps", "40"),
    *(
        "--checkpoint-every",
        "10",
        "--report.log-every",
        "1",
        "--report.sample-every",
        "0",
        "--report.plain-seconds",
        "1",
    ),
)


class Cluster:
    """A head node in a session of its own, reached with a token; `run` is a user's shell on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{_free_port()}"
        self.dashboard = f"http://127.0.0.1:{_free_port()}"
        (folder / "home").mkdir()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "HOME": str(folder / "home"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "RAY_AUTH_MODE": "token",
            "RAY_ADDRESS": self.address,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        self.run("ray", "get-auth-token", "--generate", check=True)
        self._temporary = tempfile.TemporaryDirectory(prefix="ray", dir="/tmp")  # paths of sockets must be short
        host, port = self.address.split(":")
        dashboard_port = self.dashboard.rpartition(":")[2]
        self.head = self.start(
            *("ray", "start", "--head", "--block", "--num-cpus", "2", "--disable-usage-stats"),
            *("--node-ip-address", host, "--port", port, "--dashboard-port", dashboard_port),
            *("--dashboard-agent-listen-port", str(_free_port()), "--ray-client-server-port", str(_free_port())),
            *("--temp-dir", self._temporary.name),
            RAY_ADDRESS="",
        )
        self._wait_until_alive()

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """A command in the background, in a process group of its own."""
        merged = {name: value for name, value in (self.environment | environment).items() if value}
        log = (self.folder / f"{len(list(self.folder.glob('*.log')))}.log").open("w+")
        return subprocess.Popen(
            command, env=merged, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )  # type: ignore[return-value]

    def run(self, *command: str, check: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
        merged = {name: value for name, value in (self.environment | environment).items() if value}
        return subprocess.run(
            command,
            env=merged,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=check,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )

    def train(self, name: str, *options: str) -> tuple[str, ...]:
        """The command line of a tiny run."""
        place = ("--corpus", str(self.folder / "text"), "--storage-path", str(self.folder / "runs"), "--name", name)
        return (sys.executable, "jobs/train_ptb.py", *TINY, *place, *options)

    def resume(self, name: str, *options: str) -> tuple[str, ...]:
        return (str(BIN / "raylm"), "resume", "--from-checkpoint", str(self.folder / "runs" / name), *options)

    def summary(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.folder / "runs" / name / "summary.json").read_text()))

    def events(self, name: str, kind: str) -> list[dict[str, Any]]:
        lines = (self.folder / "runs" / name / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["kind"] == kind]

    def close(self) -> None:
        os.killpg(self.head.pid, signal.SIGTERM)
        self.head.wait(60)
        self._temporary.cleanup()

    def _wait_until_alive(self) -> None:
        for _ in range(60):
            if self.run("ray", "status").returncode == 0:
                return
            time.sleep(1)
        raise TimeoutError("the head did not start")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "text").mkdir()
    for split, lines in (("train", 400), ("valid", 20), ("test", 20)):
        text = "\n".join(f"the {i % 7} dogs saw {i % 3} cats and {i % 11} birds ran" for i in range(lines))
        (folder / "text" / f"{split}.txt").write_text(text + "\n")
    cluster = Cluster(folder)
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def unbroken(cluster: Cluster) -> dict[str, Any]:
    """The summary of a run on two workers that nothing happened to."""
    done = cluster.run(*cluster.train("unbroken", "--workers", "2"))
    assert done.returncode == 0, done.stdout + done.stderr
    return cluster.summary("unbroken")


def test_a_run_ends_with_a_table_and_a_whole_run_folder(cluster: Cluster, unbroken: dict[str, Any]) -> None:
    assert unbroken["status"] == "completed"
    assert unbroken["steps"] == 40
    run = cluster.folder / "runs" / "unbroken"
    assert {path.name for path in run.iterdir()} >= {
        *("config.json", "events.jsonl", "summary.json", "checkpoints", "tensorboard", "logs")
    }
    assert unbroken["test_perplexity"] < 28


def test_two_workers_compute_what_two_replicas_of_one_worker_compute(
    cluster: Cluster, unbroken: dict[str, Any]
) -> None:
    done = cluster.run(*cluster.train("replicas", "--replicas", "2"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert cluster.summary("replicas")["state_sha256"] == unbroken["state_sha256"]


def test_a_killed_worker_is_replaced_and_the_run_ends_as_if_nothing_had_happened(
    cluster: Cluster, unbroken: dict[str, Any]
) -> None:
    done = cluster.run(*cluster.train("killed-worker", "--workers", "2", "--drill", "kill-worker@25"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "was lost" in done.stdout
    assert "(raylet)" not in done.stdout + done.stderr
    summary = cluster.summary("killed-worker")
    assert (summary["resumes"], summary["steps"]) == (1, 40)
    assert summary["state_sha256"] == unbroken["state_sha256"]


def test_ctrl_c_saves_and_resume_goes_on_to_the_same_end(cluster: Cluster) -> None:
    options = ("--workers", "2", "--schedule.kind", "constant", "--schedule.warmup-steps", "0", "--steps")
    run = cluster.start(*cluster.train("interrupted", *options, "100000"))
    _wait_for(cluster, "interrupted", "step")
    run.send_signal(signal.SIGINT)
    assert run.wait(120) == 130
    assert cluster.summary("interrupted")["status"] == "interrupted"
    steps = str(cluster.summary("interrupted")["steps"] + 20)
    for command in (cluster.resume("interrupted", "--steps", steps), cluster.train("whole", *options, steps)):
        done = cluster.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    assert cluster.summary("interrupted")["state_sha256"] == cluster.summary("whole")["state_sha256"]


def test_a_killed_driver_loses_nothing_that_was_saved(cluster: Cluster, unbroken: dict[str, Any]) -> None:
    run = cluster.start(*cluster.train("killed-driver", "--workers", "2", "--drill", "kill-worker@25"))
    _wait_for(cluster, "killed-driver", "step")
    run.kill()
    run.wait(30)
    done = cluster.run(*cluster.resume("killed-driver"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert cluster.summary("killed-driver")["steps"] == 40
    assert cluster.summary("killed-driver")["state_sha256"] == unbroken["state_sha256"]


def test_a_nan_is_rolled_back_and_the_run_completes(cluster: Cluster) -> None:
    done = cluster.run(*cluster.train("nan", "--workers", "2", "--drill", "nan-loss@25"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert cluster.summary("nan")["rollbacks"] == 1
    assert cluster.events("nan", "incident")[0]["step"] == 25


def test_a_run_that_diverges_fails_once_with_its_verdict(cluster: Cluster) -> None:
    done = cluster.run(*cluster.train("diverged", "--drill", "nan-loss@5", "--guard.max-rollbacks", "0"))
    assert done.returncode == 1
    assert "max_rollbacks" in done.stderr
    assert len(cluster.events("diverged", "start")) == 1
    assert cluster.summary("diverged")["status"] == "failed"


def test_the_submitted_job_trains_and_its_exit_code_is_the_runs(cluster: Cluster) -> None:
    for _ in range(60):  # the dashboard and its agent come up some seconds after the head
        done = cluster.run(
            *("ray", "job", "submit", "--", "python", *cluster.train("submitted")[1:]), RAY_ADDRESS=cluster.dashboard
        )
        if not re.search("No available agent|Connection refused|Failed to connect", done.stdout + done.stderr):
            break
        time.sleep(1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"test +\d", done.stdout)
    assert cluster.summary("submitted")["status"] == "completed"
    failed = cluster.run(
        *("ray", "job", "submit", "--", "python", "jobs/train_ptb.py", "--stpes", "4"), RAY_ADDRESS=cluster.dashboard
    )
    assert failed.returncode != 0
    assert "did you mean --steps?" in failed.stdout


def test_more_workers_than_the_cluster_holds_are_refused_at_once(cluster: Cluster) -> None:
    done = cluster.run(*cluster.train("too-many", "--workers", "3"))
    assert done.returncode == 2
    assert "--workers 3 of 1 CPU each do not fit: the cluster has 2 CPUs on 1 node, room for 2" in done.stderr
    assert not (cluster.folder / "runs" / "too-many").exists()


def test_a_cluster_that_is_not_there_or_wants_a_token_is_named(cluster: Cluster) -> None:
    nobody = f"127.0.0.1:{_free_port()}"
    done = cluster.run(*cluster.train("nobody"), RAY_ADDRESS=nobody)
    assert (done.returncode, f"no Ray cluster answers at {nobody}" in done.stderr) == (2, True)
    done = cluster.run(*cluster.train("no-token"), RAY_AUTH_MODE="")
    assert (done.returncode, "RAY_AUTH_MODE=token" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


def _wait_for(cluster: Cluster, name: str, kind: str) -> None:
    path = cluster.folder / "runs" / name / "events.jsonl"
    for _ in range(1200):
        if path.exists() and cluster.events(name, kind):
            return
        time.sleep(0.1)
    raise TimeoutError(f"{name} had no {kind} event")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
