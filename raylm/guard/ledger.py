"""What the guard changed of the run: the windows left out and the slow-downs of the learning rate.

The ledger is part of the state and of `state_sha256`. It holds what decides how the run goes on and nothing of how
that came to be: a run that rolled back ends in the same state as a clean run told to leave out the same windows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from raylm.config import GuardConfig
from raylm.data.cursor import Cursor
from raylm.errors import UserError

Range = tuple[int, int]


@dataclass(frozen=True)
class SlowDown:
    """From window `position` on, the learning rate is multiplied by `factor`, which recovers (`rate_factor`)."""

    position: int
    factor: float


@dataclass(frozen=True)
class Ledger:
    """Windows left out, as ordered ranges [first, last) of positions, and slow-downs."""

    left_out: tuple[Range, ...] = ()
    slow_downs: tuple[SlowDown, ...] = ()

    def leave_out(self, first: int, last: int) -> Ledger:
        """This ledger with the windows [first, last) left out as well."""
        merged: list[Range] = []
        for start, stop in sorted({*self.left_out, (first, last)}):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
            else:
                merged.append((start, stop))
        return replace(self, left_out=tuple(merged))

    def slow_down(self, position: int, factor: float) -> Ledger:
        """This ledger with one more slow-down."""
        slow_downs = sorted((*self.slow_downs, SlowDown(position, factor)), key=lambda one: (one.position, one.factor))
        return replace(self, slow_downs=tuple(slow_downs))

    def union(self, other: Ledger) -> Ledger:
        """What either of two ledgers holds."""
        both = replace(self, slow_downs=())
        for first, last in other.left_out:
            both = both.leave_out(first, last)
        for one in (Counter(self.slow_downs) | Counter(other.slow_downs)).elements():
            both = both.slow_down(one.position, one.factor)
        return both

    def since(self, position: int) -> Ledger:
        """What of this ledger lies at a position or later."""
        left_out = tuple((max(first, position), last) for first, last in self.left_out if last > position)
        return Ledger(left_out, tuple(one for one in self.slow_downs if one.position >= position))

    def apply(self, cursor: Cursor) -> Cursor:
        """The cursor with everything of this ledger that lies ahead left out."""
        for first, last in self.left_out:
            if last > cursor.position:
                cursor = cursor.leave_out(first, last)
        return cursor

    def rate_factor(self, position: int, recovery: int) -> float:
        """What the learning rate is multiplied by at a window: the product over slow-downs of factor^(1 − age /
        recovery), age being the windows since the slow-down began; 1 for each that is `recovery` windows old."""
        product = 1.0
        for one in self.slow_downs:
            age = position - one.position
            if 0 <= age < recovery:
                product *= one.factor ** (1 - age / recovery)
        return product

    def to_json(self) -> dict[str, Any]:
        return {
            "left_out": [list(pair) for pair in self.left_out],
            "slow_downs": [[one.position, one.factor] for one in self.slow_downs],
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Ledger:
        """Raises: UserError: the fields are not a ledger's."""
        try:
            left_out = tuple((int(first), int(last)) for first, last in fields["left_out"])
            slow_downs = tuple(SlowDown(int(place), float(factor)) for place, factor in fields["slow_downs"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the guard's ledger in the checkpoint is malformed ({error!r}): use another one") from None
        return cls(left_out, slow_downs)


def configured(policy: GuardConfig) -> Ledger:
    """The ledger of what a configuration says to leave out and where to slow down."""
    ledger = Ledger()
    for text in policy.leave_out:
        first, _, last = text.partition(":")
        ledger = ledger.leave_out(int(first), int(last))
    for text in policy.slow_down:
        place, _, factor = text.partition(":")
        ledger = ledger.slow_down(int(place), float(factor))
    return ledger
