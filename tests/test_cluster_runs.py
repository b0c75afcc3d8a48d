"""Whole runs on a real Ray cluster with token authentication: the user's own commands, processes killed for real.

One cluster serves all tests here. The model and the text are tiny; the time goes into starting processes.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from ray_cluster import ENDLESS, Cluster, free_port

from raylm.observe.dashboard import GAUGES

pytestmark = [pytest.mark.ray, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), cpus=2)
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
    run = cluster.start(*cluster.train("interrupted", "--workers", "2", *ENDLESS))
    cluster.wait_for("interrupted", "step")
    run.send_signal(signal.SIGINT)
    assert run.wait(120) == 130
    assert cluster.summary("interrupted")["status"] == "interrupted"
    steps = str(cluster.summary("interrupted")["steps"] + 20)
    for command in (
        cluster.resume("interrupted", "--steps", steps),
        cluster.train("whole", "--workers", "2", *ENDLESS, "--steps", steps),
    ):
        done = cluster.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    assert cluster.summary("interrupted")["state_sha256"] == cluster.summary("whole")["state_sha256"]


def test_a_killed_driver_loses_nothing_that_was_saved(cluster: Cluster, unbroken: dict[str, Any]) -> None:
    run = cluster.start(*cluster.train("killed-driver", "--workers", "2", "--drill", "kill-worker@25"))
    cluster.wait_for("killed-driver", "step")
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


def test_a_submitted_run_that_diverges_fails_once_with_its_verdict(cluster: Cluster) -> None:
    command = cluster.train("diverged", "--drill", "nan-loss@5", "--guard.max-rollbacks", "0")
    done = cluster.submit("--", "python", *command[1:])
    assert done.returncode == 1
    assert "max_rollbacks" in done.stdout
    assert "exit code 1" in done.stdout + done.stderr
    assert len(cluster.events("diverged", "start")) == 1
    assert cluster.summary("diverged")["status"] == "failed"


def test_the_submitted_job_trains_and_its_exit_code_is_the_runs(cluster: Cluster) -> None:
    done = cluster.submit("--", "python", *cluster.train("submitted")[1:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"test +\d", done.stdout)
    assert cluster.summary("submitted")["status"] == "completed"
    failed = cluster.submit("--", "python", "jobs/train_ptb.py", "--stpes", "4")
    assert failed.returncode != 0
    assert "did you mean --steps?" in failed.stdout


def exported(cluster: Cluster) -> str:
    """What the nodes of a cluster tell Prometheus."""
    code = (
        "import ray, urllib.request; ray.init(log_to_driver=False, logging_level='ERROR'); "
        "ask = lambda node: 'http://%s:%d/metrics' % (node['NodeManagerAddress'], node['MetricsExportPort']); "
        "print(*(urllib.request.urlopen(ask(node)).read().decode() for node in ray.nodes() if node['Alive']))"
    )
    return cluster.run(sys.executable, "-c", code).stdout


def test_a_stopped_job_saves_in_its_grace_period_and_says_how_to_go_on(cluster: Cluster) -> None:
    dashboard = {"RAY_ADDRESS": cluster.dashboard}
    calm = ("--learning-rate", "0.1")  # for as long as the gauges take to come
    command = ("python", *cluster.train("stopped-job", "--workers", "2", *ENDLESS, *calm)[1:])
    submitted = cluster.submit("--no-wait", "--submission-id", "job", "--", *command)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    cluster.wait_for("stopped-job", "step", 5)
    shown = re.compile(r"^ray_raylm_(\w+)\{.*run=\"stopped-job\".*\} \d", re.MULTILINE)
    wanted = {gauge.removeprefix("raylm_") for gauge in GAUGES}
    cluster.wait(lambda: wanted <= set(shown.findall(exported(cluster))), "the gauges are not exported", 60)
    cluster.run("ray", "job", "stop", "job", check=True, **dashboard)
    assert cluster.summary("stopped-job")["status"] == "interrupted"
    resume = f"go on with: raylm resume --from-checkpoint {cluster.folder / 'runs' / 'stopped-job'}"
    assert resume in cluster.run("ray", "job", "logs", "job", **dashboard).stdout
    steps = [event["step"] for event in cluster.events("stopped-job", "step")]
    assert cluster.events("stopped-job", "checkpoint")[-1]["step"] == steps[-1]


def test_more_workers_than_the_cluster_holds_are_refused_at_once(cluster: Cluster) -> None:
    done = cluster.run(*cluster.train("too-many", "--workers", "3"))
    assert done.returncode == 2
    assert "--workers 3 of 1 CPU each do not fit: the cluster has 2 CPUs on 1 node, room for 2" in done.stderr
    assert not (cluster.folder / "runs" / "too-many").exists()


def test_a_cluster_that_is_not_there_or_wants_a_token_is_named(cluster: Cluster) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    done = cluster.run(*cluster.train("nobody"), RAY_ADDRESS=nobody)
    assert (done.returncode, f"no Ray cluster answers at {nobody}" in done.stderr) == (2, True)
    done = cluster.run(*cluster.train("no-token"), RAY_AUTH_MODE="")
    assert (done.returncode, "RAY_AUTH_MODE=token" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


def test_the_doctor_sees_every_node_and_names_one_that_does_not_answer(cluster: Cluster) -> None:
    place = ("--corpus", "sample", "--storage-path", str(cluster.folder / "runs"))
    done = cluster.run("raylm", "doctor", "--json", *place)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["check"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["GPUs"]["found"] == "0 in the machine, 0 for Ray, 0 for TensorFlow"
    assert rows["token"]["found"] == "RAY_AUTH_MODE=token, with a token"
    assert rows["clock"]["state"] == rows["workers"]["state"] == "ok"
    node = cluster.add_node(1)  # the last test here: Ray counts a lost node's room for some time
    cluster.freeze(node)
    done = cluster.run("raylm", "doctor", "--workers", "4", "--timeout", "15", *place)
    cluster.kill_node(node)
    assert done.returncode == 1
    assert len(re.findall(r"^WRONG +answers +\S+ \(\w+\) +did not answer in time", done.stdout, re.MULTILINE)) == 1
    assert len(re.findall(r"^ok +storage", done.stdout, re.MULTILINE)) == 1
    assert re.search(r"WRONG +workers +cluster +--workers 4 .* do not fit", done.stdout)
    assert not list(cluster.folder.glob("**/.raylm-doctor*"))
