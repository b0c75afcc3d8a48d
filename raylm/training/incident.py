"""The folder of an incident: all that computes its step again, in one process, without the data set.

verdict.json         what failed, the verdict, the probes; suggested.toml: a patch for --config
config.json          the run's configuration, and how the step was computed
state/               the state at the snapshot before, as a checkpoint (also the seed of its randomness)
batches.safetensors  every window from there to the step that failed, as the device saw it
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from raylm.checkpoint import tensors
from raylm.checkpoint.layout import read_checkpoint, write_checkpoint
from raylm.checkpoint.snapshot import Snapshot
from raylm.config import RunConfig
from raylm.data.caching import write_file
from raylm.errors import UserError
from raylm.guard.diagnosis import OPEN, Findings, Verdict
from raylm.guard.drills import Drill, parse_drills
from raylm.guard.judge import Outcome
from raylm.observe.events import finite_json

FOLDER = "incidents"
_ARRAYS = ("inputs", "targets", "weights", "reset")


@dataclass(frozen=True)
class RecordedStep:
    """One window of all lanes, replica after replica, and what its update was made with.

    step: updates before it. Arrays [lanes, T]; reset [lanes]. drill: what struck it.
    """

    step: int
    position: int
    epoch: int
    learning_rate: float
    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    reset: np.ndarray
    drill: Drill | None = None


@dataclass(frozen=True)
class Incident:
    """What a folder holds. steps: the last one failed. shares: shards of the lanes.

    where: what each lane of the last window reads, and where that lies.
    """

    config: RunConfig
    vocabulary: int
    shares: int
    kind: str
    reason: str
    loss: float
    where: tuple[str, ...]
    snapshot: Snapshot
    steps: tuple[RecordedStep, ...]

    @property
    def last(self) -> RecordedStep:
        return self.steps[-1]


def incident_folder(run_folder: Path, step: int, position: int) -> Path:
    """`incidents/step-N`; where that is another window's already, its name says the window too."""
    plain = run_folder / FOLDER / f"step-{step:08d}"
    return plain if _position(plain) in (None, position) else plain.with_name(f"{plain.name}-window-{position}")


def write_incident(folder: Path, incident: Incident, outcome: Outcome) -> None:
    """Writes all of an incident, its verdict open. Raises: OSError: the disk refuses."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = incident.config.model_dump(mode="json")
    write_checkpoint(folder / "state", incident.snapshot, config, str(incident.snapshot.cursor["dataset_id"]), 0.0)
    arrays = {
        f"{number:04d}/{name}": getattr(step, name) for number, step in enumerate(incident.steps) for name in _ARRAYS
    }
    with (folder / "batches.safetensors").open("wb") as file:
        file.writelines(tensors.encode(arrays))
    how = {
        "config": config,
        "vocabulary": incident.vocabulary,
        "shares": incident.shares,
        "where": list(incident.where),
        "steps": [
            [step.step, step.position, step.epoch, step.learning_rate, None if step.drill is None else str(step.drill)]
            for step in incident.steps
        ],
    }
    _write(folder / "config.json", how)
    facts = {"kind": incident.kind, "reason": incident.reason, **asdict(outcome)}
    write_verdict(folder, OPEN, None, facts=facts)


def prune_incidents(run_folder: Path, keep: int) -> None:
    """Removes all incidents but the `keep` that were written to last. Raises: OSError: the disk refuses."""
    folders = sorted((run_folder / FOLDER).iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
    for folder in folders[:-keep]:
        shutil.rmtree(folder)


def write_verdict(
    folder: Path,
    verdict: Verdict,
    findings: Findings | None,
    trace: Iterable[Mapping[str, Any]] = (),
    facts: Mapping[str, Any] | None = None,
) -> None:
    """verdict.json and suggested.toml. facts: what failed; by default those that stand there."""
    if facts is None:
        facts = json.loads((folder / "verdict.json").read_bytes())["fault"]
    content = {
        "verdict": verdict.name,
        "line": verdict.line,
        **asdict(verdict),
        "fault": facts,
        "findings": None if findings is None else asdict(findings),
        "trace": list(trace),
    }
    _write(folder / "verdict.json", {name: value for name, value in content.items() if name != "name"})
    patch = verdict.patch or ("# nothing to change",)
    write_file(folder / "suggested.toml", "\n".join((f"# {verdict.line}", *patch, "")).encode())


def read_incident(folder: Path) -> Incident:
    """An incident from its folder.

    Raises:
        UserError: it is none, or damaged; names the file.
    """
    how, fault = _read(folder / "config.json"), _read(folder / "verdict.json")
    snapshot = read_checkpoint(folder / "state")
    batches = folder / "batches.safetensors"
    try:
        arrays = tensors.decode(batches.read_bytes())
        steps = tuple(_recorded_step(number, facts, arrays) for number, facts in enumerate(how["steps"]))
        return Incident(
            config=RunConfig.model_validate_json(json.dumps(how["config"])),
            vocabulary=int(how["vocabulary"]),
            shares=int(how["shares"]),
            kind=str(fault["fault"]["kind"]),
            reason=str(fault["fault"]["reason"]),
            loss=float(fault["fault"]["loss"]),
            where=tuple(how["where"]),
            snapshot=snapshot,
            steps=steps,
        )
    except OSError as error:
        raise UserError(f"{batches} cannot be read: {error.strerror}") from None
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is damaged, or of another raylm ({error!r})") from None


def _recorded_step(number: int, facts: Sequence[Any], arrays: Mapping[str, np.ndarray]) -> RecordedStep:
    step, position, epoch, rate, drill = facts
    inputs, targets, weights, reset = (arrays[f"{number:04d}/{name}"] for name in _ARRAYS)
    struck = None if drill is None else parse_drills([drill])[0]
    return RecordedStep(step, position, epoch, rate, inputs, targets, weights, reset, struck)


@dataclass(frozen=True)
class Place:
    """An id of a batch: its lane, and how many tokens after the first that the lane reads."""

    lane: int
    token: int


def validate(step: RecordedStep, vocabulary: int) -> tuple[tuple[str, ...], Place | None]:
    """What is wrong with a batch, one line each, and where the first id is that is none."""
    problems, first = [], None
    for ahead, name in enumerate(("inputs", "targets")):
        ids = getattr(step, name)
        for lane, time in np.argwhere((ids < 0) | (ids >= vocabulary)).tolist():
            first = first or Place(lane, time + ahead)
            problems.append(
                f"id {ids[lane, time]} in the {name} of lane {lane} at time {time} of window {step.position} is "
                f"outside the vocabulary of {vocabulary}"
            )
    if not step.weights.any():
        problems.append(f"no row of window {step.position} has a target, so a mean over its targets is 0/0")
    return tuple(problems), first


def _position(folder: Path) -> int | None:
    try:
        return int(json.loads((folder / "verdict.json").read_bytes())["fault"]["position"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name a folder in a run's incidents") from None
    except ValueError:
        raise UserError(f"{path} is damaged: it is not JSON") from None


def _write(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    write_file(path, (json.dumps(finite_json(content), indent=2) + "\n").encode())
