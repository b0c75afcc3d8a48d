"""The training loop on several replicas and workers: the same end, every target once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import LANES, WORDS, end_of, events, make_texts, tiny
from training_cases import Attempt, attempt
from training_runner import Call, answers, call, environments

from raylm.checkpoint.store import CheckpointStore
from raylm.config import RunConfig
from raylm.data.dataset import open_dataset
from raylm.model.shapes import rows_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_texts(tmp_path_factory.mktemp("data"))


def workers(config: RunConfig, data: Path, folders: list[Path], stops: tuple[int | None, int | None]) -> list[Call]:
    places = zip(folders, stops, environments(2), strict=True)
    return [
        Call(attempt, config, data, folder, 1, stop, rank, 2, environment=environment)
        for rank, (folder, stop, environment) in enumerate(places)
    ]


def two_workers(config: RunConfig, data: Path, folder: Path, stops: tuple[int | None, int | None]) -> list[Attempt]:
    return answers(workers(config, data, [folder, folder], stops))


SENTENCES = {"mode": "sentences", "buckets": [2, 5, 9], "pool_chunks": 3}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {
                "data": {"window": 2, "jitter": True},
                "model": {"sampled_softmax": 5, "recurrent_dropout": 0.2, "temporal_regularization": 1.0},
                "optimizer": {"averaging": "always"},
                "stop_early": True,
            },
            id="streams",
        ),
        pytest.param(
            {"data": SENTENCES, "model": {"peepholes": True, "tie_weights": True}},
            id="sentences",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"model": {"sampled_softmax": 5, "precision": "bfloat16"}, "data": {"window": 2}, "epochs": 1}
            | {"cluster": {"compress": "int16"}},
            id="sixteen-bits",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_workers_end_in_the_state_of_one_worker_with_two_replicas(
    data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Bit for bit, with dropout, lanes that two do not divide, a fault, and a stop that one worker was asked for. In
    streams jittered windows, averaged weights, a sampled softmax, gradients kept as rows; in sentences tied weights; in
    sixteen bits products and sums."""
    config = tiny(drill=("nan-loss@9",), **changes)
    assert rows_of(config, WORDS) == ({"embedding": 0, "softmax": 5} if config.data.mode == "stream" else {})
    one = Call(attempt, config, data, tmp_path / "one", 2)
    stopped = two_workers(config, data, tmp_path / "two", (None, 10))
    assert [told.summary.status for told in stopped] == ["interrupted"] * 2
    assert stopped[0].summary.steps == stopped[1].summary.steps < 22
    ended = two_workers(config, data, tmp_path / "two", (None, None))
    wanted = answers([one])[0].summary
    assert [told.summary.state_sha256 for told in ended] == [wanted.state_sha256] * 2
    assert [told.summary.status for told in ended] == [wanted.status] * 2 == ["completed"] * 2
    assert [event["kind"] for event in ended[1].published] == []  # rank 0 alone tells the world
    assert len(ended[1].reports) == len(ended[0].reports)


def test_ranks_that_find_different_checkpoints_do_not_train_on(data: Path, tmp_path: Path) -> None:
    whole, lacking = tmp_path / "whole", tmp_path / "lacking"
    call(attempt, tiny(), data, whole, 2, 5)
    shutil.copytree(whole, lacking)
    shutil.rmtree(CheckpointStore(lacking / "checkpoints").candidates()[0])
    calls = workers(tiny(), data, [whole, lacking], (None, None))
    try:
        for rank, found in ((1, "rank 1 found the checkpoint of step 0"), (0, "rank 0 found the checkpoint of step ")):
            with pytest.raises(RuntimeError, match=found):
                calls[rank].answer()
    finally:
        for each in calls:
            each.kill()


def test_a_run_goes_on_with_any_number_of_replicas_and_sees_every_target_once(data: Path, tmp_path: Path) -> None:
    config = tiny(
        data={"jitter": True},
        model={"dropout": 0.0},
        optimizer={"name": "sgd"},
        schedule={"kind": "constant", "learning_rate": 0.5},
    )
    alone = Call(attempt, config, data, tmp_path / "alone")
    for replicas, stop in ((3, 10), (2, None)):
        summary = call(attempt, config, data, tmp_path / "changing", replicas, stop).summary
    wanted = answers([alone])[0].summary
    assert (summary.status, summary.steps, summary.tokens) == (wanted.status, wanted.steps, wanted.tokens)
    assert summary.tokens == 2 * (open_dataset(data / "train").tokens - 1)
    assert end_of(tmp_path / "changing").cursor == end_of(tmp_path / "alone").cursor
    found, expected = (events(tmp_path / name, "step") for name in ("changing", "alone"))
    assert [event["position"] for event in found] == list(range(summary.steps))
    for name in ("loss", "gradient_norm"):
        assert [event[name] for event in found] == pytest.approx([event[name] for event in expected], rel=1e-4)
    assert [event["tokens"] for event in found] == [event["tokens"] for event in expected]


def test_more_replicas_than_lanes_are_refused(data: Path, tmp_path: Path) -> None:
    mistake = call(attempt, tiny(), data, tmp_path, LANES + 1).mistake
    assert f"more than the {LANES} lanes" in mistake
    assert not tmp_path.joinpath("checkpoints").exists()
    assert os.listdir(tmp_path) == []
