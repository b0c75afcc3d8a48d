"""The cursor: where a reader is, as under 1 KB of plain JSON that is the same on every rank.

It records what was consumed, never what was prefetched. `position` counts windows (or batches) since the very
start and never goes back within a run; `skips` are the ranges of positions still to be left out. Ranges that lie
behind are forgotten; one that ends exactly here is kept, since what comes next has to know of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from raylm.data.order import ALGORITHM
from raylm.errors import UserError

MOST_SKIPS = 16
"""Ranges that a cursor holds: its JSON stays below 1 KB."""


@dataclass(frozen=True)
class Cursor:
    """A place in the data.

    `layout` says how the reader cuts the data (lanes, window, order); `window` is the next window in the epoch
    and `offset` the targets of each lane that the epoch's windows before it held. `parts` are the (epoch,
    window) of each member of a mixture, empty without one.
    """

    dataset_id: str
    layout: str
    seed: int
    algorithm: int = ALGORITHM
    epoch: int = 0
    window: int = 0
    offset: int = 0
    position: int = 0
    skips: tuple[tuple[int, int], ...] = ()
    parts: tuple[tuple[int, int], ...] = ()

    def leave_out(self, first: int, last: int) -> Cursor:
        """This cursor, with positions [first, last) to be left out as well; those behind it are no matter.

        Raises:
            UserError: the range is empty or negative, or there are more ranges than a cursor holds.
        """
        if not 0 <= first < last:
            raise UserError(f"positions [{first}, {last}) to leave out: expected 0 <= first < last")
        merged: list[tuple[int, int]] = []
        for start, stop in sorted([*self.skips, (max(first, self.position), last)]):
            if start >= stop:
                continue
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
            else:
                merged.append((start, stop))
        if len(merged) > MOST_SKIPS:
            raise UserError(f"{len(merged)} separate ranges to leave out, a cursor holds {MOST_SKIPS}: make them wider")
        return replace(self, skips=tuple(merged))

    def skip_end(self) -> int:
        """The first position from here on that is not left out."""
        return next((stop for start, stop in self.skips if start <= self.position < stop), self.position)

    def left_out_before(self) -> int:
        """How many positions right before this one were left out in a row."""
        return next((stop - start for start, stop in self.skips if stop == self.position), 0)

    def forget_behind(self) -> Cursor:
        """This cursor without the ranges that end here or before, once the window here is read."""
        if not self.skips or self.skips[0][1] > self.position:
            return self
        return replace(self, skips=tuple(pair for pair in self.skips if pair[1] > self.position))

    def to_json(self) -> dict[str, object]:
        """Plain JSON."""
        document = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**document, "skips": [list(pair) for pair in self.skips], "parts": [list(p) for p in self.parts]}

    @classmethod
    def from_json(cls, document: object) -> Cursor:
        """The cursor of `to_json`.

        Raises:
            UserError: a field is missing, unknown or malformed.
        """
        if not isinstance(document, Mapping):
            raise UserError(f"cursor: expected a JSON object, found {type(document).__name__}")
        names = {field.name for field in fields(cls)}
        if set(document) != names:
            raise UserError(
                f"cursor: missing fields {sorted(names - set(document))}, unknown {sorted(set(document) - names)}; "
                "the checkpoint is damaged or of another raylm"
            )
        if not re.fullmatch("[0-9a-f]{64}", str(document["dataset_id"])):
            raise UserError(f"cursor: dataset_id {document['dataset_id']!r} is not a SHA-256")
        if not isinstance(document["layout"], str):
            raise UserError(f"cursor: layout {document['layout']!r} is not text")
        for name in ("seed", "algorithm", "epoch", "window", "offset", "position"):
            if not _is_count(document[name]):
                raise UserError(f"cursor: {name} {document[name]!r} is not a whole number from 0 up")
        skips, parts = _pairs(document, "skips"), _pairs(document, "parts")
        borders = [border for pair in skips for border in pair]
        if borders != sorted(set(borders)) or any(stop < document["position"] for _, stop in skips):
            raise UserError(f"cursor: skips {list(skips)} are not ordered ranges from position on")
        return cls(**{**document, "skips": skips, "parts": parts})


def _pairs(document: Mapping[str, object], name: str) -> tuple[tuple[int, int], ...]:
    value = document[name]
    if isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and _is_count(pair[0]) and _is_count(pair[1]) for pair in value
    ):
        return tuple((first, second) for first, second in value)
    raise UserError(f"cursor: {name} {value!r} is not a list of pairs of whole numbers")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_cursor(found: Cursor, expected: Cursor) -> None:
    """Check that a cursor is for the reader whose first cursor is `expected`.

    Raises:
        UserError: it is not; every difference is named.
    """
    names = ("dataset_id", "algorithm", "seed", "layout")
    differences = [
        f"{name}: the cursor has {getattr(found, name)!r}, this run {getattr(expected, name)!r}"
        for name in names
        if getattr(found, name) != getattr(expected, name)
    ]
    if differences:
        raise UserError(
            f"the data cannot go on where the checkpoint stopped ({'; '.join(differences)}); "
            "use the data and settings of that run, or start a new one"
        )
