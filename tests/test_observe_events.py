"""The event log holds valid JSON whatever happens, and a kill costs at most its last line."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.errors import UserError
from raylm.observe.events import KINDS, EventLog, finite_json, number, read_events


def test_every_line_is_one_object_with_kind_step_position_and_time(tmp_path: Path) -> None:
    log = EventLog(tmp_path, clock=lambda: 12.5)
    returned = [log.append(kind, index, {"epoch": 0, "window": index}, extra=1) for index, kind in enumerate(KINDS)]
    log.close()
    log.close()
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == returned == read_events(tmp_path)
    assert returned[1] == {
        "kind": "step",
        "step": 1,
        "position": {"epoch": 0, "window": 1},
        "time": 12.5,
        "extra": 1,
    }


def test_non_finite_figures_are_text_that_any_json_reader_takes(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    event = log.append(
        "step",
        3,
        3,
        loss=float("nan"),
        gradient_norm=np.float32("inf"),
        carry=np.array([-np.inf, 1.0]),
        tokens=np.int64(5),
        path=Path("a/b"),
        missing=None,
    )

    def refuse(literal: str) -> None:
        raise AssertionError(literal)

    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == event
    assert (event["loss"], event["gradient_norm"], event["carry"]) == ("nan", "inf", ["-inf", 1.0])
    assert (event["tokens"], event["path"], event["missing"]) == (5, "a/b", None)
    assert number(event["loss"]) != number(event["loss"])
    assert number(event["gradient_norm"]) == float("inf")


@pytest.mark.parametrize(("value", "expected"), [(1, 1.0), (2.5, 2.5), ("-inf", float("-inf"))])
def test_a_figure_is_read_back(value: object, expected: float) -> None:
    assert number(value) == expected


@pytest.mark.parametrize("value", [None, "text", True, [1], {}])
def test_what_is_no_figure_is_none(value: object) -> None:
    assert number(value) is None


@given(st.recursive(st.floats() | st.text() | st.integers(), lambda inner: st.lists(inner, max_size=3)))
def test_anything_made_finite_is_strict_json(value: Any) -> None:
    plain = finite_json(value)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_a_kind_or_field_that_is_not_the_logs_is_refused(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    with pytest.raises(ValueError, match="no event of kind 'steps'"):
        log.append("steps", 1, 1)
    with pytest.raises(ValueError, match="with fields"):
        log.append("step", 1, 1, time=3)
    with pytest.raises(TypeError, match="an event cannot hold"):
        log.append("step", 1, 1, loss=object())
    assert read_events(tmp_path) == []


@pytest.mark.parametrize("torn", [b"{", b'{"kind":"step"', b'{"kind":"step","step":2}', b"\xff\xfe", b"x" * 200_000])
def test_a_torn_last_line_is_left_out_and_cut_off_when_the_run_goes_on(tmp_path: Path, torn: bytes) -> None:
    EventLog(tmp_path).append("start", 0, 0)
    path = tmp_path / "events.jsonl"
    with path.open("ab") as file:
        file.write(torn)
    assert read_events(path)[0]["kind"] == "start"
    EventLog(tmp_path).append("resume", 0, 0)
    assert [event["kind"] for event in read_events(path)] == ["start", "resume"]


def test_a_log_that_is_only_a_torn_line_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'{"kind":"sta')
    assert read_events(tmp_path) == []
    EventLog(tmp_path).append("start", 0, 0)
    assert len(read_events(tmp_path)) == 1


@pytest.mark.parametrize("bad", [b"{", b"[]", b"3", b'{"kind":"what","step":1}', b'{"kind":"step"}', b"\xff", b""])
def test_a_broken_line_inside_the_log_is_named(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind":"start","step":0}\n' + bad + b'\n{"kind":"end","step":1}\n')
    with pytest.raises(UserError, match=r"events.jsonl, line 2: not an event"):
        read_events(path)


def test_a_log_that_is_not_there_or_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        read_events(tmp_path / "events.jsonl")
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*Is a directory"):
        EventLog(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        EventLog(tmp_path / "file" / "run")


def test_a_full_disk_is_told_of_once_and_leaves_whole_lines_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    log = EventLog(tmp_path, say=said.append)
    log.append("start", 0, 0)
    real = os.write

    def torn(descriptor: int, data: bytes) -> int:
        return real(descriptor, data[:9])

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    for write in (torn, full):
        monkeypatch.setattr("raylm.observe.events.os.write", write)
        assert log.append("step", 1, 1)["step"] == 1
    monkeypatch.undo()
    log.append("step", 3, 3)
    assert [event["step"] for event in read_events(tmp_path)] == [0, 3]
    assert said == [f"{log.path} cannot be written (No space left on device): events are lost until it can"]


def test_a_kill_costs_at_most_the_last_line(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from raylm.observe.events import EventLog\n"
        "log = EventLog(Path(sys.argv[1])); step = 0\n"
        "while True:\n"
        "    log.append('step', step, step, text='x' * 5000); step += 1; print(step, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        for _ in range(50):
            said = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        said = max([said, *map(int, writer.stdout.read().split(b"\n")[:-1])])
    steps = [event["step"] for event in read_events(tmp_path)]
    assert steps == list(range(len(steps)))
    assert len(steps) >= said


def test_what_cannot_be_written_is_told_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = EventLog(tmp_path)
    log.close()
    log.append("step", 1, 1)
    assert "cannot be written (Bad file descriptor): events are lost until it can" in capsys.readouterr().err
