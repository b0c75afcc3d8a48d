"""A run's file of another raylm is read by a stated rule; what differs between two configurations is told by key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raylm import __version__
from raylm.config import RunConfig
from raylm.errors import UserError
from raylm.observe.migration import differences
from raylm.observe.run_folder import NAME, RunRecord, read_record, write_record

RECORD = RunRecord(RunConfig(seed=7), "mine", "", dict.fromkeys(("train", "valid", "test"), "/data"))


def of_another(folder: Path, version: str | None, **changes: Any) -> Path:
    """A run's folder whose config.json has these keys more, and no `guard.ring`."""
    write_record(folder, RECORD)
    content = json.loads((folder / NAME).read_text())
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (content["config"].setdefault(section, {}) if section else content["config"])[name] = value
    del content["config"]["guard"]["ring"]
    content["versions"]["raylm"] = version
    (folder / NAME).write_text(json.dumps(content))
    return folder


def test_an_option_that_is_no_more_is_named_and_left_out(tmp_path: Path) -> None:
    said: list[str] = []
    of_another(tmp_path, "0.0.9", report__train_perplexity_steps=1000, colours={"of": "old"})
    assert read_record(tmp_path, said.append) == RECORD
    assert said == [
        "the run's report.train_perplexity_steps = 1000 is no option any more: left out",
        "the run's colours.of = 'old' is no option any more: left out",
    ]


@pytest.mark.parametrize("off", [None, False, 0, 0.0, "none", "", []])
def test_an_option_that_is_no_more_and_was_off_needs_no_word(tmp_path: Path, off: Any) -> None:
    assert read_record(of_another(tmp_path, "0.0.9", model__tied=off), pytest.fail) == RECORD


@pytest.mark.parametrize("key", ["model.tied", "data.shuffled"])
def test_an_option_that_the_run_depends_on_is_refused_by_name(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=rf"{key} = 0\.5 is no option .*depends on it.*started with \(0\.0\.9\)"):
        read_record(of_another(tmp_path, "0.0.9", **{key.replace(".", "__"): 0.5}))


@pytest.mark.parametrize("newer", ["99.0.0", f"{__version__}.1"])
def test_a_newer_raylm_s_file_asks_for_an_update(tmp_path: Path, newer: str) -> None:
    with pytest.raises(UserError, match=rf"config.json: .*raylm {newer} and has report.wow, .*update raylm"):
        read_record(of_another(tmp_path, newer, report__wow=0))


def test_a_newer_raylm_s_file_that_holds_nothing_new_is_read(tmp_path: Path) -> None:
    assert read_record(of_another(tmp_path, "99.0.0"), pytest.fail) == RECORD


@pytest.mark.parametrize("version", [None, "", "?"])
def test_a_file_of_no_known_version_is_read_as_an_older_one_s(tmp_path: Path, version: Any) -> None:
    said: list[str] = []
    assert read_record(of_another(tmp_path, version, wow=3), said.append) == RECORD
    assert len(said) == 1


def test_a_value_in_the_place_of_a_section_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: model: "):
        read_record(of_another(tmp_path, "0.0.9", model=3))


def test_differences_are_told_by_key_with_both_values() -> None:
    old = RunConfig(steps=100, cluster={"workers": 2}).model_dump(mode="json")
    new = RunConfig(steps=None, cluster={"workers": 2}, schedule={"learning_rate": 0.5}).model_dump(mode="json")
    assert differences(old, new) == {"steps": (100, None), "schedule.learning_rate": (1.0, 0.5)}


def test_an_option_that_the_older_configuration_lacks_had_its_default() -> None:
    assert differences({"colour": "red"}, RunConfig(epochs=3).model_dump(mode="json")) == {"epochs": (13, 3)}
