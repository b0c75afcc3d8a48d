"""A range test of the learning rate: what the losses at rising rates say, as a figure, a chart and a page.

Smith 2017 (arXiv:1506.01186, section 3.3): train some updates while the rate rises, and look where the loss falls and
where it begins to rise. The losses are smoothed as Gugger 2018 does (fast.ai, "How do you find a good learning rate").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raylm.observe.chart import Level, chart
from raylm.observe.figures import compact, nats

_DECAY = 0.9
_LEAST_FALL = 0.05
_MARGIN = 3.0

Tried = Sequence[tuple[float, float]]
"""Learning rates, rising, and the loss in nats a token before each update; the last may be no number."""


@dataclass(frozen=True)
class Suggestion:
    """rate: None where the losses name none. lowest, steepest: the rates where the smoothed loss is least and falls
    fastest."""

    rate: float | None
    why: str
    steepest: float | None = None
    lowest: float | None = None


def smoothed(tried: Tried) -> list[tuple[float, float]]:
    """Rates and the decaying mean of the losses up to each, without those that are no numbers."""
    mean, points = 0.0, []
    for count, (rate, loss) in enumerate(((rate, loss) for rate, loss in tried if math.isfinite(loss)), start=1):
        mean = _DECAY * mean + (1 - _DECAY) * loss
        points.append((rate, mean / (1 - _DECAY**count)))
    return points


def diverges(tried: Tried) -> bool:
    """Whether there is no sense in a higher rate: the last loss is no number, or a nat above the best."""
    points = smoothed(tried)
    return not math.isfinite(tried[-1][1]) or points[-1][1] > min(loss for _, loss in points) + 1.0


def suggest(tried: Tried) -> Suggestion:
    """The rate at which the loss falls fastest, at most a third of that where it is lowest."""
    points = smoothed(tried)
    if len(points) < 10:
        return Suggestion(None, f"Only {len(points)} updates had a loss: give more time, or a lower --lowest.")
    place = min(range(len(points)), key=lambda index: points[index][1])
    lowest, least = points[place]
    if points[0][1] - least < _LEAST_FALL:
        return Suggestion(None, f"The loss does not fall from {nats(points[0][1])} at any rate: give a wider range.")
    steepest = points[max(range(1, place + 1), key=lambda index: _fall(points, index, place))][0]
    rate = float(f"{min(steepest, lowest / _MARGIN):.1g}")
    ends = "and rises above it" if place < len(points) - 1 else "the highest that was tried"
    why = (
        f"The loss falls fastest at {compact(_round(steepest))} and is lowest, {nats(least)}, at "
        f"{compact(_round(lowest))}, {ends}; a third of that leaves room for steps that are worse than the mean."
    )
    return Suggestion(rate, why, steepest, lowest)


def _fall(points: Sequence[tuple[float, float]], index: int, last: int) -> float:
    """How much the loss falls around a point, for each factor of e in the rate."""
    before, after = points[max(0, index - 3)], points[min(last, index + 3)]
    return (before[1] - after[1]) / math.log(after[0] / before[0])


def _round(value: float) -> float:
    return float(f"{value:.2g}")


def drawn(tried: Tried, found: Suggestion, guessing: float, width: int, height: int) -> list[str]:
    """The smoothed loss against the rate's logarithm, with the suggested rate marked below."""
    points = [(math.log10(rate), loss) for rate, loss in smoothed(tried)]
    inner = max(20, width - 20)
    lines = [f"{row.drawn} {row.label}".rstrip() for row in chart(points, [Level(guessing, "guessing")], inner, height)]
    if len(points) < 2:
        return lines
    first, last = points[0][0], points[-1][0]

    def column(exponent: float) -> int:
        return round((exponent - first) / (last - first) * (inner - 1))

    if found.rate is not None and first <= math.log10(found.rate) <= last:
        lines.append(" " * column(math.log10(found.rate)) + f"▲ {compact(found.rate)}")
    axis = [" "] * (inner + 8)
    for exponent in range(math.ceil(first), math.floor(last) + 1):
        label = f"{10.0**exponent:g}"
        axis[column(exponent) : column(exponent) + len(label)] = label
    return [*lines, "".join(axis).rstrip()]


def document(tried: Tried, found: Suggestion, place: str) -> Mapping[str, object]:
    """All of it as JSON's own types, but for losses that are no numbers."""
    return {
        "from": place,
        "suggested": found.rate,
        "why": found.why,
        "steepest": found.steepest,
        "lowest": found.lowest,
        "tried": [{"learning_rate": rate, "loss": loss} for rate, loss in tried],
    }
