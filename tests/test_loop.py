"""The training loop without Ray: what a run leaves behind, and ends that do not depend on the way there."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import FIGURES, LANES, WINDOW, WORDS, begin_without, end_of, events, make_texts, tiny
from training_cases import Attempt, attempt, attempt_on_a_full_disk, attempts, mistakes
from training_runner import Call, Killed, answers, call

from raylm.checkpoint.snapshot import state_sha256
from raylm.checkpoint.store import CheckpointStore
from raylm.config import RunConfig
from raylm.data.dataset import open_dataset
from raylm.observe.events import read_events
from raylm.observe.summary import read_summary
from raylm.training.datasets import open_source
from raylm.training.topology import Topology


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_texts(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Attempt]:
    """A run of `tiny()` from its start to its end, with samples and signals; other runs here have none."""
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, call(attempt, tiny(report={"sample_every": 10, "sample_words": 4, "signals": True}), data, folder)


# What a run leaves behind


def test_a_run_completes_with_its_figures(data: Path, unbroken: tuple[Path, Attempt]) -> None:
    folder, told = unbroken
    summary = read_summary(folder)
    assert summary == told.summary
    assert (summary.status, summary.steps, summary.rollbacks, summary.resumes) == ("completed", 24, 0, 0)
    assert summary.tokens == 2 * (open_dataset(data / "train").tokens - 1)
    assert summary.recipe == "tiny"
    assert summary.uniform_nats == pytest.approx(math.log(WORDS))
    for perplexity in (summary.train_perplexity, summary.valid_perplexity, summary.test_perplexity):
        assert perplexity is not None
        assert 1 < perplexity < WORDS
    assert summary.tokens_per_second is not None
    assert summary.tokens_per_second > 0


def test_the_summary_s_digest_is_of_the_last_checkpoint(unbroken: tuple[Path, Attempt]) -> None:
    folder, _ = unbroken
    assert read_summary(folder).state_sha256 == state_sha256(end_of(folder))
    assert end_of(folder).step == 24


def test_signals_are_told_with_every_step(unbroken: tuple[Path, Attempt]) -> None:
    told = [event["signals"] for event in events(unbroken[0], "step")]
    assert len(told) == 24
    assert all(signals and signals.keys() == told[0].keys() for signals in told)


def test_every_event_says_what_when_and_where(unbroken: tuple[Path, Attempt]) -> None:
    lines = [json.loads(line) for line in (unbroken[0] / "events.jsonl").read_text().splitlines()]
    assert all({"kind", "step", "position", "time"} <= set(line) for line in lines)
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    assert (lines[0]["kind"], lines[-1]["kind"]) == ("start", "end")
    assert (lines[0]["kernel"], lines[0]["kernel_reason"]) == ("fused", "TensorFlow sees no GPU")
    assert (lines[-1]["status"], lines[-1]["step"]) == ("completed", 24)
    counts = Counter(line["kind"] for line in lines)
    assert {kind: counts[kind] for kind in ("start", "step", "eval", "sample", "end", "incident", "rollback")} == {
        "start": 1,
        "step": 24,
        "eval": 3,
        "sample": 3,
        "end": 1,
        "incident": 0,
        "rollback": 0,
    }


def test_step_events_tell_the_window_the_rate_and_a_finite_loss(unbroken: tuple[Path, Attempt]) -> None:
    steps = events(unbroken[0], "step")
    assert [(event["step"], event["position"]) for event in steps] == [(n + 1, n) for n in range(24)]
    assert [event["epoch"] for event in steps] == [0] * 12 + [1] * 12
    assert [event["learning_rate"] for event in steps[:3]] == pytest.approx([0.02 / 3, 0.04 / 3, 0.02])
    assert all(math.isfinite(event["loss"]) and event["gradient_norm"] > 0 for event in steps)
    assert steps[0]["loss"] == pytest.approx(math.log(WORDS), abs=0.2)


def test_evaluations_come_after_each_epoch_and_of_the_test_text_at_the_end(
    data: Path, unbroken: tuple[Path, Attempt]
) -> None:
    found = [(event["split"], event["step"], event["tokens"]) for event in events(unbroken[0], "eval")]
    valid, test = (open_dataset(data / split).tokens - 1 for split in ("valid", "test"))
    assert found == [("valid", 12, valid), ("valid", 24, valid), ("test", 24, test)]


def test_samples_come_every_so_often_and_at_the_end(unbroken: tuple[Path, Attempt]) -> None:
    samples = events(unbroken[0], "sample")
    assert [event["step"] for event in samples] == [10, 20, 24]
    assert [len(event["text"].split()) for event in samples] == [4, 4, 4]
    assert all(event["prompt"] == "the company said" for event in samples)


def test_checkpoints_come_at_the_start_every_so_often_at_epochs_and_at_the_end(
    unbroken: tuple[Path, Attempt],
) -> None:
    checkpoints = CheckpointStore(unbroken[0] / "checkpoints").verify_all()
    assert [info.step for info in checkpoints] == [0, 7, 12, 14, 21, 24]
    assert all(info.complete and info.problem is None for info in checkpoints)
    assert [event["step"] for event in events(unbroken[0], "checkpoint")] == [0, 7, 12, 14, 21, 24]


def test_the_world_hears_every_event_in_order_and_the_figures_at_each_evaluation(
    unbroken: tuple[Path, Attempt],
) -> None:
    folder, told = unbroken
    heard = [event for event in told.published if event["kind"] not in ("wait", "note")]
    assert [(event["kind"], event["step"]) for event in heard] == [
        (event["kind"], event["step"]) for event in read_events(folder)
    ]
    assert [event["what"] for event in told.published if event["kind"] == "wait"][:2] == [
        "building the model",
        "compiling the step",
    ]
    assert len(told.reports) == 2
    for metrics, path in told.reports:
        assert metrics["valid_perplexity"] > 1
        assert path is not None
        assert Path(path).parent == folder / "checkpoints"


def test_the_run_folder_has_a_tensorboard(unbroken: tuple[Path, Attempt]) -> None:
    assert any(path.stat().st_size for path in (unbroken[0] / "tensorboard").iterdir())


def test_a_jittered_window_is_trained_on_as_one_of_its_length_at_that_share_of_the_learning_rate(
    data: Path, tmp_path: Path
) -> None:
    def one_update(window: dict[str, Any], learning_rate: float) -> RunConfig:
        schedule = {"kind": "constant", "warmup_steps": 0, "learning_rate": learning_rate}
        return tiny(steps=1, seed=4, data=window, optimizer={"name": "sgd", "clip_norm": None}, schedule=schedule)

    jittered = one_update({"jitter": True}, 2.0)
    source = open_source(jittered, open_dataset(data / "train"), Topology(0, 1, 1, LANES))
    length = source.read(source.start())[0].length
    assert length != WINDOW
    alike = one_update({"window": length}, 2.0 * length / WINDOW)
    answers([Call(attempt, jittered, data, tmp_path / "jittered"), Call(attempt, alike, data, tmp_path / "alike")])
    found, wanted = (end_of(tmp_path / name) for name in ("jittered", "alike"))
    for section in ("weights", "carry"):
        for name, value in getattr(wanted, section).items():
            np.testing.assert_allclose(getattr(found, section)[name], value, atol=1e-6, err_msg=name)
    assert events(tmp_path / "jittered", "step")[0]["learning_rate"] == 2.0 * length / WINDOW


# Interruptions


@pytest.fixture(scope="module")
def interrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Attempt]]:
    """The same run, interrupted again and again: twice within an epoch, at its end, in the next one; resumed when it
    was over, too."""
    folder = tmp_path_factory.mktemp("interrupted")
    return folder, call(attempts, tiny(), data, folder, [0, 1, 3, 2, None, None])


def test_an_interrupted_run_says_so_and_saves_where_it_stopped(interrupted: tuple[Path, list[Attempt]]) -> None:
    folder, told = interrupted
    stops = [each.summary.steps for each in told[:-1]]
    assert [each.summary and each.summary.status for each in told] == ["interrupted"] * 4 + ["completed"] * 2
    assert stops == sorted(set(stops))
    assert sum(stop < 12 for stop in stops) >= 2
    assert sum(12 < stop < 24 for stop in stops) >= 1
    assert set(stops) <= {info.step for info in CheckpointStore(folder / "checkpoints").list()}
    assert [event["step"] for event in events(folder, "resume")] == stops
    assert [event["status"] for event in events(folder, "end")] == ["interrupted"] * 4 + ["completed"] * 2


def test_an_interrupted_run_ends_in_the_state_of_the_unbroken_one(
    unbroken: tuple[Path, Attempt], interrupted: tuple[Path, list[Attempt]]
) -> None:
    """Bit for bit, with dropout and Adam, and with the same figures."""
    wanted, found = read_summary(unbroken[0]), interrupted[1][4].summary
    assert found.state_sha256 == wanted.state_sha256
    assert found.resumes == 4
    for name in FIGURES:
        assert getattr(found, name) == getattr(wanted, name), name


def test_an_interrupted_run_takes_each_window_once(interrupted: tuple[Path, list[Attempt]]) -> None:
    assert [event["position"] for event in events(interrupted[0], "step")] == list(range(24))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(3))
def test_a_run_interrupted_after_every_step_ends_in_the_same_state(
    data: Path, tmp_path: Path, unbroken: tuple[Path, Attempt], first: int
) -> None:
    told = call(attempts, tiny(), data, tmp_path, [first, *([0] * 30)])
    assert told[-1].summary.status == "completed"
    assert told[-1].summary.state_sha256 == read_summary(unbroken[0]).state_sha256


def test_a_completed_run_that_is_resumed_stays_as_it_is(interrupted: tuple[Path, list[Attempt]]) -> None:
    *_, completed, again = (each.summary for each in interrupted[1])
    assert (again.status, again.steps, again.tokens) == ("completed", completed.steps, completed.tokens)
    assert again.state_sha256 == completed.state_sha256


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    data: Path, tmp_path: Path, unbroken: tuple[Path, Attempt]
) -> None:
    shutil.copytree(unbroken[0] / "checkpoints", tmp_path / "checkpoints")
    weights = tmp_path / "checkpoints" / "step-00000024" / "model.safetensors"
    spoiled = bytearray(weights.read_bytes())
    spoiled[-1] ^= 1
    weights.write_bytes(spoiled)
    told = call(attempt, tiny(), data, tmp_path)
    assert any("step-00000024" in event["text"] for event in told.published if event["kind"] == "note")
    assert [event["step"] for event in events(tmp_path, "resume")] == [21]
    assert told.summary.state_sha256 == read_summary(unbroken[0]).state_sha256


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(
    data: Path, tmp_path: Path, unbroken: tuple[Path, Attempt]
) -> None:
    others = {
        "embedding": tiny(model={"hidden": 4}),
        "embedding/first": tiny(optimizer={"name": "sgd"}),
        "seed": tiny(seed=1),
        "window": tiny(data={"window": WINDOW + 1}),
        "lanes": tiny(data={"lanes": LANES - 1}),
    }
    shutil.copytree(unbroken[0] / "checkpoints", tmp_path / "checkpoints")
    said = call(mistakes, list(others.values()), data, tmp_path)
    for word, mistake in zip(others, said, strict=True):
        assert mistake is not None
        assert word in mistake
        assert "\n" not in mistake


# Kills


def test_a_killed_worker_s_run_goes_on_to_the_same_state(
    data: Path, tmp_path: Path, unbroken: tuple[Path, Attempt]
) -> None:
    """The drill kills once: the mark that it leaves keeps it from coming back."""
    config = tiny(drill=("kill-worker@9",))
    with pytest.raises(Killed) as killed:
        call(attempt, config, data, tmp_path)
    assert killed.value.exitcode == -signal.SIGKILL
    assert end_of(tmp_path).step in (0, 7)  # it was being written behind the training's back
    summary = call(attempt, config, data, tmp_path).summary
    assert (summary.status, summary.steps, summary.resumes) == ("completed", 24, 1)
    assert summary.state_sha256 == read_summary(unbroken[0]).state_sha256


def test_a_run_killed_from_outside_goes_on_to_the_same_state(
    data: Path, tmp_path: Path, unbroken: tuple[Path, Attempt]
) -> None:
    run = Call(attempt, tiny(), data, tmp_path)
    log = tmp_path / "events.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and any(event["step"] > 15 for event in read_events(tmp_path))):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    run.kill()
    with log.open("ab") as torn:
        torn.write(b'{"kind": "step", "st')
    summary = call(attempt, tiny(), data, tmp_path).summary
    assert summary.state_sha256 == read_summary(unbroken[0]).state_sha256
    assert (summary.steps, summary.tokens) == (24, read_summary(unbroken[0]).tokens)


# Windows left out, disks that are full


def test_epochs_whose_first_or_last_windows_are_left_out_are_evaluated_all_the_same(
    data: Path, tmp_path: Path, unbroken: tuple[Path, Attempt]
) -> None:
    begin_without(tiny(), data, tmp_path, unbroken[0], [(10, 14), (23, 24)])
    summary = call(attempt, tiny(), data, tmp_path).summary
    assert (summary.status, summary.steps) == ("completed", 24 - 5)
    assert [(event["split"], event["step"]) for event in events(tmp_path, "eval")] == [
        ("valid", 10),
        ("valid", 19),
        ("test", 19),
    ]
    positions = [event["position"] for event in events(tmp_path, "step")]
    assert positions == [*range(10), *range(14, 23)]


def test_a_full_disk_costs_checkpoints_and_not_the_run(
    data: Path, tmp_path: Path, unbroken: tuple[Path, Attempt]
) -> None:
    told = call(attempt_on_a_full_disk, tiny(), data, tmp_path, 2000)
    assert told.mistake is None
    assert told.summary.state_sha256 == read_summary(unbroken[0]).state_sha256
    assert list(CheckpointStore(tmp_path / "checkpoints").list()) == []
