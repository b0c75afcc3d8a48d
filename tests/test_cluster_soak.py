"""Longer proofs on real clusters: a head that dies and comes back, a busy cluster, a run killed at random."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from ray_cluster import ENDLESS, TINY, Cluster

from raylm.data.upload import Destination, upload_dataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_lost_head_ends_the_run_with_one_line_and_resume_goes_on_once_it_is_back(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, cpus=1)
    try:
        run = cluster.start(*cluster.train("headless", *ENDLESS))
        cluster.wait_for("headless", "checkpoint", 3)
        cluster.kill_node(cluster.head)
        assert run.wait(120) == 1
        output = run.output.read_text()
        assert "raylm: the Ray cluster does not answer any more" in output
        assert f"raylm resume --from-checkpoint {cluster.folder / 'runs' / 'headless'}" in output
        assert "Traceback" not in output
        newest = cluster.events("headless", "checkpoint")[-1]["step"]
        cluster.start_head(cpus=1)
        done = cluster.run(*cluster.resume("headless", "--steps", str(newest + 20)))
        assert done.returncode == 0, done.stdout + done.stderr
        assert cluster.events("headless", "resume")[0]["step"] == newest
        assert cluster.summary("headless")["status"] == "completed"
    finally:
        cluster.close()


def test_a_run_waits_for_room_on_a_busy_cluster_however_often_ray_gives_up_and_counts_no_failure(
    tmp_path: Path,
) -> None:
    cluster = Cluster(tmp_path, cpus=1)
    try:
        first = cluster.start(*cluster.train("first", *ENDLESS))
        cluster.wait_for("first", "step")
        patience = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3"}
        second = cluster.start(*cluster.train("second", "--cluster.max-failures", "0"), **patience)
        busy = "waiting for room for 1 worker: 0 of 1 CPUs are free"
        cluster.wait(lambda: second.output.read_text().count(busy) > 1, "Ray did not give up")
        first.send_signal(signal.SIGINT)
        assert first.wait(120) == 130
        assert second.wait(240) == 0, second.output.read_text()
    finally:
        cluster.close()


def prepared(cluster: Cluster) -> dict[str, Path]:
    """The datasets that the first plan made of the text."""
    [folder] = (cluster.folder / "cache" / "raylm" / "datasets").iterdir()
    return {split: folder / split for split in ("train", "valid", "test")}


def test_a_plan_is_measured_by_a_short_trial_that_leaves_nothing_here_or_in_a_bucket(
    tmp_path: Path, bucket: str
) -> None:
    cluster = Cluster(tmp_path, cpus=2)
    try:
        words = cluster.train("planned")[2:]
        done = cluster.run("raylm", "plan", "--json", "--measure", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        told = json.loads(done.stdout)
        assert (told["measured"], told["workers"], told["steps"]) == (True, 1, 40)
        assert told["tokens_per_hour"] > 0
        assert not list((cluster.folder / "runs").glob("trial-*"))
        for split, dataset in prepared(cluster).items():
            upload_dataset(dataset, bucket.format(f"data/{split}"))
        stored = ("--corpus", bucket.format("data"), "--storage-path", bucket.format("runs"))
        done = cluster.run("raylm", "plan", "--json", "--measure", *TINY, *stored)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["measured"]
        assert not Destination(bucket.format("runs")).sizes()
        assert not list((cluster.folder / "cache" / "raylm" / "runs").iterdir())
    finally:
        cluster.close()
