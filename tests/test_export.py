"""An export needs no raylm: its weights are read by NumPy after its README, its SavedModel by plain TensorFlow."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import training_runner
from made_datasets import words
from safetensors import safe_open
from tiny_runs import WORDS
from trained_runs import load, make_run

from raylm.errors import UserError
from raylm.training.export import default_output, export_weights
from raylm.training.inference import make_model
from raylm.training.likelihood import Likelihood
from raylm.training.savedmodel import export_saved_model

FILES = {"model.safetensors", "vocabulary.txt", "config.json", "README.txt"}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "peepholes"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "made", peepholes=request.param)


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def log_probability_after_the_readme(weights: dict[str, np.ndarray], ids: list[int]) -> list[float]:
    """The equations of README.txt, word by word, in NumPy."""
    size = weights["lstm0/recurrent"].shape[0]
    state = {layer: (np.zeros(size), np.zeros(size)) for layer in range(2)}
    logs = []
    for word, target in pairwise(ids):
        x = weights["embedding"][word]
        for layer, (h, c) in state.items():
            z = (
                x @ weights[f"lstm{layer}/kernel"]
                + h @ weights[f"lstm{layer}/recurrent"]
                + weights[f"lstm{layer}/bias"]
            )
            p_i, p_f, p_o = weights.get(f"lstm{layer}/peepholes", np.zeros((3, size)))
            i, f, o, g = np.split(z, 4)
            c_after = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * np.tanh(g)
            x = sigmoid(o + p_o * c_after) * np.tanh(c_after)
            state[layer] = (x, c_after)
        logits = weights["softmax"] @ x + weights["softmax/bias"]
        logs.append(float(logits[target] - np.log(np.exp(logits).sum())))
    return logs


def test_the_weights_are_read_without_raylm_as_the_readme_says(run: Path, tmp_path: Path) -> None:
    trained = load(run)
    export_weights(trained, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    weights = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    ids = [int(word) for word in np.random.default_rng(0).integers(0, WORDS, 40)]
    expected = np.concatenate(list(Likelihood(make_model(trained)).log_probabilities([np.array(ids)])))
    np.testing.assert_allclose(log_probability_after_the_readme(weights, ids), expected, atol=1e-5)
    text = (tmp_path / "out" / "vocabulary.txt").read_text(encoding="utf-8")
    assert text.endswith("\n")
    assert tuple(text[:-1].split("\n")) == words(WORDS).words
    card = (tmp_path / "out" / "README.txt").read_text(encoding="utf-8")
    assert [
        name for name, array in weights.items() if f"  {name} " not in card or str(array.shape[0]) not in card
    ] == []
    assert max(map(len, card.splitlines())) <= 120


def test_the_weights_metadata_say_what_config_json_says(run: Path, tmp_path: Path) -> None:
    trained = load(run)
    export_weights(trained, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "config.json").read_bytes())
    with safe_open(tmp_path / "out" / "model.safetensors", "numpy") as file:
        metadata = file.metadata()
    assert set(metadata) == set(content)
    assert metadata["state_sha256"] == content["state_sha256"] == trained.state_sha256
    assert int(metadata["vocabulary_words"]) == content["vocabulary_words"] == WORDS
    assert json.loads(metadata["config"]) == content["config"] == trained.config.model_dump(mode="json")


PLAIN = """
import json, sys
sys.modules["raylm"] = None  # importing it fails
import numpy as np, tensorflow as tf
folder, tokens = sys.argv[1], np.array(json.loads(sys.argv[2]), np.int32)
model = tf.saved_model.load(folder)
score, step = model.signatures["score"], model.signatures["next"]
found = {"score": score(tokens=tf.constant(tokens))["log_probabilities"].numpy().tolist()}
found["one row"] = score(tokens=tf.constant(tokens[:1, :5]))["log_probabilities"].numpy().tolist()
found["one token"] = score(tokens=tf.constant(tokens[:, :1]))["log_probabilities"].numpy().tolist()
widths = json.load(open(folder + "/config.json"))["carry"]
carry = {name: tf.zeros([len(tokens), width]) for name, width in widths.items()}
logs = []
for t in range(tokens.shape[1] - 1):
    answer = dict(step(token=tf.constant(np.maximum(tokens[:, t], 0)), **carry))
    every = answer.pop("log_probabilities").numpy()
    carry = answer
    logs.append([float(row[max(word, 0)]) for row, word in zip(every, tokens[:, t + 1])])
