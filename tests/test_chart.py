"""Curves of braille dots."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as some

from raylm.observe.chart import Level, chart


def test_a_falling_line_is_drawn_from_the_upper_left_to_the_lower_right() -> None:
    rows = chart([(0, 4.0), (10, 0.0)], [], 4, 4)

    assert rows[0].drawn[0] != " "
    assert rows[-1].drawn[-1] != " "
    assert rows[0].drawn[-1] == rows[-1].drawn[0] == " "


def test_levels_stand_where_they_belong_and_far_ones_are_left_out() -> None:
    points = [(step, 5.0 - step / 100) for step in range(100)]
    rows = chart(points, [Level(5.0, "top"), Level(4.0, "bottom"), Level(50.0, "far")], 20, 5)
    assert [row.label for row in rows] == ["top", "", "", "", "bottom"]
    assert rows[0].drawn.endswith("┄┄┄┄")


def test_of_two_levels_in_a_row_the_first_is_named() -> None:
    rows = chart([(0, 0.0), (1, 10.0)], [Level(5.0, "first"), Level(5.01, "second")], 20, 3)
    assert [row.label for row in rows] == ["", "first", ""]


@given(
    some.lists(some.tuples(some.floats(0, 1e6), some.floats(-1e6, 1e6)), max_size=50).map(sorted),
    some.integers(0, 120),
    some.integers(0, 20),
)
def test_any_points_fit_the_room(points: list[tuple[float, float]], width: int, height: int) -> None:
    rows = chart(points, [Level(math.e, "e")], width, height)
    assert len(rows) in (0, height)
    assert all(len(row.drawn) == width for row in rows)
    assert not points or width < 4 or height < 2 or any(row.drawn.strip(" ┄") for row in rows)
