"""A trained model in a folder of its own, for programs that know nothing of raylm.

`safetensors`: model.safetensors (the weights, float32, under raylm's names, and what they are in its metadata),
vocabulary.txt, config.json, README.txt. Tensors, with V words, H hidden units and layers 0 to n − 1:

    embedding          [V, H]    row w is the input vector of word w
    lstmN/kernel       [I, 4H]   input to gates, for x @ kernel; gates side by side: input, forget, output, candidate
    lstmN/recurrent    [H, 4H]   hidden state to gates, for h @ recurrent
    lstmN/bias         [4H]
    softmax            [V, H]    logits = h @ softmaxᵀ + softmax/bias; absent where the embedding stands for it
    softmax/bias       [V]

A model with more (peepholes, say) has more tensors; README.txt lists all there are.

`saved-model`: a TensorFlow SavedModel (`raylm.training.savedmodel`) with the same text files beside it.

A folder appears whole or not at all.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.numpy

from raylm.checkpoint import files
from raylm.data.caching import storing
from raylm.errors import UserError
from raylm.observe.run_folder import versions
from raylm.training.card import weights_card
from raylm.training.loading import CONFIG, FORMAT, VOCABULARY, WEIGHTS, Trained

Format = Literal["safetensors", "saved-model"]
SAVED_MODEL_FORMAT = "raylm-saved-model-1"
README = "README.txt"


def default_output(trained: Trained, kind: Format) -> Path:
    """Beside the run's checkpoints; for an export that is exported again, inside it."""
    run = trained.place.parent.parent if trained.datasets else trained.place
    return run / "exports" / f"step-{trained.step:08d}-{kind}"


def check_output(output: Path, *, force: bool) -> None:
    """Raises UserError where something stands at `output` that may not be replaced: with `force` an export may."""
    with storing(output):
        if not output.exists() and not output.is_symlink():
            return
        if not force:
            raise UserError(f"{output} exists already: choose another --output, or replace it with --force")
        if not output.is_symlink() and output.is_dir() and (_is_export(output) or not any(output.iterdir())):
            return
        raise UserError(f"{output} is no export of raylm's, and --force replaces nothing else: choose another --output")


def export_weights(trained: Trained, output: Path, *, force: bool = False) -> None:
    """Writes weights, vocabulary and configuration to the folder `output`.

    Raises:
        UserError: `output` exists and may not be replaced, or cannot be written.
    """
    facts = {"format": FORMAT, **facts_of(trained)}
    weights = {name: np.ascontiguousarray(array) for name, array in trained.weights.items()}
    metadata = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}

    def fill(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(safetensors.numpy.save(weights, metadata))
        write_beside(folder, trained, facts, weights_card(trained))

    publish(output, force, fill)


def facts_of(trained: Trained) -> dict[str, Any]:
    """What config.json says beside the format."""
    return {
        "step": trained.step,
        "state_sha256": trained.state_sha256,
        "vocabulary_words": len(trained.vocabulary),
        "vocabulary_sha256": trained.vocabulary.sha256,
        "tokenizer": trained.tokenizer,
        "config": trained.config.model_dump(mode="json"),
        "versions": versions(),
    }


def vocabulary_bytes(trained: Trained) -> bytes:
    """vocabulary.txt."""
    return ("\n".join(trained.vocabulary.words) + "\n").encode()


def write_beside(folder: Path, trained: Trained, facts: dict[str, Any], card: str) -> None:
    """The text files of any export."""
    (folder / VOCABULARY).write_bytes(vocabulary_bytes(trained))
    (folder / CONFIG).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (folder / README).write_text(card, encoding="utf-8")


def _is_export(folder: Path) -> bool:
    try:
        content = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") in (FORMAT, SAVED_MODEL_FORMAT)


def publish(output: Path, force: bool, fill: Callable[[Path], None]) -> None:
    """Lets `fill` write a hidden folder beside `output`, puts it on the disk and gives it its name.

    Raises:
        UserError: `output` exists and may not be replaced, or cannot be written.
    """
    check_output(output, force=force)
    with storing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            staging.chmod(0o755)
            _fill(staging, fill)
            _sync(staging)
            check_output(output, force=force)
            _replace(staging, output)
            files.sync_folder(output.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _replace(staging: Path, output: Path) -> None:
    if not output.exists():
        staging.rename(output)
        return
    before = staging.with_name(f"{staging.name}.before")
    output.rename(before)
    try:
        staging.rename(output)
    except OSError:
        before.rename(output)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _fill(staging: Path, fill: Callable[[Path], None]) -> None:
    """The libraries that write have errors of their own for a disk that refuses."""
    try:
        fill(staging)
    except (OSError, UserError):
        raise
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("tensorflow", "safetensors", "safetensors_rust"):
            raise
        raise OSError(None, (str(error).strip() or type(error).__name__).splitlines()[0]) from error


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                files.sync(file.fileno())
        else:
            files.sync_folder(path)
    files.sync_folder(folder)
