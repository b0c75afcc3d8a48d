"""The summary is whole or not there, reads back as it was written, and says what is wrong with a bad one."""

import json
from pathlib import Path

import pytest

from raylm.errors import UserError
from raylm.observe.summary import Summary, read_summary, steady_rate, write_summary

_SUMMARY = Summary(
    status="completed",
    reason="all steps done",
    steps=400,
    tokens=160_000,
    train_perplexity=200.5,
    valid_perplexity=float("inf"),
    tokens_per_second=12_345.6,
    rollbacks=1,
    state_sha256="ab" * 32,
)


def test_a_summary_reads_back_as_it_was_written_in_strict_json(tmp_path: Path) -> None:
    path = write_summary(tmp_path / "run", _SUMMARY)
    assert read_summary(tmp_path / "run") == _SUMMARY
    content = json.loads(path.read_text())
    assert content["valid_perplexity"] == "inf"
    assert content["test_perplexity"] is None
    assert [file.name for file in path.parent.iterdir()] == ["summary.json"]


def test_a_later_summary_replaces_the_earlier(tmp_path: Path) -> None:
    write_summary(tmp_path, Summary("interrupted", "Ctrl-C", 10, 100))
    write_summary(tmp_path, _SUMMARY)
    assert read_summary(tmp_path) == _SUMMARY


def test_a_summary_of_a_newer_version_is_read_as_far_as_it_is_known() -> None:
    assert Summary.from_json({**_SUMMARY.to_json(), "bits_per_character": 1.2}) == _SUMMARY


def test_an_unknown_status_is_refused() -> None:
    with pytest.raises(ValueError, match="status 'done' is none of completed, failed, interrupted"):
        Summary("done", "", 1, 1)


@pytest.mark.parametrize("bad", ["", "[]", "3", '"text"', "{}", '{"status": "completed"}', '{"status": "x"}'])
def test_a_damaged_summary_is_named(tmp_path: Path, bad: str) -> None:
    (tmp_path / "summary.json").write_text(bad)
    with pytest.raises(UserError, match=r"summary.json is not a run's summary"):
        read_summary(tmp_path)


def test_a_run_without_a_summary_has_not_ended(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no summary.json: the run goes on, or was killed"):
        read_summary(tmp_path)
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*Is a directory"):
        read_summary(tmp_path)


def test_a_summary_that_cannot_be_written_is_one_clear_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*summary.json"):
        write_summary(tmp_path, _SUMMARY)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize(
    ("rates", "median"),
    [
        ([], None),
        ([None], None),
        ([100.0], 100.0),
        ([1.0, 100.0, 102.0, None], 101.0),
        ([1.0] * 3 + [100.0] * 27, 100.0),
    ],
)
def test_the_rate_is_the_median_without_the_warm_up(rates: list[float | None], median: float | None) -> None:
    assert steady_rate(rates) == median


def test_a_run_folder_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_summary(tmp_path / "run", _SUMMARY)
