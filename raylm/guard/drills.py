"""Drills: faults that a user asks for, to see the recovery.

`KIND@STEP` injects a fault into the update after STEP others (0-based), once in a run: a transient fault. What was
injected is kept in checkpoints, so that neither a rollback nor a restart meets it again. `KIND@STEP:sticky` strikes
whenever window STEP is read, as bad data do. More words say where: `nan-logits@120:sticky,lane=3`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from raylm.errors import UserError

VALUES: dict[str, float] = {"nan": math.nan, "inf": math.inf, "neginf": -math.inf}

SITES: dict[str, str] = {
    "embedding": "what the embedding yields for a lane",
    "hidden": "what the first layer yields for a lane",
    "logits": "the logits of a lane",
    "loss": "the step's loss; the gradient is sound",
    "gradient": "the gradient of the last weight; the loss is finite",
    "recurrent-gradient": "the gradient of the first recurrent matrix",
    "embedding-gradient": "the gradient of the embedding",
    "weight": "one number of the embedding, in the row of the rarest word",
    "slot": "one number of the optimizer's first slot (Adam)",
    "carry": "the carried state of a lane",
}
"""Where a number can be made non-finite."""

STATE_SITES = ("weight", "slot", "carry")
"""Those of the state itself, which are struck before the step."""

LANE_SITES = ("embedding", "hidden", "logits", "carry", "bad-id")
"""Those that belong to one lane."""

KINDS: dict[str, str] = {
    f"{value}-{site}": f"{text} becomes {number}" for site, text in SITES.items() for value, number in VALUES.items()
} | {
    "bad-id": "an id outside the vocabulary in a lane of the batch",
    "explosion": "the gradient is a million times as large, and finite, as where the loss falls off a cliff",
    "no-target": "a batch without a target, divided by their number as a naive mean does (0/0)",
    "kill-worker": "the last worker is killed (SIGKILL) before the step",
    "stop-worker": "the last worker is stopped (SIGSTOP) before the step; guard.step_timeout ends the wait",
}
"""Every drill and what it does."""

PROCESS_KINDS = ("kill-worker", "stop-worker")


@dataclass(frozen=True)
class Drill:
    """A fault to inject into the update after `step` others; sticky: whenever window `step` is read.

    replica: the only one struck, of all replicas of all workers; None for every one. lane: of the global batch; None
    for each replica's first.
    """

    kind: str
    step: int
    sticky: bool = False
    replica: int | None = None
    lane: int | None = None

    def __str__(self) -> str:
        words = ["sticky"] if self.sticky else []
        words += [
            f"{word}={value}" for word, value in (("replica", self.replica), ("lane", self.lane)) if value is not None
        ]
        return f"{self.kind}@{self.step}" + (f":{','.join(words)}" if words else "")

    @property
    def site(self) -> str:
        """What is struck: a site, or the kind itself where it is no number."""
        return self.kind.partition("-")[2] if self.kind.partition("-")[0] in VALUES else self.kind

    @property
    def value(self) -> float:
        """What the number becomes."""
        return VALUES.get(self.kind.partition("-")[0], math.nan)


def parse_drills(texts: Iterable[str]) -> tuple[Drill, ...]:
    """Drills from `KIND@STEP` and `KIND@STEP:WHERE` texts.

    Raises:
        UserError: an unknown kind or word, or a step that is no whole number ≥ 0; names the nearest and the list.
    """
    return tuple(_parse(text) for text in texts)


def _parse(text: str) -> Drill:
    kind, at, rest = text.partition("@")
    step, _, where = rest.partition(":")
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"--drill {text}: there is no drill {kind!r}{hint} There are: {', '.join(KINDS)}")
    if not at or not step.isdecimal():
        raise UserError(f"--drill {text}: needs the step to strike at, a whole number, as in {kind}@120")
    drill = Drill(kind, int(step))
    fields: dict[str, bool | int] = {}
    for word in where.split(",") if where else ():
        name, is_number, value = word.partition("=")
        if word == "sticky":
            fields["sticky"] = True
        elif name in ("replica", "lane") and is_number and value.isdecimal():
            fields[name] = int(value)
        else:
            raise UserError(f"--drill {text}: {word!r} says no place: there are sticky, replica=N and lane=N")
    if fields and kind in PROCESS_KINDS:
        raise UserError(f"--drill {text}: strikes the last worker once, nowhere else: leave out {where!r}")
    if "lane" in fields and drill.site not in LANE_SITES:
        raise UserError(f"--drill {text}: belongs to no lane; lanes have {', '.join(LANE_SITES)}")
    return Drill(kind, int(step), **fields)  # type: ignore[arg-type]


def due(drills: Iterable[Drill], step: int, position: int, fired: Iterable[str]) -> Drill | None:
    """The drill to inject into the update after `step` others, on window `position`; one that is not sticky strikes
    only where it did not before."""
    drills = tuple(drills)
    once = (drill for drill in drills if not drill.sticky and drill.step == step and str(drill) not in fired)
    return next(once, None) or sticky_at(drills, position)


def sticky_at(drills: Iterable[Drill], position: int) -> Drill | None:
    """The drill that strikes window `position` whenever it is read."""
    return next((drill for drill in drills if drill.sticky and drill.step == position), None)
