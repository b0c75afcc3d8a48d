"""A path becomes the model it means, every byte verified, or one line that says why not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest
from made_datasets import make_dataset, random_rows, words
from tiny_runs import WORDS
from trained_runs import VALID_NATS, load, make_run, no_data, silent

from raylm.checkpoint.store import CheckpointStore
from raylm.errors import UserError
from raylm.observe.run_folder import RunRecord, read_record, write_record
from raylm.optim.averaging import COUNT, PREFIX
from raylm.training.export import export_weights
from raylm.training.inference import make_model
from raylm.training.loading import load_trained

NEWEST, BEST = 21, 14


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "made")


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def test_a_run_means_its_newest_checkpoint_or_its_best_and_a_checkpoint_itself(run: Path) -> None:
    assert load(run).step == load(run / "checkpoints").step == NEWEST
    assert load(run, best=True).step == BEST == min(VALID_NATS, key=lambda step: VALID_NATS[step])
    assert load(checkpoint(run, 7)).step == load(checkpoint(run, 7), best=True).step == 7


def test_what_is_loaded_is_what_was_saved(run: Path) -> None:
    trained = load(run)
    assert trained.vocabulary == words(WORDS)
    assert trained.tokenizer == "whitespace"
    assert trained.config == read_record(run).config
    assert trained.state_sha256 == json.loads((checkpoint(run, NEWEST) / "MANIFEST.json").read_bytes())["state_sha256"]
    for name, weight in make_model(trained).weights.items():
        np.testing.assert_array_equal(weight.numpy(), trained.weights[name])


def test_where_weights_are_averaged_their_means_are_loaded(run: Path) -> None:
    store = CheckpointStore(run / "checkpoints")
    last, manifest = store.load(checkpoint(run, NEWEST)), store.manifest(checkpoint(run, NEWEST))
    means = {name: weight + 1 for name, weight in last.weights.items()}
    for step, count in ((NEWEST + 1, 0), (NEWEST + 2, 3)):
        slots = {**{PREFIX + name: mean for name, mean in means.items()}, COUNT: np.float32(count)}
        store.save(replace(last, step=step, slots=slots), config=manifest.config, dataset_id=manifest.dataset_id)
    for step, wanted in ((NEWEST + 1, last.weights), (NEWEST + 2, means)):
        for name, weight in load(checkpoint(run, step)).weights.items():
            np.testing.assert_array_equal(weight, wanted[name])


def test_a_run_in_an_object_store_is_loaded_too(
    run: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    there, path = pafs.FileSystem.from_uri(bucket.format("run"))
    pafs.copy_files(str(run), path, destination_filesystem=there)
    for best, step in ((False, NEWEST), (True, BEST)):
        trained = load_trained(bucket.format("run"), no_data, silent, best=best)
        assert (trained.step, trained.vocabulary) == (step, words(WORDS))
    assert load_trained(bucket.format("run/checkpoints/step-00000007"), no_data, silent).step == 7


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_taken(run: Path) -> None:
    weights = checkpoint(run, NEWEST) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    said: list[str] = []
    assert load_trained(str(run), no_data, said.append).step == 14
    assert len(said) == 1
    assert str(weights) in said[0]
    with pytest.raises(UserError, match="expected"):
        load(checkpoint(run, NEWEST))


def test_best_is_refused_where_nothing_was_evaluated(run: Path) -> None:
    (run / "events.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint there was evaluated; leave --best out"):
        load(run, best=True)


def test_another_training_text_is_refused_for_its_words_are_others(run: Path) -> None:
    place = Path(read_record(run).datasets["train"])
    shutil.rmtree(place)
    make_dataset(place, *random_rows(20, 9, vocabulary=WORDS), WORDS)
    with pytest.raises(UserError, match="its words are others"):
        load(run)


def test_lost_data_are_prepared_again(run: Path) -> None:
    record = read_record(run)
    lost = Path(record.datasets["train"])
    moved = lost.rename(lost.with_name("moved"))
    said: list[str] = []

    def prepare_again(config: object, say: object) -> RunRecord:
        assert config == record.config
        return RunRecord(record.config, "made", "", {**record.datasets, "train": str(moved)})

    trained = load_trained(str(run), prepare_again, said.append)
    assert trained.datasets["train"] == str(moved)
    assert said[0].endswith("; preparing the data again")


@pytest.mark.parametrize("path", ["nowhere", "made", "made/run/config.json"])
def test_what_is_no_model_is_refused_in_one_line(run: Path, tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError) as refused:
        load(tmp_path / path)
    assert "\n" not in str(refused.value)


def test_weights_of_another_size_are_refused(run: Path) -> None:
    record = read_record(run)
    model = record.config.model.model_copy(update={"hidden": 5})
    write_record(run, RunRecord(record.config.model_copy(update={"model": model}), "made", "", record.datasets))
    with pytest.raises(UserError, match="embedding"):
        make_model(load(run))


def test_an_export_is_loaded_as_the_checkpoint_it_was_made_of(run: Path, tmp_path: Path) -> None:
    trained = load(run)
    export_weights(trained, tmp_path / "export")
    again = load(tmp_path / "export")
    assert set(again.weights) == set(trained.weights)
    for name, weight in trained.weights.items():
        np.testing.assert_array_equal(again.weights[name], weight)
    for field in ("config", "vocabulary", "tokenizer", "step", "state_sha256"):
        assert getattr(again, field) == getattr(trained, field)
    assert again.datasets == {}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"\x10"),
        ("model.safetensors", None),
        ("vocabulary.txt", b"<eos>\n<unk>\n"),
        ("vocabulary.txt", b"a\n"),
        ("vocabulary.txt", b"\xff\n"),
        ("config.json", b'{"format": "raylm-weights-1"}'),
        ("config.json", b'{"format": "raylm-weights-1", "config": {"recipe": 3}}'),
    ],
)
def test_a_damaged_export_is_told_in_one_line(run: Path, tmp_path: Path, name: str, content: bytes | None) -> None:
    export_weights(load(run), tmp_path / "export")
    path = tmp_path / "export" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match="export") as refused:
        load(tmp_path / "export")
    assert "\n" not in str(refused.value)
