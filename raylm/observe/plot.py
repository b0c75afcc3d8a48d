"""Curves as SVG, drawn by hand: no library, no script, colours by class so that a page's style sets them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from raylm.observe.figures import compact

Points = Sequence[tuple[float, float]]

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 26


@dataclass(frozen=True)
class Series:
    """A curve: its class (`c0` to `c5` for colours, `undone`), and dots on its points where it has few."""

    points: Points
    style: str
    dots: bool = False


@dataclass(frozen=True)
class Flag:
    """A vertical line at a step, with the text that a pointer on it shows."""

    step: int
    style: str
    text: str


@dataclass(frozen=True)
class Level:
    """A horizontal line at a value, with its label."""

    value: float
    label: str


@dataclass(frozen=True)
class Plot:
    """What is drawn: curves over steps, with lines across."""

    series: Sequence[Series]
    levels: Sequence[Level] = ()
    flags: Sequence[Flag] = ()
    logarithmic: bool = False
    last_step: int = 1


def svg(plot: Plot, width: int, height: int) -> str:
    """The plot in a view box of that size; empty where no curve has a point."""
    values = [y for each in plot.series for _, y in each.points if y > 0 or not plot.logarithmic]
    if not values:
        return ""
    frame = _Frame(plot, values, width, height)
    parts = [f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" {frame.data()}>']
    parts += _axes(frame)
    for flag in plot.flags:
        x = frame.x(flag.step)
        parts.append(
            f'<g class="flag {flag.style}"><title>{escape(flag.text)}</title>'
            f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{frame.floor}"/>'
            f'<path d="M{x - 4:.1f} {_TOP - 6}h8l-4 7z"/></g>'
        )
    for series in plot.series:
        parts += _curve(frame, series)
    parts += _levels(frame)
    return "".join([*parts, '<line class="cross" y1="10" y2="10"/></svg>'])


class _Frame:
    """Where values lie in the view box."""

    def __init__(self, plot: Plot, values: Sequence[float], width: int, height: int) -> None:
        self.plot, self.width, self.floor = plot, width, height - _BOTTOM
        near = [
            each.value for each in plot.levels if each.value <= 1.2 * max(values) and each.value >= 0.6 * min(values)
        ]
        self.levels = [each for each in plot.levels if each.value in near]
        low, high = min([*values, *near]), max([*values, *near])
        self.low, self.high = self._scaled(low), self._scaled(high)
        margin = 0.04 * (self.high - self.low) or 0.05 * abs(self.high) or 0.5
        self.low, self.high = self.low - margin, self.high + margin
        self.last = max(1, plot.last_step)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.plot.logarithmic else value

    def x(self, step: float) -> float:
        return _LEFT + step / self.last * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return self.floor - (self._scaled(value) - self.low) / (self.high - self.low) * (self.floor - _TOP)

    def free_on_the_left(self, level: Level) -> bool:
        """Whether the curves' beginnings are further from a level than their ends are."""
        ends = [(each.points[0][1], each.points[-1][1]) for each in self.plot.series if len(each.points) > 1]
        far = [min((abs(end[side] - level.value) for end in ends), default=0.0) for side in (0, 1)]
        return far[0] > far[1]

    def data(self) -> str:
        """What a script needs to find a step under a pointer."""
        return (
            f'data-left="{_LEFT}" data-right="{self.width - _RIGHT}" data-last="{self.last}" data-floor="{self.floor}"'
        )

    def ticks(self) -> list[float]:
        if not self.plot.logarithmic:
            return nice_ticks(self.low, self.high, max(2, (self.floor - _TOP) // 45))
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        every = (1, 2, 5) if len(decades) < 5 else (1,)
        ticks = [factor * 10.0**exponent for exponent in decades for factor in every]
        return [tick for tick in ticks if self.low <= math.log10(tick) <= self.high]


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round values between two bounds, about so many: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _axes(frame: _Frame) -> list[str]:
    parts = ['<g class="axes">']
    for tick in frame.ticks():
        y = frame.y(tick)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{frame.width - _RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in nice_ticks(0, frame.last, max(2, frame.width // 110)):
        if tick == int(tick):
            anchor = "start" if tick == 0 else "end" if tick > 0.96 * frame.last else "middle"
            parts.append(
                f'<text x="{frame.x(tick):.1f}" y="{frame.floor + 18}" text-anchor="{anchor}">{int(tick):,}</text>'
            )
    return [*parts, "</g>"]


def _levels(frame: _Frame) -> list[str]:
    parts: list[str] = []
    taken: list[float] = []
    for level in frame.levels:
        y = frame.y(level.value)
        parts.append(f'<line class="level" x1="{_LEFT}" y1="{y:.1f}" x2="{frame.width - _RIGHT}" y2="{y:.1f}"/>')
        if all(abs(y - other) > 12 for other in taken):
            taken.append(y)
            above = y - 4 if y > _TOP + 14 else y + 12
            x, anchor = (_LEFT + 4, "start") if frame.free_on_the_left(level) else (frame.width - _RIGHT - 2, "end")
            parts.append(
                f'<text class="level" x="{x}" y="{above:.1f}" text-anchor="{anchor}">{escape(level.label)}</text>'
            )
    return parts


def _curve(frame: _Frame, series: Series) -> list[str]:
    points = [point for point in thinned(series.points, frame.width) if point[1] > 0 or not frame.plot.logarithmic]
    if not points:
        return []
    places = [f"{frame.x(step):.1f} {frame.y(value):.1f}" for step, value in points]
    parts = [f'<path class="curve {series.style}" d="M{"L".join(places)}"/>'] if len(places) > 1 else []
    if series.dots or len(places) == 1:
        parts += [
            f'<circle class="{series.style}" cx="{x}" cy="{y}" r="3.5"/>'
            for x, y in (place.split() for place in places)
        ]
    return parts


def thinned(points: Points, most: int) -> list[tuple[float, float]]:
    """At most about so many points: means of as many neighbours each, the first and the last point as they are."""
    size = math.ceil(len(points) / max(2, most))
    if size <= 1:
        return list(points)
    groups = [points[start : start + size] for start in range(1, len(points) - 1, size)]
    means = [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
    return [points[0], *means, points[-1]]


def _short(value: float) -> str:
    """`9`, `0.25`, `12k`, `1.5M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return compact(value)
