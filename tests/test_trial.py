"""Trials on a copy: `raylm lr-find`, and `raylm diagnose` that confirms what it finds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_runs import make_texts, tiny
from training_cases import attempt, said
from training_runner import call

from raylm.observe.run_folder import RunRecord, create_run_folder

Answer = tuple[int, str, str]


def commands(folder: Path) -> tuple[list[Answer], bool]:
    """A run at a rate far too high, and what commands say of it; whether the run's folder is as it was."""
    data, run = make_texts(folder), folder / "run"
    wrong = tiny(
        steps=24,
        schedule={"kind": "constant", "learning_rate": 3.0, "warmup_steps": 0},
        model={"dropout": 0.0},
        guard={"spike_warmup": 1000},
    )
    of_gpu = wrong.model_copy(update={"model": wrong.model.model_copy(update={"kernel": "cudnn"})})  # which is not here
    create_run_folder(
        run, RunRecord(of_gpu, "made", "", {split: str(data / split) for split in ("train", "valid", "test")})
    )
    assert attempt(wrong, data, run).mistake is None
    before = dict(_files(run))
    page = folder / "rates.html"
    start = run / "checkpoints" / "step-00000000"
    told = [
        said("diagnose", str(run), "--json", "--confirm", "60"),
        said("lr-find", "--from-checkpoint", str(start), "--updates", "40", "--json", "--output", str(page)),
        said("lr-find", "--from-checkpoint", str(start), "--lowest", "1", "--highest", "0.1"),
    ]
    return told, dict(_files(run)) == before and page.read_text().startswith("<!doctype html>")


def _files(run: Path) -> Iterator[tuple[str, bytes]]:
    return ((str(path), path.read_bytes()) for path in run.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Answer], bool]:
    found: tuple[list[Answer], bool] = call(commands, tmp_path_factory.mktemp("trials"))
    return found


def test_a_diagnosis_is_confirmed_by_updates_on_a_copy(told: tuple[list[Answer], bool]) -> None:
    code, out, _ = told[0][0]
    found = json.loads(out)
    assert (code, found["verdict"], found["findings"][0]["rule"]) == (1, "wrong", "worse than guessing")
    assert found["confirmed"] is True
    for words in ("Confirmed", "updates on a copy, from", "as it was", "schedule.learning_rate 0.001", "s, of 60)"):
        assert words in found["experiment"]


def test_a_rate_is_found_on_a_copy_of_a_checkpoint(told: tuple[list[Answer], bool]) -> None:
    code, out, _ = told[0][1]
    found = json.loads(out)
    assert code == 0
    assert 1e-3 <= found["suggested"] <= 0.5
    assert found["from"].endswith("step-00000000")
    rates = [each["learning_rate"] for each in found["tried"]]
    assert rates == sorted(rates)


def test_a_range_upside_down_is_refused(told: tuple[list[Answer], bool]) -> None:
    assert told[0][2] == (2, "", "raylm lr-find: --highest 0.1 must be above --lowest 1\n")


def test_no_trial_touches_the_run(told: tuple[list[Answer], bool]) -> None:
    assert told[1]
