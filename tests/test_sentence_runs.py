"""Sentences through the real loop: padded batches of several widths, peepholes, faults found and undone."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import FIGURES, WORDS, events, make_texts, tiny
from training_cases import Attempt, attempt, attempts
from training_runner import call

from raylm.config import RunConfig
from raylm.data.dataset import open_dataset
from raylm.data.verify import locate
from raylm.model.language_model import LanguageModel
from raylm.training.replay import Replayed, replay

SENTENCES: dict[str, Any] = {
    "data": {"mode": "sentences", "lanes": 5, "buckets": [2, 5, 9], "pool_chunks": 3},
    "model": {"peepholes": True},
}
STRUCK = 16
CAUSES = {
    "explosion": f"explosion@{STRUCK}:sticky",
    "no target": f"no-target@{STRUCK}:sticky",
    "bad id": f"bad-id@{STRUCK}:sticky,lane=3",
}


def sentences(**changes: Any) -> RunConfig:
    """`tiny` over sentences, in batches of three widths."""
    tree = {**SENTENCES, **changes}
    return tiny(
        **{
            key: {**SENTENCES.get(key, {}), **value} if isinstance(value, dict) else value
            for key, value in tree.items()
        }
    )


def sick(**changes: Any) -> RunConfig:
    """Plain SGD that no clip holds, and a guard that looks for spikes early."""
    return sentences(
        optimizer={"name": "sgd", "clip_norm": None, "loss_scale": "token_mean"},
        schedule={"kind": "constant", "learning_rate": 0.5},
        **{"guard": {"snapshot_every": 5, "spike_warmup": 10, "backoff": 0.5}, **changes},
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_texts(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Attempt, list[tuple[int | None, ...]]]:
    return call(traced, sentences(), data, tmp_path_factory.mktemp("unbroken"))


def traced(config: RunConfig, data: Path, folder: Path) -> tuple[Attempt, list[tuple[int | None, ...]]]:
    """A run, and the shapes of inputs [T, B] that its model was traced with, in evaluation too."""
    shapes, loss_sum = [], LanguageModel.loss_sum

    def watched(self: LanguageModel, inputs: Any, *rest: Any) -> Any:
        shapes.append(tuple(inputs.shape))
        return loss_sum(self, inputs, *rest)

    LanguageModel.loss_sum = watched  # type: ignore[method-assign]
    return attempt(config, data, folder), shapes


def test_every_target_of_every_sentence_is_trained_on_once_an_epoch(data: Path, unbroken: Any) -> None:
    dataset = open_dataset(data / "train")
    summary = unbroken[0].summary
    assert summary.status == "completed"
    assert summary.tokens == 2 * (dataset.tokens - dataset.rows)
    assert summary.train_perplexity < WORDS


def test_batches_of_every_width_share_one_trace(unbroken: Any) -> None:
    assert unbroken[1] == [(None, 5), (None, None)]


def test_a_run_over_sentences_resumed_twice_ends_as_the_unbroken_one(data: Path, tmp_path: Path, unbroken: Any) -> None:
    last = call(attempts, sentences(), data, tmp_path, [4, 9, None])[-1].summary
    assert last.resumes == 2
    wanted = unbroken[0].summary
    assert last.state_sha256 == wanted.state_sha256
    for name in FIGURES:
        assert getattr(last, name) == getattr(wanted, name), name


@pytest.fixture(scope="module")
def caused(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run for each cause, and the runs told what the guard found; folders by name."""
    folder = tmp_path_factory.mktemp("caused")
    return folder, call(causes, data, folder)


