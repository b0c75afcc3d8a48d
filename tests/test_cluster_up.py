"""cluster.yaml on machines of this one: `ray up`, jobs as users submit them, `ray down`.

One cluster serves all tests here: a head and two workers, all started by cluster.yaml's own commands over SSH.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from cluster_image import TINY, Cluster, Moto
from cluster_machines import ROOT, missing, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900), pytest.mark.skipif(bool(missing()), reason=missing())]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("lan"), workers=2)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.close()


def train(cluster: Cluster, name: str, *options: str) -> tuple[str, ...]:
    """What a user submits: a tiny run."""
    place = ("--corpus", str(cluster.text), "--cache-dir", str(cluster.folder / "cache"), "--name", name)
    return ("python", "jobs/train_ptb.py", *TINY, *place, *options)


def log_lines(submitted: subprocess.CompletedProcess[str]) -> list[str]:
    """What a job printed, without what `ray job submit` says around it."""
    printed = submitted.stdout.partition("Running entrypoint")[2].splitlines()[1:]
    return [line for line in printed if line.strip() and " cli.py:" not in line]


def read_summary(cluster: Cluster, name: str) -> dict[str, Any]:
    return dict(json.loads((cluster.runs / name / "summary.json").read_text()))


def test_every_node_has_the_project_and_the_token_and_nothing_that_git_ignores(cluster: Cluster) -> None:
    token = (cluster.laptop.home / ".ray" / "auth_token").read_text()
    for machine in (cluster.head, *cluster.workers[:2]):
        there = {path.name for path in (machine.home / "raylm").iterdir()}
        assert {"jobs", "raylm", "constraints.txt"} <= there
        assert not there & {".git", "runs", ".venv", ".mypy_cache", ".ruff_cache"}
        assert (machine.home / ".ray" / "auth_token").read_text() == token


def test_a_job_trains_on_the_workers_at_once_and_goes_on_from_its_checkpoint(cluster: Cluster) -> None:
    done = cluster.submit(*train(cluster, "first", "--workers", "2"))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = log_lines(done)
    assert not [line for line in lines if re.search(r"\x1b|\r|\(raylet|WARNING|Traceback", line)]
    assert any(re.match(r"test +\d", line) for line in lines)
    assert any(line.startswith("run folder: ") for line in lines[-2:])
    assert read_summary(cluster, "first")["status"] == "completed"
    placed = "".join(log.read_text(errors="replace") for log in (cluster.runs / "first" / "logs").glob("worker-*"))
    hosts = set(re.findall(r"10\.77\.0\.\d+", placed))
    assert hosts <= {worker.address for worker in cluster.workers}
    assert hosts

    again = cluster.submit("raylm", "resume", "--from-checkpoint", str(cluster.runs / "first"), "--steps", "60")
    assert again.returncode == 0, again.stdout + again.stderr
    assert (read_summary(cluster, "first")["steps"], read_summary(cluster, "first")["resumes"]) == (60, 1)


def test_a_run_kept_in_a_bucket_needs_nothing_else_that_machines_share(cluster: Cluster) -> None:
    moto = Moto(cluster.laptop)
    moto.ask("s3", "create_bucket", Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    kept = (
        "--storage-path",
        "s3://bucket/raylm",
        "--name",
        "kept",
        "--corpus",
        str(cluster.text),
        "--workers",
        "2",
    )
    done = cluster.submit("python", "jobs/train_ptb.py", *TINY, *kept)
    assert done.returncode == 0, done.stdout + done.stderr
    again = cluster.submit("raylm", "resume", "--from-checkpoint", "s3://bucket/raylm/kept", "--steps", "60")
    assert again.returncode == 0, again.stdout + again.stderr
    summary = json.loads(moto.ask("s3", "get_object", Bucket="bucket", Key="raylm/kept/summary.json")["Body"])
    assert (summary["status"], summary["steps"], summary["resumes"]) == ("completed", 60, 1)


def test_a_job_of_the_users_own_folder_runs_its_code_with_its_environment_and_without_its_ballast(
    cluster: Cluster,
) -> None:
    project = cluster.laptop.home / "project"
    shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(".git", "__pycache__", "runs", ".*_cache"))
    (project / "raylm" / "__init__.py").write_text('"""Changed."""\n__version__ = "0.1.0+mine"\n')
    for ballast in (".git/config", "runs/old/model", ".venv/pyvenv.cfg"):
        (project / ballast).parent.mkdir(parents=True, exist_ok=True)
        (project / ballast).write_text("must not travel")
    elsewhere = cluster.folder / "elsewhere"
    wanted = json.dumps({"env_vars": {"RAYLM_STORAGE_PATH": str(elsewhere)}})
    submit = ("ray", "job", "submit", "--working-dir", "project", "--runtime-env-json", wanted, "--")
    done = cluster.user(*submit, *train(cluster, "mine"), folder="~")
    assert done.returncode == 0, done.stdout + done.stderr
    versions = json.loads((elsewhere / "mine" / "config.json").read_text())["versions"]
    assert versions["raylm"] == "0.1.0+mine"
    listed = cluster.user(*submit, "find", ".", "-maxdepth", "1", folder="~")
    there = set(re.findall(r"^\./(.+)$", listed.stdout, re.MULTILINE))
    assert {"raylm", "jobs"} <= there
    assert not there & {".git", "runs", ".venv"}


def test_the_exit_code_of_a_job_is_that_of_its_run(cluster: Cluster) -> None:
    failed = cluster.submit("python", "jobs/train_ptb.py", "--stpes", "4")
    assert failed.returncode != 0
    assert "did you mean --steps?" in failed.stdout
    assert "exit code 2" in failed.stdout + failed.stderr


def test_ctrl_c_at_the_submitter_leaves_the_job_and_job_stop_ends_it_with_a_checkpoint(cluster: Cluster) -> None:
    long = train(cluster, "long", "--steps", "100000", "--checkpoint-every", "100000", "--schedule.kind", "constant")
    submitter = cluster.start("ray", "job", "submit", "--submission-id", "long", "--", *long)
    events = cluster.runs / "long" / "events.jsonl"
    wait_until(lambda: events.exists() and '"step"' in events.read_text(), 240, "the run's first step")
    cluster.laptop.interrupt(submitter)
    assert submitter.wait(120) != 0
    size = events.stat().st_size
    wait_until(lambda: events.stat().st_size > size, 120, "more steps without the submitter")
    assert "RUNNING" in cluster.user("ray", "job", "status", "long").stdout

    stopped = cluster.user("ray", "job", "stop", "long")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    summary = read_summary(cluster, "long")
    assert summary["status"] == "interrupted"
    assert (cluster.runs / "long" / "checkpoints" / f"step-{summary['steps']:08}" / "MANIFEST.json").exists()
    logs = cluster.user("ray", "job", "logs", "long").stdout
    assert "saved" in logs
    assert "raylm resume --from-checkpoint" in logs.splitlines()[-1]


def test_without_the_token_nobody_gets_in_and_the_dashboard_answers_the_head_alone(cluster: Cluster) -> None:
    refused = cluster.user("ray", "job", "list", RAY_AUTH_MODE="")
    assert refused.returncode != 0
    assert "token" in refused.stdout + refused.stderr
    reached = cluster.laptop.run("curl", "-s", "-m", "3", f"{cluster.head.address}:8265/api/version")
    assert reached.returncode == 7  # nobody listens there


def test_ray_down_ends_ray_on_the_head(cluster: Cluster) -> None:
    down = cluster.user("ray", "down", "-y", str(cluster.config))
    assert down.returncode == 0, down.stdout + down.stderr
    assert "raylet" not in cluster.head.run("ps", "ax").stdout  # of a cloud the other machines are given back
