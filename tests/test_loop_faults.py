"""Faults in the training loop: undone as if they had never been, or the end of the run, and never stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_runs import FIGURES, WINDOW, begin_without, digest, events, make_texts, tiny
from training_cases import attempt, attempts
from training_runner import call

from raylm.checkpoint.store import CheckpointStore


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_texts(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("drills", "stop"),
    [(("nan-loss@16",), 20), (("nan-gradient@0", "nan-loss@11", "nan-gradient@11", "nan-loss@20"), 6)],
    ids=["one, stopped while it is computed again", "several, at the start and at an epoch's end"],
)
def test_a_fault_and_its_recovery_equal_a_clean_run_that_leaves_out_the_same_windows(
    data: Path, tmp_path: Path, drills: tuple[str, ...], stop: int
) -> None:
    """Bit for bit: weights, slots, carry and cursor; an interruption in between makes no difference."""
    config, clean = tiny(drill=drills), tiny()
    stopped, ended = call(attempts, config, data, tmp_path / "drilled", [stop, None])
    assert [event["step"] for event in events(tmp_path / "drilled", "resume")] == [stopped.summary.steps]
    summary = ended.summary
    assert (summary.status, summary.rollbacks >= len(drills)) == ("completed", True)
    assert len(events(tmp_path / "drilled", "incident")) >= len(drills)
    skips = [event["skip"] for event in events(tmp_path / "drilled", "rollback") if event.get("skip")]
    begin_without(clean, data, tmp_path / "clean", tmp_path / "drilled", [tuple(skip) for skip in skips])
    wanted = call(attempt, clean, data, tmp_path / "clean").summary
    assert digest(tmp_path / "drilled") == digest(tmp_path / "clean")
    for name in FIGURES:
        assert getattr(summary, name) == getattr(wanted, name), name


def test_a_run_that_only_diverges_ends_with_its_verdict_and_stores_nothing_that_is_not_finite(
    data: Path, tmp_path: Path
) -> None:
    config = tiny(
        model={"dropout": 0.0},
        optimizer={"name": "sgd", "clip_norm": None, "loss_scale": "token_mean"},
        schedule={"kind": "constant", "learning_rate": 3e38, "warmup_steps": 0},
        guard={"max_rollbacks": 2},
        checkpoint={"every": 1},
    )
    first, again = call(attempts, config, data, tmp_path, [None, None])
    for summary in (first.summary, again.summary):
        assert (summary.status, summary.rollbacks) == ("failed", 2)
        assert "rollbacks" in summary.reason
        assert "\n" not in summary.reason
    assert [event["status"] for event in events(tmp_path, "end")] == ["failed", "failed"]
    assert len(events(tmp_path, "rollback")) == 2  # a new attempt does not give the budget back
    assert_all_finite(tmp_path)


def test_an_update_that_overflows_ends_with_its_verdict_and_is_not_stored(data: Path, tmp_path: Path) -> None:
    """The gradient is finite, and so is the loss; the weights after it are not."""
    config = tiny(
        data={"window": 4 * WINDOW},
        model={"dropout": 0.0},
        optimizer={"name": "sgd", "clip_norm": None, "loss_scale": "sequence_sum"},
        schedule={"kind": "constant", "learning_rate": 3e38, "warmup_steps": 0},
        guard={"max_rollbacks": 1},
        checkpoint={"every": 1},
    )
    summary = call(attempt, config, data, tmp_path).summary
    assert summary.status == "failed"
    assert_all_finite(tmp_path)


def assert_all_finite(folder: Path) -> None:
    store = CheckpointStore(folder / "checkpoints")
    for info in store.verify_all():
        snapshot = store.load(info.path)
        for arrays in (snapshot.weights, snapshot.slots, snapshot.carry):
            assert all(np.isfinite(array).all() for array in arrays.values()), info.path
