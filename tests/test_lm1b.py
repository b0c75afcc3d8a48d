"""What a model with a projection, sampled softmax, Adagrad and an exponential mean adds to the loop's promises."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError
from tiny_runs import end_of, events, make_texts, tiny
from training_cases import attempt
from training_runner import Call, answers

from raylm.checkpoint.store import CheckpointStore
from raylm.config import ModelConfig, OptimizerConfig, RunConfig
from raylm.model.language_model import LanguageModel
from raylm.optim.averaging import COUNT, PREFIX
from raylm.optim.clipping import which_clipped
from raylm.optim.optimizers import make_optimizer
from raylm.recipes import RECIPES
from raylm.training.step import Share, apply_gated

MODEL: dict[str, Any] = {"layers": 2, "hidden": 7, "projection": 4, "embedding": 5, "sampled_softmax": 6}
LM1B: dict[str, Any] = {
    "model": MODEL,
    "optimizer": {"name": "adagrad", "clip_norm": 0.5, "clip_of": "layers", "averaging": "exponential"},
}


def test_a_run_that_was_broken_off_ends_as_the_unbroken_one_and_two_replicas_train_the_same(tmp_path: Path) -> None:
    data = make_texts(tmp_path)
    config = tiny(**LM1B)
    (unbroken, replicas) = answers(
        [Call(attempt, config, data, tmp_path / "one"), Call(attempt, config, data, tmp_path / "two", 2)]
    )
    shutil.copytree(tmp_path / "one", tmp_path / "resumed")
    for path in CheckpointStore(tmp_path / "resumed" / "checkpoints").candidates():
        if int(path.name.removeprefix("step-")) > 14:
            shutil.rmtree(path)
    (resumed,) = answers([Call(attempt, config, data, tmp_path / "resumed")])
    assert resumed.summary.state_sha256 == unbroken.summary.state_sha256
    assert replicas.summary.valid_perplexity == pytest.approx(unbroken.summary.valid_perplexity, rel=1e-4)
    end = end_of(tmp_path / "one")
    assert {name: part.shape[1] for name, part in end.carry.items()} == {
        "layer0/hidden": 4,
        "layer0/cell": 7,
        "layer1/hidden": 4,
        "layer1/cell": 7,
    }
    assert {name for name in end.slots if name.startswith(PREFIX)} == {
        f"{PREFIX}{name}" for name in end.weights if name.startswith("lstm")
    }
    assert end.slots[COUNT] == end.step
    steps = events(tmp_path / "one", "step")
    assert any(event["gradient_norm"] > 0.5 for event in steps)
    assert {event["clipped"] for event in steps} == {0}  # the norm of the layers alone counts


def test_only_the_layers_are_clipped_where_that_is_asked_for() -> None:
    weights = {name: tf.Variable(tf.zeros([2])) for name in ("embedding", "lstm0/kernel", "lstm0/bias", "softmax")}
    config = OptimizerConfig(clip_norm=1.0, clip_of="layers", loss_scale="token_mean")
    gradients = [tf.constant([300.0, 0.0]), tf.constant([0.0, 3.0]), tf.constant([4.0, 0.0]), tf.constant([0.0, 9.0])]
    share = Share(tf.constant([1.0, 1.0, 0.0]), gradients, (), ())
    optimizer, clipped = make_optimizer(config, weights), which_clipped(config, weights)
    result, _ = apply_gated(optimizer, config, 1, share, tf.constant(1.0), clipped)
    assert float(result.norm) == pytest.approx(np.sqrt(300**2 + 25 + 81))
    assert float(result.clip) == pytest.approx(1 / 5)
    moved = {name: -weight.numpy() for name, weight in weights.items()}
    np.testing.assert_allclose(moved["embedding"], [300, 0])
    np.testing.assert_allclose(moved["lstm0/kernel"], [0, 3 / 5])
    np.testing.assert_allclose(moved["lstm0/bias"], [4 / 5, 0])
    np.testing.assert_allclose(moved["softmax"], [0, 9])


def test_a_tied_table_of_two_widths_is_refused() -> None:
    with pytest.raises(ValidationError, match="the embedding has 5 units and the softmax 4"):
        ModelConfig(hidden=7, projection=4, embedding=5, tie_weights=True)


def test_the_recipe_has_the_published_sizes() -> None:
    model = RunConfig.model_validate({"recipe": "lm1b", **RECIPES["lm1b"]}).model
    assert (model.widths, model.units, model.sampled_softmax) == ((512, 512), (2048,), 8192)
    shapes = {name: tuple(weight.shape) for name, weight in LanguageModel(model, 100, seed=0).weights.items()}
    assert shapes["lstm0/recurrent"] == (512, 8192)
    assert shapes["lstm0/projection"] == (2048, 512)
