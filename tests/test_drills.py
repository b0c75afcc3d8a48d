"""Drills: what a user may ask for, and when it strikes."""

from __future__ import annotations

import math

import pytest

from raylm.errors import UserError
from raylm.guard.drills import KINDS, Drill, due, parse_drills


@pytest.mark.parametrize("kind", KINDS)
def test_every_listed_drill_is_accepted_and_says_itself(kind: str) -> None:
    assert str(parse_drills([f"{kind}@120"])[0]) == f"{kind}@120"


def test_where_a_drill_strikes_is_read_and_said() -> None:
    (drill,) = parse_drills(["neginf-logits@7:sticky,replica=1,lane=3"])
    assert drill == Drill("neginf-logits", 7, sticky=True, replica=1, lane=3)
    assert (drill.site, drill.value, str(drill)) == ("logits", -math.inf, "neginf-logits@7:sticky,replica=1,lane=3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nan-los@1", "did you mean nan-loss"),
        ("nan-loss", "needs the step"),
        ("nan-loss@x", "needs the step"),
        ("nan-loss@1:often", "there are sticky, replica=N and lane=N"),
        ("nan-loss@1:lane=2", "belongs to no lane"),
        ("kill-worker@1:sticky", "strikes the last worker once"),
    ],
)
def test_a_drill_that_is_none_is_refused_with_what_there_is(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_drills([text])


def test_a_drill_strikes_once_at_its_step_and_a_sticky_one_whenever_its_window_is_read() -> None:
    drills = parse_drills(["nan-loss@5", "nan-logits@5:sticky"])
    assert due(drills, step=5, position=9, fired=()) == drills[0]
    assert due(drills, step=5, position=9, fired=("nan-loss@5",)) is None
    assert due(drills, step=3, position=5, fired=("nan-logits@5:sticky",)) == drills[1]
