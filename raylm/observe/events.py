"""events.jsonl: what happened in a run, one JSON object a line, in the order in which it happened.

Every event has `kind`, `step` (optimizer updates applied), `position` (the data cursor, as the caller says it)
and `time` (seconds since 1970, UTC). The fields of each kind, `?` where one may be missing:

    start       steps_total recipe parameters workers replicas dataset vocabulary kernel kernel_reason (what computes
                the layers on rank 0, and why where that was chosen: `raylm.model.kernels`) clip_norm? uniform_nats?
                unigram_nats? bigram_nats? (floors: guessing; the train text's words; its pairs, on the valid text)
                tokens_per_second_limit? (all operations at the rate of a large matrix product: `raylm.training.limit`)
    step        loss (nats a token) perplexity learning_rate gradient_norm tokens_per_second epoch steps_total
                tokens (counted from the start of the run) clipped? (share of the gradients since the last step event
                that were) signals? (name: figure, see raylm.training.signals) data_wait? (share of the time since the
                last step event in which the loop waited for data) pauses? (share of the time, theirs counted, of
                checkpoints, evaluations and samples since the last step event) all_reduce_share? (of the time that
                is left, the sum over replicas as it takes alone, an upper bound: `raylm.training.exchange`) loss_scale?
                overflows?
                (float16's, and the updates that were left out for it; the norm is missing where this one was)
    eval        split (train, valid or test) nats perplexity tokens? seconds? lanes_apart? (nats a token between two
                readings of the same words) ranks_agree? (whether all replicas held the same weights to the last bit)
    sample      prompt text
    checkpoint  path? seconds? bytes? state_sha256? problem? (why it was not saved, in one line)
    incident    reason, and what the guard found
    rollback    to_step reason? skip? learning_rate_factor?
    verdict     verdict text folder: what the incident at `step` was found to be
    resume      path epoch tokens_left (about) changes (key: [old, new] of each option that differs) rollbacks (so far)
    resize      workers_before? workers replicas: the run goes on with another number of workers
    end         status (completed, failed or interrupted) reason?

JSON has no word for NaN and the infinities: they are written as the texts "nan", "inf" and "-inf", which
`number` reads back.
"""

import errno
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from raylm.errors import UserError

KINDS = ("start", "step", "eval", "sample", "checkpoint", "incident", "rollback", "verdict", "resume", "resize", "end")
NAME = "events.jsonl"

Event = Mapping[str, Any]


def number(value: Any) -> float | None:
    """A figure of an event as a float, the texts "nan", "inf" and "-inf" too; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    return float(value) if value in ("nan", "inf", "-inf") else None


def finite_json(value: Any) -> Any:
    """`value` in JSON's own types: non-finite floats as text, NumPy's scalars as numbers, paths as text."""
    if isinstance(value, Mapping):
        return {str(key): finite_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return finite_json(value.tolist())
    raise TypeError(f"an event cannot hold {value!r}")


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


class EventLog:
    """Appends events to `RUN/events.jsonl`, each with one write, so that a kill costs at most the last line."""

    def __init__(
        self,
        run_folder: Path,
        clock: Callable[[], float] = time.time,
        say: Callable[[str], None] = _to_stderr,
    ) -> None:
        """Open the log, cutting off the last line where a kill tore it; UserError where that cannot be done."""
        self.path = run_folder / NAME
        self._clock = clock
        self._say = say
        self._failing = False
        try:
            run_folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self._cut_torn_line()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error

    def append(self, kind: str, step: int, position: Any, **fields: Any) -> dict[str, Any]:
        """Write one event and return it as it was written.

        A disk that refuses does not stop the run: it is told of once, and what it refused is missing in the log.
        Raises ValueError for a kind or a field that is not the log's to write.
        """
        if kind not in KINDS or "time" in fields:
            raise ValueError(f"no event of kind {kind!r} with fields {sorted(fields)}")
        event: dict[str, Any] = finite_json(
            {"kind": kind, "step": step, "position": position, "time": self._clock(), **fields}
        )
        self._write(json.dumps(event, separators=(",", ":"), allow_nan=False).encode() + b"\n")
        return event

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, line: bytes) -> None:
        try:
            written = os.write(self._descriptor, line)
            if written < len(line):
                self._cut_torn_line()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not self._failing:
                self._say(f"{self.path} cannot be written ({error.strerror}): events are lost until it can")
            self._failing = True
        else:
            self._failing = False

    def _cut_torn_line(self) -> None:
        os.ftruncate(self._descriptor, _end_of_last_whole_line(self._descriptor))


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a log, or of a run's folder, oldest first; a last line that a kill tore is left out.

    Raises UserError naming the file and the line where it cannot be read.
    """
    path = path / NAME if path.is_dir() else path
    try:
        *lines, torn = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    events = []
    for index, line in enumerate(lines, start=1):
        try:
            events.append(parse_event(line))
        except ValueError as error:
            raise UserError(f"{path}, line {index}: not an event ({error})") from error
    try:
        return [*events, parse_event(torn)]
    except ValueError:
        return events


def validation_losses(events: Iterable[Event], last_step: float = math.inf) -> dict[int, float]:
    """Nats a token on the validation text by step, up to `last_step`; of a step evaluated twice, the later."""
    losses = {
        event["step"]: number(event.get("nats"))
        for event in events
        if event["kind"] == "eval" and event.get("split") == "valid" and event["step"] <= last_step
    }
    return {step: nats for step, nats in losses.items() if nats is not None}


def parse_event(line: bytes) -> dict[str, Any]:
    """One line of a log. Raises ValueError: it is no event."""
    event = json.loads(line)
    if not isinstance(event, dict) or event.get("kind") not in KINDS or not isinstance(event.get("step"), int):
        raise ValueError("an object with a known kind and a step was expected")
    return event


def _end_of_last_whole_line(descriptor: int) -> int:
    """The size of the file without a torn last line, in bytes; looks back in pieces of 64 KiB."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - (64 << 10))
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
