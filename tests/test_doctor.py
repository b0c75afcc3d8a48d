"""`raylm doctor` names what is missing on which machine, and says what to do; a machine that is well passes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from raylm.cli.doctor import main
from raylm.cluster.checkup import LEAST_FREE, Asked, NodeFacts, Row, judge, token_row
from raylm.cluster.facts import collect, machine_gpus, storage_problem, tensorflow_gpus

HERE = {"Python": "3.11.9", "Ray": "2.60.0", "TensorFlow": "2.21.0", "raylm": "0.1.0"}
GPUS = ("NVIDIA L4, 23034", "NVIDIA L4, 23034")
ASKED = Asked("/shared/runs", "sample", cache="/cache", storage_mark="/shared/mark", cache_mark="/cache/mark")


def node(place: str = "10.0.0.2", **changes: Any) -> NodeFacts:
    """A node with two GPUs that nothing is wrong with, but for the changes."""
    well: dict[str, Any] = {
        "versions": HERE,
        "machine_gpus": GPUS,
        "tensorflow_gpus": 2,
        "ray_gpus": 2,
        "nccl": "2.25.1",
        "free_bytes": 90 << 30,
        "clock_ahead": 0.01,
        "clock_within": 0.002,
    }
    return NodeFacts(place, **well | changes)


def wrong(*nodes: NodeFacts, **silent: str) -> list[Row]:
    return [row for row in judge(ASKED, HERE, nodes, silent) if row.state == "wrong"]


def test_nothing_is_wrong_with_nodes_that_are_alike_and_have_all() -> None:
    rows = judge(ASKED, HERE, [node(), node("10.0.0.3")], {})
    assert {row.state for row in rows} == {"ok"}
    checks = ["Python", "Ray", "TensorFlow", "raylm", "GPUs", "NCCL", "storage", "disk", "clock", "dataset"]
    assert list(dict.fromkeys(row.check for row in rows)) == checks
    assert [row.found for row in rows if row.check == "Ray"] == ["2.60.0"]


@pytest.mark.parametrize(
    ("changes", "check", "found", "advice"),
    [
        ({"versions": HERE | {"TensorFlow": "2.20.0"}}, "TensorFlow", "2.20.0 on 10.0.0.2; 2.21.0 here", "pip install"),
        ({"versions": HERE | {"raylm": ""}}, "raylm", "missing on 10.0.0.2; 0.1.0 here", "pip install"),
        ({"tensorflow_gpus": 0}, "GPUs", "2 in the machine (NVIDIA L4), 2 for Ray, 0 for TensorFlow", "raylm[gpu]"),
        ({"machine_gpus": (), "tensorflow_gpus": 0}, "GPUs", "0 in the machine, 2 for Ray", "nvidia-smi"),
        (
            {"tensorflow_gpus": None, "tensorflow_problem": "no CUDA"},
            "GPUs",
            "TensorFlow: no CUDA",
            "import tensorflow",
        ),
        ({"nccl": ""}, "NCCL", "libnccl.so.2 is not found", "[gpu]"),
        ({"storage_problem": "Permission denied"}, "storage", "/shared/runs: Permission denied", "--storage-path"),
        ({"missing_marks": ["/shared/mark"]}, "storage", "another folder there", "s3://BUCKET"),
        ({"missing_marks": ["/cache/mark"]}, "dataset", "/cache, where it is prepared", "--cache-dir"),
        ({"dataset_problem": "no manifest"}, "dataset", "no manifest", "--corpus"),
        ({"free_bytes": LEAST_FREE - 1}, "disk", "1.0 GiB free", "make room"),
        ({"clock_ahead": -7.5}, "clock", "7.50 s behind", "set-ntp"),
    ],
)
def test_a_fault_of_one_node_is_named_with_the_node_and_the_next_step(
    changes: dict[str, Any], check: str, found: str, advice: str
) -> None:
    (row,) = wrong(node("10.0.0.3"), node(**changes))
    assert (row.check, row.where) == (check, "10.0.0.2")
    assert found in row.found
    assert advice.replace("raylm[gpu]", "[gpu]") in row.advice


def test_a_node_that_does_not_answer_is_a_row_of_its_own() -> None:
    (row,) = wrong(node(), **{"10.0.0.9": "did not answer in time"})
    assert (row.check, row.where, row.found) == ("answers", "10.0.0.9", "did not answer in time")


def test_a_clock_is_not_blamed_for_what_the_network_made_unsure() -> None:
    assert wrong(node(clock_ahead=8.0, clock_within=6.0)) == []


def test_gpus_that_ray_was_told_to_leave_alone_are_a_note() -> None:
    rows = judge(ASKED, HERE, [node(ray_gpus=1)], {})
    assert [row.check for row in rows if row.state == "note"] == ["GPUs"]


def test_a_machine_without_a_gpu_needs_no_nccl() -> None:
    assert wrong(node(machine_gpus=(), tensorflow_gpus=0, ray_gpus=0, nccl="")) == []


@pytest.mark.parametrize(
    ("mode", "found", "cluster", "state"),
    [
        ("token", True, True, "ok"),
        ("token", False, True, "wrong"),
        ("", True, True, "note"),
        ("", False, False, "ok"),
    ],
)
def test_a_token_that_is_asked_for_must_be_there(mode: str, found: bool, cluster: bool, state: str) -> None:
    assert token_row(mode, found, cluster).state == state


# What is found on a machine


@pytest.fixture
def tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a program in TensorFlow's place for other processes; the real one takes seconds to import."""

    def put(program: str) -> None:
        (tmp_path / "tensorflow.py").write_text(program)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    put("class config: list_physical_devices = staticmethod(lambda kind: [])\n__version__ = '2'")
    return put