def causes(data: Path, folder: Path) -> dict[str, Any]:
    told = {name: attempt(sick(drill=(drill,)), data, folder / name) for name, drill in CAUSES.items()}
    guard = {"snapshot_every": 5, "spike_warmup": 10, "backoff": 0.5}
    for name in ("explosion", "bad id"):
        rollbacks = [event for event in told[name].published if event["kind"] == "rollback" and event["skip"]]
        skips = [event["skip"] for event in rollbacks]
        slowed = [f"{skip[0]}:{guard['backoff']}" for skip in skips[1:]]
        known = {**guard, "leave_out": [f"{first}:{last}" for first, last in skips], "slow_down": slowed}
        told[f"{name} told"] = attempt(sick(guard=known, drill=(CAUSES[name],)), data, folder / f"{name} told")
    patch = tomllib.loads(next((folder / "explosion" / "incidents").iterdir()).joinpath("suggested.toml").read_text())
    patched = sick(drill=(CAUSES["explosion"],)).model_dump()
    patched["optimizer"].update(patch["optimizer"])
    told["explosion patched"] = attempt(RunConfig.model_validate(patched), data, folder / "patched")
    folders = {name: sorted((folder / name / "incidents").iterdir())[0] for name in CAUSES}
    return {"told": told, "replayed": {name: replayed(folder) for name, folder in folders.items()}}


def replayed(folder: Path) -> tuple[Replayed, list[str]]:
    lines: list[str] = []
    return replay(folder, say=lines.append), lines


def test_each_cause_has_its_verdict_and_the_run_ends_trained(caused: tuple[Path, dict[str, Any]]) -> None:
    folder, found = caused
    expected = {"explosion": "OPTIMISATION", "no target": "DATA", "bad id": "DATA"}
    for name, verdict in expected.items():
        summary = found["told"][name].summary
        assert summary.status == "completed", name
        assert summary.train_perplexity < WORDS, name
        assert {event["verdict"] for event in events(folder / name, "verdict")} == {verdict}, name


def test_the_verdicts_name_what_is_to_blame(data: Path, caused: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = caused
    explosion, no_target, bad_id = (events(folder / name, "verdict")[0]["text"] for name in CAUSES)
    assert "leapt from 0." in explosion
    assert f"at step {STRUCK}, window {STRUCK}; sound with the gradient clipped at 0.25" in explosion
    assert f"no row of window {STRUCK} has a target" in no_target
    assert f"id {WORDS + 7} in the inputs of lane 3" in bad_id
    told = bad_id[bad_id.index("(shard") :].partition(")")[0]
    token = int(told.rpartition("token ")[2])
    shard, chunk, row = locate(open_dataset(data / "train"), token)
    assert told == f"(shard {shard}, chunk {chunk}, row {row}, token {token}"


def test_a_fault_and_its_recovery_end_as_the_run_told_of_it(caused: tuple[Path, dict[str, Any]]) -> None:
    """An explosion is seen after the update that did it: that window is left out too."""
    told = caused[1]["told"]
    for name in ("explosion", "bad id"):
        assert told[f"{name} told"].summary.rollbacks == 0
        assert told[name].summary.state_sha256 == told[f"{name} told"].summary.state_sha256


def test_the_suggested_clip_keeps_the_same_explosion_from_being_one(caused: tuple[Path, dict[str, Any]]) -> None:
    summary = caused[1]["told"]["explosion patched"].summary
    assert (summary.status, summary.rollbacks) == ("completed", 0)
    assert summary.train_perplexity < WORDS


def test_a_replay_of_sentences_computes_the_run_s_steps_bit_for_bit(caused: tuple[Path, dict[str, Any]]) -> None:
    folder, found = caused
    for name in CAUSES:
        told, lines = found["replayed"][name]
        steps = {event["step"]: event for event in events(folder / name, "step")}
        first = int(lines[1].split()[1])
        assert lines[1].endswith(f"loss {steps[first + 1]['loss']:.6g}  norm {steps[first + 1]['gradient_norm']:.6g}")
        assert told.sound == (name == "explosion")  # the loss of a spike is finite
    assert "fails again; the first non-finite tensor is loss" in found["replayed"]["bad id"][0].lines[0]
