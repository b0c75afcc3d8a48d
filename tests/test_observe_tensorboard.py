"""TensorBoard reads the run's figures, without the steps that were taken back."""

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raylm.observe.tensorboard import TensorBoardLog


def _events(run: Path) -> list[Any]:
    """The events of all files, read by the format: length, its checksum, data, its checksum."""
    from tensorboardX.proto import event_pb2  # after raylm, which keeps it from importing PyTorch

    events = []
    for path in sorted((run / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def _step(step: int, **fields: Any) -> dict[str, Any]:
    return {"kind": "step", "step": step, "position": step, "time": 100.0 + step, **fields}


def test_figures_and_texts_are_written_at_their_steps(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path)
    log.record({"kind": "start", "step": 0, "position": 0, "time": 99.0})
    log.record(_step(1, loss=9.2, perplexity=9897.0, learning_rate=1.0, gradient_norm="inf", text="x"))
    log.record({"kind": "eval", "step": 1, "split": "test", "nats": 5.5, "perplexity": 245.0, "time": 102.0})
    log.record({"kind": "sample", "step": 1, "prompt": "the", "text": "company", "time": 103.0})
    log.record({"kind": "incident", "step": 1, "reason": "loss is nan"})
    log.close()
    log.close()
    points = [
        (event.step, value.tag, value.simple_value)
        for event in _events(tmp_path)
        for value in event.summary.value
        if not value.HasField("tensor")
    ]
    assert points == [
        (1, "train/loss", pytest.approx(9.2)),
        (1, "train/perplexity", 9897.0),
        (1, "train/learning_rate", 1.0),
        (1, "train/gradient_norm", float("inf")),
        (1, "test/nats", 5.5),
        (1, "test/perplexity", 245.0),
    ]
    texts = [
        value.tensor.string_val[0].decode()
        for event in _events(tmp_path)
        for value in event.summary.value
        if value.HasField("tensor")
    ]
    assert texts == ["the company", "loss is nan at step 1"]
    assert _events(tmp_path)[1].wall_time == 101.0


def test_steps_that_a_rollback_or_a_resume_takes_back_are_purged(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path)
    log.record(_step(120, loss=9.2))
    log.record({"kind": "rollback", "step": 120, "to_step": 100, "time": 1.0})
    log.record(_step(101, loss=5.0))
    log.close()
    resumed = TensorBoardLog(tmp_path)
    resumed.record({"kind": "resume", "step": 90, "path": "x", "time": 2.0})
    resumed.close()
    starts = [event.step for event in _events(tmp_path) if event.HasField("session_log")]
    assert starts == [100, 90]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_files_of_one_second_are_named_in_the_order_in_which_they_were_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard reads them in the order of their names."""
    nanoseconds = iter([1_800_000_000_009_999_999, 1_800_000_000_080_000_000])
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    monkeypatch.setattr("time.time_ns", lambda: next(nanoseconds))
    for step in (100, 90):
        log = TensorBoardLog(tmp_path)
        log.record({"kind": "resume", "step": step, "path": "x", "time": 2.0})
        log.close()
    assert [event.step for event in _events(tmp_path) if event.HasField("session_log")] == [100, 90]


def test_what_a_step_lacks_is_left_out(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path)
    log.record(_step(1, loss=None))
    log.record({"kind": "eval", "step": 1})
    log.close()
    assert [value for event in _events(tmp_path) for value in event.summary.value] == []


def test_a_full_disk_ends_the_log_with_one_line_and_never_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    log = TensorBoardLog(tmp_path, say=said.append)

    def full(self: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tensorboardX.record_writer.RecordWriter.write", full)
    for step in range(20):
        log.record(_step(step, loss=1.0))
    log.close()
    assert said == ["no more TensorBoard files: No space left on device; the run's events.jsonl has it all"]


def test_a_folder_that_cannot_be_made_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("")
    said: list[str] = []
    TensorBoardLog(tmp_path, say=said.append).record(_step(1, loss=1.0))
    assert len(said) == 1
    assert "no more TensorBoard files" in said[0]


def test_pytorch_is_left_alone_where_it_is_installed(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('imported')")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from raylm.observe.tensorboard import TensorBoardLog\n"
        "TensorBoardLog(Path(sys.argv[1])).close()\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "tensorboard").iterdir())
