"""From a path to a trained model's weights, vocabulary and configuration: all that using it takes.

A path is a run's folder or URI, one checkpoint of it, or the folder that `raylm export --format safetensors` wrote.
Nothing here imports TensorFlow: a mistake is told at once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from raylm.checkpoint.locate import find
from raylm.checkpoint.mirror import FOLDER
from raylm.checkpoint.snapshot import Arrays, Snapshot
from raylm.checkpoint.store import CheckpointStore
from raylm.checkpoint.tensors import decode
from raylm.config import RunConfig
from raylm.data.dataset import Dataset, open_dataset
from raylm.data.remote import with_credentials_of
from raylm.data.vocabulary import Vocabulary
from raylm.errors import UserError
from raylm.observe.events import read_events, validation_losses
from raylm.observe.run_folder import RunRecord, read_record
from raylm.optim.averaging import averages

WEIGHTS, VOCABULARY, CONFIG, FORMAT = "model.safetensors", "vocabulary.txt", "config.json", "raylm-weights-1"
"""The files of an export of weights, and what its config.json calls itself."""

PrepareAgain = Callable[[RunConfig, Callable[[str], None]], RunRecord]
"""Makes the datasets of a configuration, where a run's are lost."""


@dataclass(frozen=True)
class Trained:
    """A trained model as plain data.

    place: the folder it was read from. weights: float32 arrays by name. vocabulary: word n has id n. tokenizer: what
    made words of its text. state_sha256: of the training state the weights are part of. datasets: the folder of each
    split of the run; empty for an export.
    """

    place: Path
    config: RunConfig
    weights: Arrays
    vocabulary: Vocabulary
    tokenizer: str
    step: int
    state_sha256: str
    datasets: Mapping[str, str]


def load_trained(path: str, prepare_again: PrepareAgain, say: Callable[[str], None], *, best: bool = False) -> Trained:
    """The model at a path: of a run the newest good checkpoint, with `best` the one of the lowest validation loss.

    Every byte is verified; a damaged checkpoint passed over is named through `say`.

    Raises:
        UserError: the path is none of these, or what it holds is missing, damaged, or does not belong together.
    """
    exported = _export_at(path)
    if exported is not None:
        return load_export(exported)
    found = find(path, "reader")
    folder, checkpoint, mirror = found
    record = read_record(folder, say)
    if best and checkpoint is None:
        checkpoint = folder / FOLDER / _best(found.store, validation_losses(read_events(folder)))
    if mirror is not None:
        mirror.pull(checkpoint.name if checkpoint else None)
        datasets = {split: with_credentials_of(place, path) for split, place in record.datasets.items()}
        record = replace(record, datasets=datasets)
    store = CheckpointStore(folder / FOLDER)
    if checkpoint is None:
        checkpoint, snapshot = store.load_newest(say)
    else:
        snapshot = store.load(checkpoint)
    manifest = store.manifest(checkpoint)
    record, train = _training_text(record, prepare_again, say)
    if train.dataset_id != manifest.dataset_id:
        raise UserError(
            f"{checkpoint} was trained on dataset {manifest.dataset_id[:12]}, {record.datasets['train']} is "
            f"{train.dataset_id[:12]}: its words are others; put the dataset it was trained on there"
        )
    return Trained(
        checkpoint,
        record.config,
        weights_in_use(snapshot),
        train.vocabulary,
        train.tokenizer,
        snapshot.step,
        manifest.state_sha256,
        record.datasets,
    )


def starting_weights(path: str, dataset_id: str, shapes: Mapping[str, tuple[int, ...]], rank: int) -> Arrays:
    """The weights of a checkpoint, of a run those of the lowest validation loss; where they are averaged, the means.

    Raises:
        UserError: there is none, or it is damaged, was trained on another dataset, or is of a model of other shapes.
    """
    folder, checkpoint, mirror = found = find(path, f"rank-{rank}")
    if checkpoint is None:
        checkpoint = folder / FOLDER / _best(found.store, validation_losses(read_events(folder)))
    if mirror is not None:
        mirror.pull(checkpoint.name)
    store = CheckpointStore(folder / FOLDER)
    trained_on = store.manifest(checkpoint).dataset_id
    if trained_on != dataset_id:
        raise UserError(
            f"--start-from {checkpoint}: it was trained on dataset {trained_on[:12]}, this run reads "
            f"{dataset_id[:12]}: its words are others"
        )
    weights = weights_in_use(store.load(checkpoint))
    theirs = {name: weight.shape for name, weight in weights.items()}
    for name in (*shapes, *theirs):
        if theirs.get(name) != shapes.get(name):
            raise UserError(
                f"--start-from {checkpoint}: its {name} has shape {theirs.get(name)}, this run's {shapes.get(name)}: "
                "take the --model options of that run"
            )
    return weights


def weights_in_use(snapshot: Snapshot) -> Arrays:
    """What is evaluated and used: the means of the weights, where they are averaged."""
    means = averages(snapshot.slots)
    return {**snapshot.weights, **means} if means else snapshot.weights


def _training_text(
    record: RunRecord, prepare_again: PrepareAgain, say: Callable[[str], None]
) -> tuple[RunRecord, Dataset]:
    """The run's training text, prepared again where the cache lost it, and where that is."""
    try:
        return record, open_dataset(record.datasets["train"])
    except UserError as problem:
        say(f"{problem}; preparing the data again")
        record = prepare_again(record.config, say)
        return record, open_dataset(record.datasets["train"])


def _best(store: CheckpointStore, validation: Mapping[int, float]) -> str:
    """The name of the checkpoint."""
    judged = [info for info in store.list() if info.complete and math.isfinite(validation.get(info.step, math.nan))]
    if not judged:
        raise UserError(f"{store.folder}: no checkpoint there was evaluated; leave --best out")
    return Path(min(judged, key=lambda info: (validation[info.step], -info.step)).path).name


def here(path: str | Path) -> Path:
    """A path with ~ as the home folder. Raises: UserError: there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}; write the folder out") from None


def _export_at(path: str) -> Path | None:
    """The folder, where the path is one that holds exported weights."""
    try:
        folder = Path(path).expanduser()
        content = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RuntimeError, RecursionError):
        return None
    return folder.resolve() if isinstance(content, dict) and content.get("format") == FORMAT else None


def load_export(folder: Path) -> Trained:
    """The model that `raylm export` wrote to a folder. Raises: UserError: a file is missing or damaged."""
    content = json.loads(_bytes(folder / CONFIG))
    words = _bytes(folder / VOCABULARY).removesuffix(b"\n")
    if hashlib.sha256(words).hexdigest() != content.get("vocabulary_sha256"):
        raise UserError(f"{folder / VOCABULARY} is not the vocabulary of the weights beside it: export them again")
    try:
        return Trained(
            folder,
            RunConfig.model_validate(content["config"], strict=False),
            decode(_bytes(folder / WEIGHTS)),
            Vocabulary(tuple(words.decode().split("\n"))),
            str(content["tokenizer"]),
            int(content["step"]),
            str(content["state_sha256"]),
            {},
        )
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        what = str(error).splitlines()[0]
        raise UserError(f"{folder} is damaged, or of another raylm ({what}): export it again") from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): export the model again") from None
