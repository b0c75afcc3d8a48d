"""A curve drawn with braille dots (two across and four down in a character), with lines to hold it against."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of Unicode's braille patterns, by row and column
_LEAST_SPAN = 0.05

LEVEL = "┄"
"""What a level is drawn with, where no dot stands."""


@dataclass(frozen=True)
class Level:
    """A horizontal line at a value, with its label."""

    value: float
    label: str


@dataclass(frozen=True)
class Row:
    """One line of a chart: what is drawn, and the label of the level that lies there."""

    drawn: str
    label: str = ""


def chart(points: Sequence[tuple[float, float]], levels: Sequence[Level], width: int, height: int) -> list[Row]:
    """`height` rows, the highest value first, of `width` characters and the levels' labels beside them.

    The points, (x, y) with rising x, are averaged over the dots' columns; levels far from all points are left out, as
    are labels where another one stands. Empty where nothing can be drawn.
    """
    if not points or width < 4 or height < 2:
        return []
    values = [y for _, y in points]
    reach = 0.5 * (max(values) - min(values) + 1)
    near = [each for each in levels if min(values) - reach <= each.value <= max(values) + reach]
    top = max([*values, *(each.value for each in near)])
    bottom = min([*values, *(each.value for each in near)])
    if top - bottom < _LEAST_SPAN:
        top, bottom = top + _LEAST_SPAN, bottom - _LEAST_SPAN
    dots = 4 * height - 1

    def at(value: float) -> int:
        return round((top - value) / (top - bottom) * dots)

    cells = [[0] * width for _ in range(height)]
    before: int | None = None
    for column, value in enumerate(_columns(points, 2 * width)):
        if value is None:
            continue
        dot = at(value)
        low, high = (dot, dot) if before is None else sorted((dot, before + (dot > before) - (dot < before)))
        for row in range(low, high + 1):
            cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
        before = dot
    labels: dict[int, str] = {}
    for each in near:
        labels.setdefault(at(each.value) // 4, each.label)
    return [
        Row("".join(_cell(cell, row in labels) for cell in line), labels.get(row, "")) for row, line in enumerate(cells)
    ]


def spark(points: Sequence[tuple[float, float]], width: int) -> str:
    """A curve in one line of at most `width` blocks, from its lowest value to its highest."""
    if not points:
        return ""
    values = [value for value in _columns(points, min(width, len(points))) if value is not None]
    low, high = min(values), max(values)
    return "".join(_BLOCKS[int((value - low) / (high - low) * 7.999)] if high > low else _BLOCKS[3] for value in values)


_BLOCKS = "▁▂▃▄▅▆▇█"


def _cell(dots: int, level: bool) -> str:
    return chr(0x2800 + dots) if dots else LEVEL if level else " "


def _columns(points: Sequence[tuple[float, float]], columns: int) -> list[float | None]:
    """The mean of the points in each column; between points far apart, the straight line."""
    first, last = points[0][0], points[-1][0]
    scale = (columns - 1) / (last - first) if last > first else 0.0
    sums: dict[int, tuple[float, int]] = {}
    for x, y in points:
        total, count = sums.get(round((x - first) * scale), (0.0, 0))
        sums[round((x - first) * scale)] = (total + y, count + 1)
    means = {column: total / count for column, (total, count) in sorted(sums.items())}
    drawn: list[float | None] = [None] * columns
    known = list(means.items())
    for column, mean in known:
        drawn[column] = mean
    for (start, low), (stop, high) in itertools.pairwise(known):
        for column in range(start + 1, stop):
            drawn[column] = low + (high - low) * (column - start) / (stop - start)
    return drawn
