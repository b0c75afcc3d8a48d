"""Which window an update of a run used, told from the run's events by a pure function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from raylm.errors import UserError
from raylm.observe.events import Event

Skips = list[tuple[int, int, int]]


def position_of(events: Iterable[Event], step: int) -> int:
    """The position of the window that update `step` (from 1) used; of updates that were rolled back, or done again
    from an older checkpoint, the one that stayed.

    Raises:
        UserError: the run has not come to that update.
    """
    floors = {1: 0}
    skips: Skips = []
    last = 0
    for event in events:
        kind, at, position = event["kind"], event["step"], event.get("position")
        if kind == "rollback" and isinstance(event.get("to_step"), int):
            to_step = event["to_step"]
            following = _walk(floors, skips, to_step + 1)
            floors, last = _until(floors, to_step) | {to_step + 1: following}, to_step
            if event.get("skip"):
                first, stop = event["skip"]
                skips.append((to_step, max(first, following), stop))
        elif kind in ("start", "resume") and isinstance(position, int):
            floors, last = _until(floors, at) | {at + 1: position}, at
            skips = [skip for skip in skips if skip[0] <= at]
        elif kind == "step" and isinstance(position, int):
            floors[at], last = position, at
        elif kind in ("eval", "checkpoint", "end"):
            last = max(last, at)
    if not 1 <= step <= last:
        raise UserError(f"--step {step}: the run has applied updates 1 to {last:,}, as its events tell: name one")
    return _walk(floors, skips, step)


def _walk(floors: Mapping[int, int], skips: Skips, step: int) -> int:
    """From the nearest update that is known on to `step`, one window each, past what is left out."""
    known = max(at for at in floors if at <= step)
    position = _settle(floors[known], skips)
    for _ in range(known, step):
        position = _settle(position + 1, skips)
    return position


def _settle(position: int, skips: Skips) -> int:
    for _, first, stop in sorted(skips, key=lambda skip: skip[1]):
        if first <= position < stop:
            position = stop
    return position


def _until(floors: Mapping[int, int], step: int) -> dict[int, int]:
    return {at: position for at, position in floors.items() if at <= step}
