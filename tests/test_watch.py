"""`raylm watch`: following a log that another process writes, tears, cuts off and replaces."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raylm.cli import main as command_line
from raylm.cli.watch import watch
from raylm.data.upload import Destination
from raylm.errors import UserError
from raylm.guard.watchdog import FolderMarks
from raylm.observe.events import EventLog
from raylm.observe.follow import Follower
from raylm.observe.plain import PlainView


def _line(step: int, kind: str = "step", **fields: Any) -> str:
    return json.dumps({"kind": kind, "step": step, "position": step, "time": float(step), "loss": 5.0, **fields}) + "\n"


def _steps(follower: Follower) -> list[int]:
    return [event["step"] for event in follower.read()]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_what_is_added_is_read_once(log: Path) -> None:
    with Follower(log) as follower:
        assert _steps(follower) == []
        log.write_text(_line(1) + _line(2))
        assert _steps(follower) == [1, 2]
        assert _steps(follower) == []
        with log.open("a") as file:
            file.write(_line(3))
        assert _steps(follower) == [3]


def test_a_torn_last_line_is_read_when_it_is_whole(log: Path) -> None:
    with Follower(log) as follower:
        log.write_text(_line(1) + _line(2)[:9])
        assert _steps(follower) == [1]
        with log.open("a") as file:
            file.write(_line(2)[9:])
        assert _steps(follower) == [2]


def test_a_torn_last_line_that_a_resume_cuts_off_is_never_shown(log: Path) -> None:
    with Follower(log) as follower:
        log.write_text(_line(1) + _line(2)[:30])
        assert _steps(follower) == [1]
        resumed = EventLog(log.parent)
        resumed.append("step", 7, 7)
        resumed.close()
        assert _steps(follower) == [7]
        assert (follower.begun, follower.refused) == (1, 0)


def test_a_log_that_was_cut_off_or_replaced_is_read_from_its_start(log: Path) -> None:
    with Follower(log) as follower:
        log.write_text(_line(1) + _line(2) + _line(3))
        assert _steps(follower) == [1, 2, 3]
        log.write_text(_line(4))
        assert _steps(follower) == [4]
        other = log.with_name("other")
        other.write_text("".join(map(_line, range(5, 15))))
        other.replace(log)
        assert _steps(follower) == list(range(5, 15))
        log.unlink()
        assert _steps(follower) == []
        log.write_text(_line(20))
        assert _steps(follower) == [20]


def test_damaged_lines_are_left_out(log: Path) -> None:
    log.write_bytes(b"\xff\x00rubbish\n" + _line(1).encode() + b'{"kind":"no such"}\n[]\n\n' + _line(2).encode())
    with Follower(log) as follower:
        assert _steps(follower) == [1, 2]
        assert follower.refused == 4


def test_a_log_that_may_not_be_read_is_one_line(log: Path) -> None:
    log.mkdir()
    with Follower(log) as follower, pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        list(follower.read())


class _Writer:
    """Plays the run: one more line at each pause of the watcher; and the clock."""

    def __init__(self, path: Path, lines: list[str | None]) -> None:
        self.path, self.lines, self.now = path, iter(lines), 0.0

    def sleep(self, seconds: float) -> None:
        line = next(self.lines)
        self.now += seconds
        if line is None:
            self.now += 70
        else:
            with self.path.open("a") as file:
                file.write(line)

    def clock(self) -> float:
        return self.now


def _watched(path: Path, lines: list[str | None]) -> list[str]:
    stream, writer = io.StringIO(), _Writer(path, lines)
    watch(path, PlainView(stream, every_seconds=0), writer.sleep, writer.clock)
    return [line.split(",")[0] for line in stream.getvalue().splitlines()]


def test_a_run_is_watched_from_before_its_first_event_to_its_end(log: Path) -> None:
    end = _line(3, "end", status="completed", reason="done")
    assert _watched(log, [_line(0, "start")[:20], _line(0, "start")[20:], _line(1), None, None, _line(2), end]) == [
        "waiting for the run's first event ...",
        "start: a run on its data",
        "step 1",
        "no event for 1 min 10 s: the run waits",
        "step 2",
        "completed at step 3: done",
    ]


def test_the_workers_of_a_run_are_watched_too(log: Path) -> None:
    marks, stream = FolderMarks(log.parent / "alive"), io.StringIO()
    said = {"node": "far", "workers": 1, "replicas": 1, "every": 1.0, "doing": "training", "time": time.time() - 100}
    marks.say(0, json.dumps(said), "worker")
    writer = _Writer(log, [_line(0, "start"), None, None, _line(3, "end", status="completed")])
    watch(log, PlainView(stream), writer.sleep, writer.clock, marks=marks)
    assert "worker 0 on far: silent for 1 min 4" in stream.getvalue()


def test_an_end_that_a_resume_follows_is_not_the_last(log: Path) -> None:
    log.write_text(_line(5, "end", status="interrupted") + _line(5, "resume", path="x"))
    assert _watched(log, [_line(6), _line(6, "end", status="completed")])[-1] == "completed at step 6"


def test_a_log_that_is_begun_anew_is_said_to_be(log: Path) -> None:
    log.write_text(_line(5))
    lines: Iterator[str] = iter([_line(1, "end", status="completed")])
    stream = io.StringIO()

    def anew(seconds: float) -> None:
        log.write_text(next(lines))

    watch(log, PlainView(stream), anew, lambda: 0.0)
    assert f"{log} was begun anew" in stream.getvalue()


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 1), ("interrupted", 1)])
def test_the_exit_code_tells_how_the_run_ended(
    status: str, code: int, log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log.write_text(_line(1) + _line(1, "end", status=status))
    monkeypatch.setattr(sys, "argv", ["raylm", "watch", str(log.parent)])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    assert end.value.code == code
    assert f"{status} at step 1" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "words"), [("missing", "no such folder"), ("", "neither config.json nor events")])
def test_what_is_no_run_is_refused_in_one_line(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["raylm", "watch", str(tmp_path / name)])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    assert end.value.code == 2
    assert words in capsys.readouterr().err


def test_a_run_in_an_object_store_is_watched_as_it_is_sent(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("raylm.cli.watch._SECONDS_BETWEEN_FETCHES", 0.1)
    uri = bucket.format("bucket/runs/far")
    far = Destination(uri)
    monkeypatch.setattr(sys, "argv", ["raylm", "watch", uri])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    assert end.value.code == 2
    assert "far holds neither config.json nor events.jsonl" in capsys.readouterr().err
    far.write("events.jsonl", _line(1).encode())
    whole = _line(1) + _line(2) + _line(2, "end", status="completed")
    sender = threading.Timer(1.0, far.write, ("events.jsonl", whole.encode()))
    sender.start()
    with pytest.raises(SystemExit) as end:
        command_line.main()
    sender.join()
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert [line.split(",")[0] for line in shown.splitlines()] == ["step 1", "step 2", "completed at step 2"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["raylm", "report", uri])
    with pytest.raises(SystemExit):
        command_line.main()
    assert (tmp_path / "far.html").exists()


def test_ctrl_c_ends_the_watching_and_leaves_the_terminal_as_it_was(log: Path) -> None:
    """On a real terminal: a screen of its own while it watches; then the last state, and the cursor again."""
    log.write_text(_line(0, "start", recipe="watched", steps_total=9) + _line(1))
    master, slave = pty.openpty()
    mind_ctrl_c = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's job ignores it
    script = f"{mind_ctrl_c}; import sys; sys.argv = ['raylm', 'watch', {str(log.parent)!r}]"
    script += "; from raylm.cli.main import main; main()"
    watcher = subprocess.Popen(
        [sys.executable, "-c", script], stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm"}
    )
    os.close(slave)
    shown = bytearray()

    def drain() -> None:
        try:
            while piece := os.read(master, 65536):
                shown.extend(piece)
        except OSError:
            return  # the terminal's other end is closed

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    deadline = time.monotonic() + 60
    while b"watched on its data" not in shown and time.monotonic() < deadline:
        time.sleep(0.05)
    watcher.send_signal(signal.SIGINT)
    assert watcher.wait(60) == 130
    reader.join(10)
    os.close(master)
    own_screen, _, after = bytes(shown).partition(b"\x1b[?1049l")
    assert b"\x1b[?1049h" in own_screen
    assert b"watched on its data" in after
    assert b"stopped watching; the run is left as it is" in after
    assert b"\x1b[?25h" in shown[shown.rfind(b"\x1b[?25l") :]