found["next"] = np.transpose(logs).tolist()
found["total"] = np.exp(every).sum(1).tolist()
found["words"] = open(model.vocabulary.asset_path.numpy().decode(), encoding="utf-8").read()
try:
    score(tokens=tf.constant([[0, len(every[0])]]))
except tf.errors.InvalidArgumentError as error:
    found["outside"] = "outside the vocabulary" in str(error)
assert "raylm.model" not in sys.modules
print(json.dumps(found))
"""


def test_the_saved_model_is_raylm_s_own_evaluation_in_plain_tensorflow(tmp_path: Path) -> None:
    """With peepholes and a row that ends early; in a process where raylm cannot be imported."""
    trained = load(make_run(tmp_path / "made", peepholes=True))
    export_saved_model(trained, tmp_path / "out")
    tokens = np.random.default_rng(0).integers(0, WORDS, (3, 20))
    tokens[1, 12:] = -1
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TF_USE_LEGACY_KERAS")}
    ended = subprocess.run(
        [sys.executable, "-c", PLAIN, str(tmp_path / "out"), json.dumps(tokens.tolist())],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=tmp_path,
        env={**plain, "TF_USE_LEGACY_KERAS": "1"},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout)
    likelihood = Likelihood(make_model(trained))
    for row, kept in enumerate([20, 12, 20]):
        expected = np.concatenate(list(likelihood.log_probabilities([tokens[row, :kept]])))
        np.testing.assert_allclose(found["score"][row][: kept - 1], expected, atol=1e-6)
        np.testing.assert_allclose(found["next"][row][: kept - 1], expected, atol=1e-6)
        assert not any(found["score"][row][kept - 1 :])
    np.testing.assert_allclose(found["one row"][0], found["score"][0][:4], atol=1e-6)
    assert found["one token"] == [[], [], []]
    np.testing.assert_allclose(found["total"], 1, atol=1e-5)
    assert tuple(found["words"][:-1].split("\n")) == words(WORDS).words
    assert found["outside"]


def test_what_is_there_stays_unless_it_is_an_export_and_force_is_asked(run: Path, tmp_path: Path) -> None:
    first, other = load(run), load(run, best=True)
    output = tmp_path / "deep" / "out"
    export_weights(first, output)
    with pytest.raises(UserError, match="exists already: choose another --output, or replace it with --force"):
        export_weights(other, output)
    assert load(output).step == first.step
    export_weights(other, output, force=True)
    assert load(output).step == other.step != first.step
    assert [path.name for path in output.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_force_replaces_nothing_but_an_export(kind: str, run: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "config.json").write_text('{"format": "mine"}')
    output = {"folder": kept, "file": kept / "config.json", "link": tmp_path / "link"}[kind]
    (tmp_path / "link").symlink_to(kept)
    with pytest.raises(UserError, match="is no export of raylm's"):
        export_weights(load(run), output, force=True)
    assert (kept / "config.json").read_text() == '{"format": "mine"}'


def test_the_default_place_is_beside_the_run_s_checkpoints(run: Path) -> None:
    assert default_output(load(run), "saved-model") == run.resolve() / "exports" / "step-00000021-saved-model"


def export_on_a_full_disk(run: Path, output: Path, kind: str) -> str:
    """What an export says when no file can grow beyond 2,000 bytes."""
    trained = load(run)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    try:
        (export_weights if kind == "safetensors" else export_saved_model)(trained, output)
    except UserError as error:
        return str(error)
    return "it went well"


@pytest.mark.parametrize("kind", ["safetensors", "saved-model"])
def test_a_full_disk_is_one_line_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "made")
    said = training_runner.call(export_on_a_full_disk, run, tmp_path / "there" / "out", kind)
    assert "out: cannot be written" in said
    assert "\n" not in said
    assert list((tmp_path / "there").iterdir()) == []
