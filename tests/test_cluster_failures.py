"""Runs on a real cluster of several nodes, of which some die, are drained or come: training goes on by itself.

One cluster serves all tests here: a head without cores, so that a node's death never takes the driver along.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_cluster import ENDLESS, Cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), cpus=0)
    try:
        cluster.add_node(1)
        cluster.add_node(1)
        yield cluster
    finally:
        cluster.close()


def write_may_come(cluster: Cluster, machines: int) -> Path:
    """What `ray up` leaves on the head, for an autoscaler that may start so many machines."""
    kinds = {"head": {"resources": {}, "max_workers": 0}, "cpu": {"resources": {"CPU": 1}, "max_workers": machines}}
    path = cluster.folder / "home" / "ray_bootstrap_config.yaml"
    path.write_text(json.dumps({"max_workers": machines, "head_node_type": "head", "available_node_types": kinds}))
    return path


def wishes(cluster: Cluster) -> list[int]:
    """The reservations that cannot be had yet, which are what an autoscaler goes by: the workers in each."""
    code = (
        "import json, ray, ray.util; ray.init(log_to_driver=False, logging_level='ERROR'); "
        "print(json.dumps([len(group['bundles']) for group in ray.util.placement_group_table().values() "
        "if group['state'] == 'PENDING']))"
    )
    return list(json.loads(cluster.run(sys.executable, "-c", code, check=True).stdout.splitlines()[-1]))


def test_an_elastic_run_shrinks_when_a_node_dies_asks_for_another_grows_when_it_comes_and_ends_on_sigterm(
    cluster: Cluster,
) -> None:
    machines = write_may_come(cluster, 2)
    run = cluster.start(*cluster.train("elastic", "--workers", "1:2", *ENDLESS))
    cluster.wait_for("elastic", "checkpoint", 3)
    assert cluster.events("elastic", "start")[0]["workers"] == 2
    saved = cluster.events("elastic", "checkpoint")[-1]["step"]
    cluster.kill_node(cluster.node_with(cluster.worker("elastic", 1)))
    shrunk = cluster.wait_for("elastic", "resize")
    assert (shrunk["workers_before"], shrunk["workers"]) == (2, 1)
    assert shrunk["step"] >= saved
    cluster.wait_for("elastic", "checkpoint", len(cluster.events("elastic", "checkpoint")) + 1)
    cluster.wait(lambda: wishes(cluster) == [1], "no other machine is asked for", 60)
    cluster.add_node(1)
    grown = cluster.wait_for("elastic", "resize", 2)
    assert (grown["workers_before"], grown["workers"]) == (1, 2)
    assert wishes(cluster) == []
    machines.unlink()
    stopped = cluster.events("elastic", "end")[-1]
    assert (stopped["status"], stopped["step"]) == ("interrupted", grown["step"])  # nothing was computed again
    cluster.wait_for("elastic", "checkpoint", len(cluster.events("elastic", "checkpoint")) + 1)
    run.send_signal(signal.SIGTERM)
    assert run.wait(120) == 128 + signal.SIGTERM
    output = run.output.read_text()
    assert f"go on with: raylm resume --from-checkpoint {folder(cluster, 'elastic')}" in output
    assert "there is room for 2 workers now" in output
    assert cluster.summary("elastic")["status"] == "interrupted"
    assert "Traceback" not in output


def test_a_drained_node_is_left_without_a_lost_step_and_where_no_other_is_the_run_ends_saved(
    cluster: Cluster,
) -> None:
    spare = cluster.add_node(1)
    run = cluster.start(*cluster.train("drained", "--workers", "2", *ENDLESS, "--cluster.wait-for-room", "1"))
    cluster.wait_for("drained", "step", 5)
    cluster.drain(cluster.node_with(cluster.worker("drained", 1)))
    resumed = cluster.wait_for("drained", "resume")
    stopped = cluster.events("drained", "end")[-1]
    assert (stopped["status"], stopped["step"]) == ("interrupted", resumed["step"])
    cluster.wait_for("drained", "step", len(cluster.events("drained", "step")) + 5)
    cluster.drain(cluster.node_with(cluster.worker("drained", 1)))
    assert run.wait(120) == 128 + signal.SIGTERM
    output = run.output.read_text()
    assert "nodes are gone: room for 1 of 2 workers" in output
    assert f"go on with: raylm resume --from-checkpoint {folder(cluster, 'drained')}" in output
    assert cluster.summary("drained")["status"] == "interrupted"
    assert spare.poll() is None


def folder(cluster: Cluster, name: str) -> Path:
    return cluster.folder / "runs" / name


def test_a_crash_loop_ends_after_max_failures_without_progress_with_one_line(cluster: Cluster) -> None:
    """The failure before the first checkpoint and those after it are counted apart."""
    rare = ("--checkpoint-every", "100000", "--cluster.max-failures", "1")
    run = cluster.start(*cluster.train("crashing", *ENDLESS, *rare))
    for attempt in (1, 2):
        cluster.wait_for("crashing", "start", attempt)
        cluster.kill_worker("crashing", 0)
    assert run.wait(120) == 1
    output = run.output.read_text()
    assert "raylm: workers failed 2 times without a newer checkpoint (cluster.max_failures 1): " in output
    assert (
        f"go on from the newest checkpoint with: raylm resume --from-checkpoint {folder(cluster, 'crashing')}" in output
    )
    assert "Traceback" not in output
    assert cluster.summary("crashing")["status"] == "failed"


def test_a_run_that_is_stopped_while_its_workers_start_again_ends_at_its_newest_checkpoint(cluster: Cluster) -> None:
    run = cluster.start(*cluster.train("restarting", *ENDLESS))
    cluster.wait_for("restarting", "checkpoint", 2)
    cluster.kill_worker("restarting", 0)
    cluster.wait(lambda: "worker 0 was lost" in run.output.read_text(), "the loss was not said")
    newest = cluster.events("restarting", "checkpoint")[-1]["step"]
    run.send_signal(signal.SIGTERM)
    assert run.wait(120) == 128 + signal.SIGTERM
    assert f"go on with: raylm resume --from-checkpoint {folder(cluster, 'restarting')}" in run.output.read_text()
    summary = cluster.summary("restarting")
    assert (summary["status"], summary["steps"]) == ("interrupted", newest)
