"""Several updates in one call are those of calls of their own, and nothing is traced again once it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import events, make_texts, tiny
from training_cases import attempt, traces
from training_runner import Call, answers

from raylm.training.several import most_together

FAULT: dict[str, Any] = {"drill": ("nan-loss@8", "nan-gradient@17"), "report": {"signals": True}}


def test_updates_made_together_are_those_made_one_by_one_faults_and_all(tmp_path: Path) -> None:
    data = make_texts(tmp_path)
    folders = [tmp_path / "one", tmp_path / "five"]
    calls = [
        Call(attempt, tiny(**FAULT, steps_per_call=together), data, folder, 2)
        for together, folder in zip((1, 5), folders, strict=True)
    ]
    ends = [told.summary for told in answers(calls)]
    assert [end.rollbacks for end in ends] == [2, 2]
    assert len({end.state_sha256 for end in ends}) == 1
    one, five = (
        [
            [event[key] for key in ("step", "position", "loss", "gradient_norm", "signals")]
            for event in events(folder, "step")
        ]
        for folder in folders
    )
    assert one == five


@pytest.mark.parametrize(("changes", "signals"), [({"steps_per_call": 3}, True), ({"data": {"jitter": True}}, False)])
def test_nothing_is_traced_again_after_the_first_epoch(tmp_path: Path, changes: dict[str, Any], signals: bool) -> None:
    report = {"sample_every": 10, "sample_words": 4, "signals": signals}
    config = tiny(**changes, epochs=3, report=report)
    (counts,) = answers([Call(traces, config, make_texts(tmp_path), tmp_path / "run")])
    after_the_first = [count for epoch, count in counts if epoch > 0]
    assert len(after_the_first) > 10
    assert len(set(after_the_first)) == 1
    assert after_the_first[0] > 3


def test_where_the_host_has_something_to_do_between_updates_each_has_a_call_of_its_own() -> None:
    assert most_together(tiny(steps_per_call=4)) == 4
    for changes in (
        {"data": {"jitter": True}},
        {"drill": ("nan-weight@3",)},
        {"drill": ("kill-worker@3",)},
        {"optimizer": {"averaging": "always"}},
    ):
        assert most_together(tiny(steps_per_call=4, **changes)) == 1
