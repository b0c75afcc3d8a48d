"""A run's events as TensorBoard files.

Written with tensorboardX's event file and without its SummaryWriter: that one hands events to a thread through a
bounded queue, and where the disk is full the thread dies and the training then waits for the queue forever.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raylm.observe import progress
from raylm.observe.events import Event, number

_STEP_FIGURES = (
    "loss",
    "perplexity",
    "learning_rate",
    "gradient_norm",
    "tokens_per_second",
    "clipped",
    "all_reduce_share",
    "loss_scale",
)
_FLUSH_SECONDS = 5.0


@contextmanager
def _without_torch() -> Iterator[None]:
    """tensorboardX imports PyTorch where it is installed: seconds and hundreds of megabytes, for nothing used here."""
    found = sys.modules.get("torch")
    sys.modules["torch"] = None  # type: ignore[assignment]  # importing it fails
    try:
        yield
    finally:
        if found is None:
            del sys.modules["torch"]
        else:
            sys.modules["torch"] = found


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def scalars(event: Event) -> dict[str, float]:
    """The figures of a step or an evaluation by what TensorBoard and its like call them; empty for other events."""
    match event.get("kind"):
        case "step":
            figures = {f"train/{name}": number(event.get(name)) for name in _STEP_FIGURES}
            figures |= {f"signals/{name}": number(value) for name, value in event.get("signals", {}).items()}
        case "eval":
            split = event.get("split", "valid")
            figures = {f"{split}/{name}": number(event.get(name)) for name in ("nats", "perplexity")}
        case _:
            figures = {}
    return {name: value for name, value in figures.items() if value is not None}


class TensorBoardLog:
    """Writes `RUN/tensorboard`; steps that a rollback or a resume takes back are purged from the curves."""

    def __init__(self, run_folder: Path, say: Callable[[str], None] = _to_stderr) -> None:
        with _without_torch():  # imported here: only the process that writes needs it
            from tensorboardX import summary
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2

        self._summary = summary
        self._proto = event_pb2
        self._say = say
        self._flushed = 0.0
        self._writer: Any = None
        folder = run_folder / "tensorboard"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}.{os.getpid()}")
        except OSError as error:
            self._give_up(error)

    def record(self, event: Event) -> None:
        """Write what TensorBoard can show of one event; a disk that refuses ends the log, told of once."""
        if self._writer is None:
            return
        try:
            for proto in self._protos(event):
                proto.wall_time = number(event.get("time")) or time.time()
                self._writer.write_event(proto)
            if event.get("kind") != "step" or time.monotonic() - self._flushed >= _FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Write out what is left; a second time does nothing."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                self._give_up(error)

    def _protos(self, event: Event) -> list[Any]:
        step = event.get("step", 0)
        match event.get("kind"):
            case "step" | "eval":
                return [self._scalar(name, value, step) for name, value in scalars(event).items()]
            case "sample":
                return [self._text("sample", progress.sample_line(event), step)]
            case "incident":
                return [self._text("incident", progress.incident_line(event), step)]
            case "verdict":
                return [self._text("verdict", progress.verdict_line(event), step)]
            case "rollback":
                back_to = event.get("to_step", step)
                return [self._purge(back_to), self._text("rollback", progress.rollback_line(event), back_to)]
            case "resume":
                return [self._purge(step)]
            case _:
                return []

    def _scalar(self, name: str, value: float, step: int) -> Any:
        point = self._summary.Summary.Value(tag=name, simple_value=value)
        return self._proto.Event(step=step, summary=self._summary.Summary(value=[point]))

    def _text(self, name: str, text: str, step: int) -> Any:
        return self._proto.Event(step=step, summary=self._summary.text(name, text))

    def _purge(self, step: int) -> Any:
        start = self._proto.SessionLog(status=self._proto.SessionLog.START)
        return self._proto.Event(step=step, session_log=start)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        self._say(f"no more TensorBoard files: {error.strerror or error}; the run's events.jsonl has it all")
