"""How two series that a training printed beside each other are made of one another: pure arithmetic on their digits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

from raylm.observe.printout import Point

Relation = Literal["divided", "by_steps", "by_steps_since_line", "exp", "exp2"]
"""The other series is this one divided by one number, by the steps since the start, by those since the line before, or
e or 2 to its power."""


def relations(series: Sequence[Point], other: Sequence[Point], interval: int) -> tuple[tuple[Relation, float], ...]:
    """How `other`, printed on the same lines, comes from `series`, as far as the digits tell; each with the divisor.

    `interval` is the number of steps between lines.
    """
    values = {each.step: each for each in other if math.isfinite(each.value) and each.value > 0}
    pairs = [(each, values[each.step]) for each in series if each.step in values and 0 < each.value < math.inf]
    found: list[tuple[Relation, float]] = []
    if len(pairs) >= 2:
        found += _divisions(pairs, interval)
    if pairs and all(_is_power(math.e, *pair) for pair in pairs):
        found.append(("exp", 1.0))
    if pairs and all(_is_power(2.0, *pair) for pair in pairs):
        found.append(("exp2", 1.0))
    return tuple(found)


def _divisions(pairs: Sequence[tuple[Point, Point]], interval: int) -> list[tuple[Relation, float]]:
    ratios = [mine.value / yours.value for mine, yours in pairs]
    loose = [1e-4 + mine.half_unit / mine.value + yours.half_unit / yours.value for mine, yours in pairs]
    surest = min(range(len(pairs)), key=loose.__getitem__)
    ratio, slack = ratios[surest], loose[surest]
    found: list[tuple[Relation, float]] = []
    if _are(ratios, [ratio] * len(ratios), [slack + each for each in loose]):
        nearest = [float(whole) for whole in (interval, round(ratio)) if whole and abs(ratio / whole - 1) <= slack]
        found.append(("divided", nearest[0] if nearest else ratio))
    steps = [mine.step for mine, _ in pairs]
    since_line = [after - before for before, after in itertools.pairwise(steps)]
    if interval > 1:
        if _are(ratios, steps, loose) or _are(ratios, [step + 1 for step in steps], loose):
            found.append(("by_steps", 1.0))
        if _are(ratios[1:], since_line, loose[1:]) and _are(ratios[:1], [1 if steps[0] <= 1 else interval], loose):
            found.append(("by_steps_since_line", 1.0))
    return found


def _are(ratios: Sequence[float], expected: Sequence[float], loose: Sequence[float]) -> bool:
    return all(
        want > 0 and abs(ratio / want - 1) <= slack for ratio, want, slack in zip(ratios, expected, loose, strict=False)
    )


def _is_power(base: float, exponent: Point, power: Point) -> bool:
    slack = exponent.half_unit + power.half_unit / power.value / math.log(base) + 1e-4 * exponent.value
    return abs(math.log(power.value, base) - exponent.value) <= slack
