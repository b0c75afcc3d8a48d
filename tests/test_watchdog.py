"""The watchdog: what counts as progress, and what ends a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from guard_runs import config, run_all, start_all

from raylm.guard.watchdog import STALLED, FolderMarks, Watchdog
from raylm.observe.events import read_events


class Rank:
    """A watchdog of a rank, with a clock of its own and the reasons for which it expired."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.now, self.reasons = 0.0, []  # type: float, list[str]
        self.watchdog = Watchdog(FolderMarks(folder), rank, 10, self.reasons.append, lambda: self.now)

    def at(self, now: float) -> Rank:
        self.now = now
        self.watchdog.look()
        return self


def test_a_rank_that_makes_no_step_expires_after_the_timeout_and_says_why(tmp_path: Path) -> None:
    rank = Rank(tmp_path, 1)
    rank.at(9)
    rank.watchdog.beat()
    assert rank.at(19).reasons == []
    assert "rank 1 made no progress for 11 s (guard.step_timeout)" in rank.at(20).reasons[0]


def test_ranks_that_wait_for_a_busy_one_do_not_expire_until_it_is_done_or_stopped(tmp_path: Path) -> None:
    writer, waiting = Rank(tmp_path, 0), Rank(tmp_path, 1)
    with writer.watchdog.busy("saving"):
        for now in range(0, 60, 5):
            writer.at(now)
            waiting.at(now)
    assert writer.reasons == waiting.reasons == []
    for now in range(60, 75, 5):
        waiting.at(now)
    assert len(waiting.reasons) == 1


def test_a_rank_that_is_busy_without_end_expires(tmp_path: Path) -> None:
    rank = Rank(tmp_path, 0)
    with rank.watchdog.busy("saving"):
        for now in range(0, 100, 5):
            assert rank.at(now).reasons == []
        for now in range(100, 120, 5):
            rank.at(now)
        assert rank.reasons


def test_marks_of_an_attempt_before_are_no_progress(tmp_path: Path) -> None:
    (tmp_path / "busy-0").write_text("1 1")
    rank = Rank(tmp_path, 1)
    assert rank.at(0).reasons == rank.at(9).reasons == []
    assert rank.at(11).reasons


@pytest.mark.slow
def test_a_stopped_worker_ends_the_others_within_the_timeout_and_the_run_goes_on(tmp_path: Path) -> None:
    runs = {"stopped": config(drill=["stop-worker@6"], checkpoint={"every": 3}, guard={"step_timeout": 5})}
    calls = start_all(tmp_path, runs, workers=2)
    waiting, stopped = (each.process for each in calls)
    try:
        waiting.join(200)
        assert stopped.exitcode is None  # as a frozen machine is
        last = max(event["time"] for event in read_events(tmp_path / "stopped"))
        assert time.time() - last < 5 + 10
        assert waiting.exitcode == STALLED
        assert "guard.step_timeout" in (tmp_path / "stderr-0").read_text()
    finally:
        os.kill(stopped.pid, signal.SIGCONT)
        for each in calls:
            each.kill()
    run_all(tmp_path, runs, workers=2)
    (summary,) = (tmp_path / "stopped" / "summary.json",)
    assert '"completed"' in summary.read_text()


def test_the_process_ends_with_its_own_exit_code(tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib; from raylm.guard.watchdog import FolderMarks, Watchdog\n"
        "with Watchdog(FolderMarks(pathlib.Path(sys.argv[1])), 0, 0.2): time.sleep(30)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=25)
    assert done.returncode == STALLED
    assert "made no progress" in done.stderr
    assert "Thread" in done.stderr
