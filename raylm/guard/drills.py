"""Drills: faults that a user asks for, to see the recovery.

`KIND@STEP` injects the fault into the update after STEP others (0-based), once in a run: the ledger remembers what
was injected, so that neither a rollback nor a restart meets it again.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from raylm.errors import UserError

KINDS: dict[str, str] = {
    "nan-loss": "the step's loss is NaN on every replica",
    "nan-gradient": "the step's gradient holds a NaN; the loss is finite",
    "kill-worker": "the last worker is killed (SIGKILL) before the step",
}
"""Every drill and what it does."""


@dataclass(frozen=True)
class Drill:
    """A fault to inject into the update after `step` others."""

    kind: str
    step: int

    def __str__(self) -> str:
        return f"{self.kind}@{self.step}"


def parse_drills(texts: Iterable[str]) -> tuple[Drill, ...]:
    """Drills from `KIND@STEP` texts.

    Raises:
        UserError: an unknown kind, or a step that is no whole number ≥ 0; names the nearest kind and the list.
    """
    return tuple(_parse(text) for text in texts)


def _parse(text: str) -> Drill:
    kind, at, step = text.partition("@")
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"--drill {text}: there is no drill {kind!r}{hint} There are: {', '.join(KINDS)}")
    if not at or not step.isdecimal():
        raise UserError(f"--drill {text}: needs the step to strike at, a whole number, as in {kind}@120")
    return Drill(kind, int(step))


def due(drills: Iterable[Drill], step: int, fired: Iterable[str]) -> Drill | None:
    """The drill to inject into the update after `step` others, unless it was injected before."""
    return next((drill for drill in drills if drill.step == step and str(drill) not in fired), None)
