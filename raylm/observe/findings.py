"""What a diagnosis is made of: the evidence that rules look at, what they find, and the verdict over all of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raylm.observe.story import Points, Story

Severity = Literal["wrong", "suspect", "note"]
_ORDER: Sequence[Severity] = ("wrong", "suspect", "note")
MOST = 3
"""Findings that are shown."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    since: the step from which it shows. evidence: lines with figures and steps. curve: what a sparkline shows. patch:
    dotted keys of the configuration and the values that would mend it. source: of the threshold.
    """

    rule: str
    severity: Severity
    title: str
    evidence: tuple[str, ...]
    advice: str
    source: str
    since: int | None = None
    curve: Points = field(default_factory=list)
    patch: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """healthy, suspect or wrong, since which step, and the weightiest findings, notes last."""

    verdict: Literal["healthy", "suspect", "wrong"]
    since: int | None
    findings: tuple[Finding, ...]
    left_out: int
    """Findings past the `MOST` shown."""


def conclude(found: Sequence[Finding]) -> Diagnosis:
    """The verdict over what rules found, in the order of their weight; rules that come first weigh more.

    A finding with the same patch as a weightier one says nothing new and is left out.
    """
    ordered: list[Finding] = []
    for finding in sorted(found, key=lambda finding: _ORDER.index(finding.severity)):
        if not finding.patch or all(finding.patch != other.patch for other in ordered):
            ordered.append(finding)
    worst = ordered[0].severity if ordered else "note"
    verdict: Literal["healthy", "suspect", "wrong"] = "healthy" if worst == "note" else worst
    steps = [each.since for each in ordered if each.severity == worst and each.since is not None]
    since = min(steps) if steps and verdict != "healthy" else None
    return Diagnosis(verdict, since, tuple(ordered[:MOST]), max(0, len(ordered) - MOST))


@dataclass(frozen=True)
class Evidence:
    """What the rules look at: curves of a run, and what its configuration and its start event say.

    Losses are nats a token. tokens: of one update. terms: how many times the mean over tokens the loss is whose
    gradient is used. clipped: share of the gradients that were, between points. signals: by name
    (`raylm.training.signals`). window, lanes: of a batch; sentences: each begins from a state of zero. A figure that is
    not known is None.
    """

    loss: Points
    norm: Points
    rate: Points
    speed: Points
    valid: Points
    last_step: int
    uniform: float | None = None
    unigram: float | None = None
    bigram: float | None = None
    optimizer: str | None = None
    peak_rate: float | None = None
    terms: float | None = None
    tokens: float | None = None
    clip: float | None = None
    dropout: float = 0.0
    steps_total: int | None = None
    failed: str = ""
    verdicts: tuple[tuple[int, str], ...] = ()
    clipped: Points = field(default_factory=list)
    signals: Mapping[str, Points] = field(default_factory=dict)
    window: float | None = None
    lanes: float | None = None
    sentences: bool = False

    @property
    def learnt_nothing(self) -> bool:
        """Whether the loss ends about where guessing is: 2 % below to 3 % above it."""
        end = smooth(self.loss)[-1][1] if self.loss else 0.0
        return self.uniform is not None and 0.98 * self.uniform < end <= 1.03 * self.uniform

    @property
    def falls(self) -> bool:
        """Whether the loss has fallen by a twentieth."""
        course = smooth(self.loss)
        return len(course) > 1 and course[-1][1] < 0.95 * course[0][1]

    def tokens_by(self, step: int) -> float:
        """Targets trained on up to an update; infinite where the size of an update is not known."""
        return math.inf if self.tokens is None else step * self.tokens


def evidence_of(story: Story) -> Evidence:
    """The evidence in a run's folder."""
    floors = dict(story.floors)
    optimizer, data, schedule = (_section(story.config, name) for name in ("optimizer", "data", "schedule"))
    window = _number(data.get("window"))
    steps = story.curves["loss"][-1][0] if story.curves["loss"] else 0
    scale = optimizer.get("loss_scale")
    peak = _number(schedule.get("learning_rate"))
    failed = story.summary.reason if story.summary is not None and story.summary.status == "failed" else ""
    return Evidence(
        loss=story.curves["loss"],
        norm=story.curves["gradient_norm"],
        rate=story.curves["learning_rate"],
        speed=story.curves["tokens_per_second"],
        valid=story.evaluations.get("valid", []),
        last_step=story.last_step,
        uniform=floors.get("uniform"),
        unigram=floors.get("unigram"),
        bigram=floors.get("bigram"),
        optimizer=optimizer.get("name"),
        peak_rate=peak if peak is not None else max((rate for _, rate in story.curves["learning_rate"]), default=None),
        terms={"token_mean": 1.0, "sequence_sum": window}.get(str(scale)),
        tokens=story.tokens / steps if story.tokens and steps else None,
        clip=_number(optimizer.get("clip_norm")) or _number(story.start.get("clip_norm")),
        dropout=_number(_section(story.config, "model").get("dropout")) or 0.0,
        steps_total=story.start.get("steps_total"),
        failed=failed,
        verdicts=tuple((mark.step, mark.text) for mark in story.marks if mark.kind == "verdict"),
        clipped=story.curves["clipped"],
        signals={name.removeprefix(_SIGNAL): points for name, points in story.curves.items() if _SIGNAL in name},
        window=window,
        lanes=_number(data.get("lanes")),
        sentences=data.get("mode") == "sentences",
    )


_SIGNAL = "signals/"


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def smooth(points: Points, over: int = 5) -> Points:
    """The median of each point and those before it, `over` in all: one window's loss is noisy."""
    values = [value for _, value in points]
    return [
        (step, statistics.median(values[max(0, index + 1 - over) : index + 1]))
        for index, (step, _) in enumerate(points)
    ]


def first_step(points: Points, above: float) -> int | None:
    """The step from which on every value lies above a bound, None where the last one does not."""
    since = None
    for step, value in reversed(points):
        if value <= above:
            break
        since = step
    return since
