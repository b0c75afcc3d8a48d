"""A run told from its folder: curves of what stands, what was undone, what happened when. Nothing is drawn here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raylm.errors import UserError
from raylm.observe import progress
from raylm.observe.events import Event, number, read_events
from raylm.observe.figures import one_line
from raylm.observe.run_folder import NAME as CONFIG
from raylm.observe.summary import NAME as SUMMARY
from raylm.observe.summary import STATUSES, Summary, read_summary

Points = list[tuple[int, float]]

FIGURES = ("loss", "gradient_norm", "learning_rate", "tokens_per_second", "clipped")
"""The figures of a step event that have a curve."""


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step: its kind as of the event, and one line."""

    step: int
    kind: str
    text: str


@dataclass(frozen=True)
class Story:
    """One run.

    curves: by name of `FIGURES`, and `signals/NAME`, what stands in the end. undone: pieces of the loss that were
    rolled back, or computed again after a resume. evaluations: nats a token by split. config, versions, datasets: as
    config.json has them, empty where it is missing. summary: None while the run goes on, or where it was killed.
    """

    name: str
    start: Event
    curves: Mapping[str, Points]
    undone: tuple[Points, ...]
    evaluations: Mapping[str, Points]
    marks: tuple[Mark, ...]
    samples: tuple[tuple[int, str], ...]
    last_step: int
    summary: Summary | None
    tokens: float | None = None
    """Targets trained on, as the last step event tells."""
    config: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    datasets: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def floors(self) -> tuple[tuple[str, float], ...]:
        """Names and nats a token, the highest first."""
        return progress.floors(self.start)

    @property
    def status(self) -> str:
        """How the run ended, or that nothing says that it did."""
        return self.summary.status if self.summary else "not ended"


def read_story(folder: Path) -> Story:
    """The run in a folder, as far as it has come.

    Raises:
        UserError: it is no run's folder, or a file in it cannot be read or is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name a run's, as in runs/NAME")
    events = read_events(folder)
    if not events:
        raise UserError(f"{folder} has no events yet: the run has not begun")
    record = _record(folder / CONFIG)
    return _told(folder.resolve().name, events, _summary(folder, events[-1]), record)


def _summary(folder: Path, last: Event) -> Summary | None:
    """How the run ended; where summary.json is missing, as far as the last event tells it."""
    if last["kind"] != "end":
        return None
    if (folder / SUMMARY).exists():
        return read_summary(folder)
    status = last.get("status")
    return Summary(status if status in STATUSES else "interrupted", str(last.get("reason") or ""), last["step"], 0)


def untold_story(config: Mapping[str, Any], datasets: Mapping[str, str]) -> Story:
    """A run that has not begun: what it would train, on what."""
    curves: dict[str, Points] = {figure: [] for figure in FIGURES}
    return Story("before it trains", {}, curves, (), {}, (), (), 0, None, config=config, datasets=datasets)


def _record(path: Path) -> Mapping[str, Any]:
    """config.json as it is: a report of an old run needs no option of this raylm's."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); put it back from a copy") from None
    return content if isinstance(content, dict) else {}


def _told(name: str, events: Iterable[Event], summary: Summary | None, record: Mapping[str, Any]) -> Story:
    start: Event = {}
    curves: dict[str, Points] = {figure: [] for figure in FIGURES}
    undone: list[Points] = []
    evaluations: dict[str, Points] = {}
    marks: list[Mark] = []
    samples: list[tuple[int, str]] = []
    last, tokens = 0, None
    for event in events:
        kind, step = event["kind"], event["step"]
        if kind == "start":
            start = event
        if kind in ("start", "resume", "rollback"):
            to_step = event.get("to_step") if kind == "rollback" else step
            to_step = to_step if isinstance(to_step, int) else step
            undone += _cut(curves, to_step)
            samples = [sample for sample in samples if sample[0] <= to_step]
        elif kind == "step":
            for figure in FIGURES:
                _add(curves[figure], step, event.get(figure))
            for signal, value in _mapping(event, "signals").items():
                _add(curves.setdefault(f"signals/{signal}", []), step, value)
            tokens = number(event.get("tokens"))
        elif kind == "eval":
            _add(evaluations.setdefault(str(event.get("split")), []), step, event.get("nats"))
            _add(curves.setdefault("signals/lanes_apart", []), step, event.get("lanes_apart"))
            if isinstance(agree := event.get("ranks_agree"), bool):
                _add(curves.setdefault("signals/ranks_agree", []), step, int(agree))
        elif kind == "sample":
            samples = [sample for sample in samples if sample[0] < step]
            samples.append((step, progress.sample_line(event)))
        if line := _LINES.get(kind, _nothing)(event):
            marks.append(Mark(step, kind, one_line(line)))
        last = step if kind in ("step", "end", "eval") else last
    return Story(
        name,
        start,
        curves,
        tuple(undone),
        evaluations,
        tuple(marks),
        tuple(samples),
        last,
        summary,
        tokens,
        _mapping(record, "config"),
        str(record.get("note") or ""),
        _mapping(record, "datasets"),
        _mapping(record, "versions"),
    )


def _nothing(event: Event) -> str:
    return ""


_LINES: Mapping[str, Callable[[Event], str]] = {
    "incident": progress.incident_line,
    "rollback": progress.rollback_line,
    "verdict": progress.verdict_line,
    "resume": progress.resume_line,
    "resize": progress.resize_line,
    "checkpoint": lambda event: str(event.get("problem") or ""),
    "end": progress.end_line,
}


def _add(points: Points, step: int, value: Any) -> None:
    figure = number(value)
    if figure is None or not math.isfinite(figure):
        return
    while points and points[-1][0] >= step:
        points.pop()
    points.append((step, figure))


def _cut(curves: Mapping[str, Points], to_step: int) -> list[Points]:
    """Takes what lies after a step out of the curves; the loss that was there, where there was any."""
    lost = [point for point in curves["loss"] if point[0] > to_step]
    before = [point for point in curves["loss"] if point[0] <= to_step][-1:]
    for points in curves.values():
        points[:] = [point for point in points if point[0] <= to_step]
    return [[*before, *lost]] if lost else []


def _mapping(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and values of a config tree, as text."""
    leaves: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = "none" if value is None else json.dumps(value, ensure_ascii=False).strip('"')
    return leaves


def differences(stories: Iterable[Story]) -> dict[str, tuple[str, ...]]:
    """What the configurations, data and versions of runs differ in: a value of each run by key, "-" where it has none.

    Where a run is kept, and its name, are no difference.
    """
    sheets = [
        {
            **flat(story.config),
            **{f"dataset ({split})": place for split, place in story.datasets.items()},
            **{f"version of {package}": version for package, version in story.versions.items()},
        }
        for story in stories
    ]
    keys = {key: None for sheet in sheets for key in sheet}
    found = {key: tuple(sheet.get(key, "-") for sheet in sheets) for key in keys if key not in ("name", "storage_path")}
    return {key: values for key, values in found.items() if len(set(values)) > 1}
