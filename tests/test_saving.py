"""Checkpoints of the training loop: written behind its back, on slow, stuck and full disks, killed at any instant."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from saving_cases import attempt_on_a_disk_that_fills, attempt_on_a_disk_that_waits, attempt_on_a_slow_disk
from tiny_runs import events, make_texts, tiny
from training_cases import Attempt, attempt
from training_runner import Call, Killed, call

from raylm.checkpoint.store import CheckpointStore
from raylm.data.dataset import open_dataset
from raylm.guard.watchdog import STALLED
from raylm.observe.events import read_events
from raylm.observe.progress import resume_line
from raylm.observe.summary import read_summary


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_texts(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def waited(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Attempt]:
    """A run whose checkpoint of step 10 is only written when step 11 has been taken."""
    folder = tmp_path_factory.mktemp("waited")
    return folder, call(attempt_on_a_disk_that_waits, tiny(checkpoint={"every": 10, "keep_last": 2}), data, folder, 10)


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str | None:
    """The digest that the state has in the end."""
    return call(attempt, tiny(), data, tmp_path_factory.mktemp("plain")).summary.state_sha256


def test_training_goes_on_while_a_checkpoint_is_written(waited: tuple[Path, Attempt]) -> None:
    kinds = [(event["kind"], event["step"]) for event in read_events(waited[0])]
    saved = [step for kind, step in kinds if kind == "checkpoint"]
    assert saved == [0, 10, 12, 20, 24]
    assert kinds.index(("step", 11)) < kinds.index(("checkpoint", 10)) < kinds.index(("eval", 12))


def test_writing_behind_changes_nothing(waited: tuple[Path, Attempt], plain: str | None) -> None:
    summary = waited[1].summary
    assert summary is not None
    assert (summary.status, summary.state_sha256) == ("completed", plain)


def test_the_end_waits_for_the_last_checkpoint_and_comes_after_it(waited: tuple[Path, Attempt]) -> None:
    kinds = [(event["kind"], event["step"]) for event in read_events(waited[0])]
    assert kinds[-1] == ("end", 24)
    assert ("checkpoint", 24) in kinds
    assert (
        CheckpointStore(waited[0] / "checkpoints").verify_all()[-1].state_sha256 == read_summary(waited[0]).state_sha256
    )


def test_events_keep_their_order_whichever_thread_they_come_from(waited: tuple[Path, Attempt]) -> None:
    folder, told = waited
    heard = [event for event in told.published if event["kind"] not in ("wait", "note")]
    assert heard == read_events(folder)
    assert [event["time"] for event in heard] == sorted(event["time"] for event in heard)


def test_the_best_by_validation_outlives_the_last(waited: tuple[Path, Attempt]) -> None:
    assert [event["step"] for event in events(waited[0], "eval") if event["split"] == "valid"] == [12, 24]
    assert [info.step for info in CheckpointStore(waited[0] / "checkpoints").list()] == [12, 20, 24]


def test_a_resume_says_where_it_goes_on_and_what_changed(
    data: Path, waited: tuple[Path, Attempt], tmp_path: Path
) -> None:
    shutil.copytree(waited[0], tmp_path, dirs_exist_ok=True)
    longer = tiny(epochs=3, checkpoint={"every": 10, "keep_last": 3}, schedule={"warmup_steps": 4})
    told = call(attempt, longer, data, tmp_path)
    (event,) = (event for event in told.published if event["kind"] == "resume")
    targets = open_dataset(data / "train").tokens - 1
    assert (event["step"], event["position"], event["epoch"], event["tokens_left"]) == (24, 24, 2, targets)
    assert event["changes"] == {
        "epochs": [2, 3],
        "checkpoint.keep_last": [2, 3],
        "schedule.warmup_steps": [3, 4],
    }
    assert resume_line(event) == (
        f"resumed at step 24, epoch 2, window 24, about {targets} tokens left, "
        "changed: epochs 2 -> 3, schedule.warmup_steps 3 -> 4, checkpoint.keep_last 2 -> 3"
    )
    assert [info.step for info in CheckpointStore(tmp_path / "checkpoints").list()] == [24, 30, 36]


@pytest.mark.slow
def test_a_disk_that_never_answers_is_a_stall_and_one_that_does_in_the_end_is_none(data: Path, tmp_path: Path) -> None:
    config = tiny(guard={"step_timeout": 1.0})
    with pytest.raises(Killed) as ended:
        call(attempt_on_a_slow_disk, config, data, tmp_path / "stuck", 3600.0)
    assert ended.value.exitcode == STALLED
    assert events(tmp_path / "stuck", "checkpoint") == []
    told = call(attempt_on_a_slow_disk, tiny(guard={"step_timeout": 1.0}), data, tmp_path / "slow", 0.5)
    assert told.summary.status == "completed"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a full disk is a small tmpfs, and to mount one needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_of_and_checkpoints_come_again_when_there_is_room(
    data: Path, small_disk: Path, plain: str | None
) -> None:
    told = call(attempt_on_a_disk_that_fills, tiny(), data, small_disk, 7, 14)
    assert told.mistake is None
    assert told.summary.state_sha256 == plain
    heard = [event for event in told.published if event["kind"] == "checkpoint"]
    assert [(event["step"], "problem" in event) for event in heard] == [
        *((0, False), (7, False), (12, True), (14, True), (21, False), (24, False))
    ]
    assert "No space left on device; the older ones are untouched" in heard[2]["problem"]
    kept = CheckpointStore(small_disk / "checkpoints").verify_all()
    assert [(info.step, info.complete) for info in kept] == [(0, True), (7, True), (21, True), (24, True)]


ENDLESS: dict[str, Any] = {"epochs": 1000, "data": {"jitter": True}, "schedule": {"kind": "constant"}}


def _kill_again_and_again(data: Path, folder: Path, kills: int) -> int:
    """Kills a run at random instants, in its first steps mostly; the step of the newest checkpoint then."""
    config = tiny(**ENDLESS, checkpoint={"every": 3, "keep_last": 2})
    delays = random.Random(0)
    log = folder / "events.jsonl"
    for _ in range(kills):
        begun = log.stat().st_size if log.exists() else 0
        sign, times = (b'"kind":"start"', 1) if delays.random() < 0.2 else (b'"kind":"step"', delays.randrange(1, 9))
        run = Call(attempt, config, data, folder)
        deadline = time.monotonic() + 600
        while not (log.exists() and log.read_bytes()[begun:].count(sign) >= times):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(delays.uniform(0, 0.2))
        run.kill()
    return CheckpointStore(folder / "checkpoints").load_newest(pytest.fail)[1].step


def _killed_run_ends_as_an_unbroken_one(data: Path, folder: Path, kills: int) -> None:
    reached = _kill_again_and_again(data, folder / "killed", kills)
    assert reached > 0
    rest = tiny(**ENDLESS, steps=reached + 20)
    killed = call(attempt, rest, data, folder / "killed").summary
    whole = call(attempt, rest, data, folder / "whole").summary
    assert killed.state_sha256 == whole.state_sha256
    assert killed.tokens == whole.tokens
    assert killed.resumes >= kills - 1  # the first may come before there is a checkpoint
    print(f"{kills} kills, {reached} updates, {killed.state_sha256}")


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kills", [5, 200])
def test_kills_at_random_instants_change_nothing(data: Path, tmp_path: Path, kills: int) -> None:
    """With dropout, jittered windows and Adam; many land in a save, in its removals and in the start."""
    _killed_run_ends_as_an_unbroken_one(data, tmp_path, kills)
