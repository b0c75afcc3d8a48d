"""An incident's step once more, in one process: every step from the snapshot on, then its tensors one by one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raylm.training.diagnose import Trace, diagnose, first_non_finite, trace_step
from raylm.training.incident import Incident, read_incident, validate, write_verdict
from raylm.training.probe import Probe, Result


@dataclass(frozen=True)
class Replayed:
    """sound: the step is, this time. trace: statistics of every tensor of it. lines: the answer, for a person."""

    sound: bool
    result: Result
    trace: Trace
    lines: tuple[str, ...]


def replay(
    folder: Path,
    clip_norm: float | None = None,
    rate: float | None = None,
    diagnosed: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Replayed:
    """Computes an incident's step again. clip_norm, rate: in place of the run's, since the snapshot. diagnosed: makes
    the probes too, and writes their verdict down.

    Raises:
        UserError: the folder holds no incident, or is damaged.
    """
    incident = read_incident(folder)
    say(f"{folder}: {incident.reason}; {len(incident.steps)} steps from the snapshot at step {incident.snapshot.step}")
    probe = Probe(incident)
    highest = incident.config.schedule.learning_rate
    probe.vary(clip_norm=clip_norm, rate_factor=1.0 if rate is None else rate / highest)
    probe.to_snapshot()
    for recorded in incident.steps[:-1]:
        say(_line(probe.step(recorded)))
    trace = trace_step(probe)
    result = probe.step(incident.last)
    say(_line(result))
    sound = result.finite and probe.state_is_finite
    problems, _ = validate(incident.last, incident.vocabulary)
    lines = [_answer(incident, sound, trace), *(f"the batch: {problem}" for problem in problems)]
    if diagnosed:
        verdict, findings, trace = diagnose(incident)
        write_verdict(folder, verdict, findings, trace)
        lines.append(verdict.line)
    else:
        lines.append(f"verdict so far: {_line_of_verdict(folder)}")
    return Replayed(sound, result, trace, tuple(lines))


def _answer(incident: Incident, sound: bool, trace: Trace) -> str:
    if sound:
        return f"step {incident.last.step} is sound this time"
    first = first_non_finite(trace)
    if not first:
        return f"step {incident.last.step} fails again, its tensors are finite: their norm, or the update, overflows"
    return f"step {incident.last.step} fails again; the first non-finite tensor is {first}"


def _line(result: Result) -> str:
    state = "" if result.finite else "  NOT FINITE"
    return f"step {result.step}  window {result.position}  loss {result.loss:.6g}  norm {result.norm:.6g}{state}"


def _line_of_verdict(folder: Path) -> str:
    return str(json.loads((folder / "verdict.json").read_bytes())["line"])