def test_what_tensorflow_sees_is_asked_in_another_process_and_not_for_ever(tensorflow: Any) -> None:
    assert tensorflow_gpus(30) == (0, "")
    tensorflow("raise ImportError('libcudart is missing')")
    assert tensorflow_gpus(30) == (None, "ImportError: libcudart is missing")
    tensorflow("import time; time.sleep(60)")
    assert tensorflow_gpus(0.2) == (None, "its import took longer than 0.2 s")
    assert "tensorflow" not in sys.modules or hasattr(sys.modules["tensorflow"], "Tensor")


def test_the_drivers_gpus_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine_gpus() == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA L4, 23034'\necho 'NVIDIA L4, 23034'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert machine_gpus() == list(GPUS)


def test_storage_is_tried_where_it_will_be_and_nothing_stays(tmp_path: Path, bucket: str) -> None:
    assert storage_problem(str(tmp_path / "not" / "yet")) == ""
    (tmp_path / "file").write_text("")
    assert "NotADirectoryError" in storage_problem(str(tmp_path / "file" / "runs"))
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    assert storage_problem(bucket.format("raylm")) == ""
    missing = storage_problem(bucket.format("raylm").replace("bucket/", "absent/"))
    assert "the store cannot be used" in missing
    assert "hidden" not in missing


def test_a_file_that_other_machines_were_to_find_is_missed(tmp_path: Path, tensorflow: Any) -> None:
    (tmp_path / "mark").write_text("")
    marks = [str(tmp_path / "mark"), str(tmp_path / "gone")]
    question = {"storage": str(tmp_path), "marks": marks, "datasets": [str(tmp_path / "data")], "seconds": 30}
    found = NodeFacts("here", **collect(question))
    assert found.missing_marks == [str(tmp_path / "gone")]
    assert "manifest" in found.dataset_problem
    assert (found.tensorflow_gpus, found.storage_problem) == (0, "")
    assert found.versions["Ray"].startswith("2.")


def test_without_a_cluster_this_machine_is_looked_at_and_that_is_said(
    tmp_path: Path, tensorflow: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ["--corpus", "sample", "--storage-path", str(tmp_path / "runs")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "this machine alone was looked at" in said
    assert said.endswith("nothing is wrong\n")
    (tmp_path / "file").write_text("")
    assert main([*words[:3], str(tmp_path / "file" / "runs"), "--corpus", "nowhere.txt", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["address"], told["wrong"]) == (None, 2)
    assert {row["check"] for row in told["rows"] if row["state"] == "wrong"} == {"storage", "dataset"}
    assert list(tmp_path.glob(".raylm-doctor*")) == []
