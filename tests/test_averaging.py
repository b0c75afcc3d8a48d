"""Averaged weights in the training loop: what is evaluated, saved and used, when it begins, and ends that do not depend
on the way there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import WORDS, end_of, events, make_texts, tiny
from training_cases import Attempt, attempt
from training_runner import Call, answers, call

from raylm.checkpoint.store import CheckpointStore
from raylm.cli.train import main
from raylm.data.dataset import open_dataset
from raylm.errors import UserError
from raylm.model.language_model import LanguageModel
from raylm.observe.events import validation_losses
from raylm.optim.averaging import COUNT, PREFIX, averages, stopped_falling
from raylm.training.evaluate import Evaluator
from raylm.training.loading import starting_weights, weights_in_use
from raylm.training.state import assign_all

EPOCH = 12
TRIGGERED: dict[str, Any] = {
    "epochs": 6,
    "optimizer": {"averaging": "triggered", "patience": 1},
    "schedule": {"kind": "constant", "warmup_steps": 0, "learning_rate": 0.1},
    "guard": {"snapshot_every": EPOCH},
    "checkpoint": {"every": EPOCH},
}
"""Adam learns random text by heart: the validation loss rises soon."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_texts(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def triggered(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Attempt]:
    folder = tmp_path_factory.mktemp("triggered")
    return folder, call(attempt, tiny(**TRIGGERED), data, folder)


def first_epoch_averaged(folder: Path) -> int:
    losses = list(validation_losses(events(folder, "eval")).values())
    return next(epoch for epoch in range(1, len(losses) + 1) if stopped_falling(losses[:epoch], 1))


def score(weights: Any, data: Path) -> float:
    model = LanguageModel(tiny().model, WORDS, 0)
    assign_all("model", model.weights, weights)
    return Evaluator(model).score(open_dataset(data / "valid")).nats


def test_averaging_begins_after_the_epoch_whose_loss_is_not_below_the_best_before(
    triggered: tuple[Path, Attempt],
) -> None:
    begins = first_epoch_averaged(triggered[0])
    assert 3 <= begins < 6
    said = [event.get("text", "") for event in triggered[1].published]
    note = next(place for place, text in enumerate(said) if "the mean of the weights is evaluated" in text)
    assert sum(event.get("split") == "valid" for event in triggered[1].published[:note]) == begins
    assert float(end_of(triggered[0]).slots[COUNT]) == (6 - begins) * EPOCH


def test_the_mean_is_what_is_evaluated_and_used_and_the_weights_are_what_is_trained(
    triggered: tuple[Path, Attempt], data: Path
) -> None:
    end = end_of(triggered[0])
    told = events(triggered[0], "eval")[-2]["nats"]
    assert weights_in_use(end) == averages(end.slots) != {}
    assert score(weights_in_use(end), data) == pytest.approx(told, rel=1e-6)
    assert abs(score(end.weights, data) - told) > 1e-3
    assert {PREFIX + name for name in end.weights} | {COUNT} <= set(end.slots)


def test_before_it_begins_the_weights_themselves_are(triggered: tuple[Path, Attempt]) -> None:
    store = CheckpointStore(triggered[0] / "checkpoints")
    before = store.load(store.folder / f"step-{first_epoch_averaged(triggered[0]) * EPOCH:08d}")
    assert weights_in_use(before) is before.weights


def test_resumed_and_struck_runs_begin_and_end_as_the_unbroken_one(
    triggered: tuple[Path, Attempt], data: Path, tmp_path: Path
) -> None:
    """Resumed from the checkpoint before the evaluation that decides; struck where the snapshot is older than that."""
    turn = first_epoch_averaged(triggered[0]) * EPOCH
    shutil.copytree(triggered[0], tmp_path / "resumed")
    for path in CheckpointStore(tmp_path / "resumed" / "checkpoints").candidates():
        if int(path.name.removeprefix("step-")) > turn:
            shutil.rmtree(path)
    resumed = Call(attempt, tiny(**TRIGGERED), data, tmp_path / "resumed")
    struck = Call(attempt, tiny(**TRIGGERED, drill=(f"nan-loss@{turn + 1}",)), data, tmp_path / "struck")
    ends = [told.summary for told in answers([resumed, struck])]
    assert [end.rollbacks for end in ends] == [0, 1]
    assert [event["step"] for event in events(tmp_path / "resumed", "resume")] == [turn]
    assert triggered[1].summary is not None
    assert {end.state_sha256 for end in ends} == {triggered[1].summary.state_sha256}


def test_fine_tuning_goes_on_from_the_best_mean_and_ends_where_the_loss_falls_no_more(
    triggered: tuple[Path, Attempt], data: Path, tmp_path: Path
) -> None:
    best = min(validation_losses(events(triggered[0], "eval")).items(), key=lambda pair: pair[1])[0]
    config = tiny(
        **{**TRIGGERED, "epochs": 50, "optimizer": {"averaging": "always", "patience": 1}},
        start_from=str(triggered[0]),
        stop_early=True,
    )
    summary = call(attempt, config, data, tmp_path / "tuned").summary
    losses = list(validation_losses(events(tmp_path / "tuned", "eval")).values())
    assert summary.status == "completed"
    assert summary.reason.endswith("the validation loss fell no more")
    assert stopped_falling(losses, 1)
    assert not stopped_falling(losses[:-1], 1)
    assert summary.test_perplexity is not None
    store, began = CheckpointStore(triggered[0] / "checkpoints"), CheckpointStore(tmp_path / "tuned" / "checkpoints")
    wanted = weights_in_use(store.load(store.folder / f"step-{best:08d}"))
    found = began.load(began.folder / "step-00000000").weights
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_start_from_another_text_or_model_or_from_nothing_is_refused(
    triggered: tuple[Path, Attempt], tmp_path: Path
) -> None:
    run, dataset_id = str(triggered[0]), str(end_of(triggered[0]).cursor["dataset_id"])
    with pytest.raises(UserError, match=r"--start-from .*step-000000\d\d: .* its words are others"):
        starting_weights(run, "0" * 64, {}, 0)
    shapes = {name: weight.shape for name, weight in end_of(triggered[0]).weights.items()}
    for model in ({**shapes, "embedding": (WORDS, 9)}, {**shapes, "lstm7/bias": (4,)}, dict([*shapes.items()][1:])):
        with pytest.raises(UserError, match=r"--start-from .* has shape .*: take the --model options of that run"):
            starting_weights(run, dataset_id, model, 0)
    with pytest.raises(UserError, match="does not exist"):
        main(["--start-from", str(tmp_path / "nothing"), "--storage-path", str(tmp_path)])
