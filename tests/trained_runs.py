"""A run's folder with checkpoints of a tiny model that was never trained: all that its users read of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_runs import make_texts, tiny

from raylm.checkpoint.snapshot import Snapshot
from raylm.checkpoint.store import CheckpointStore
from raylm.data.dataset import open_dataset
from raylm.model.language_model import initial_weights
from raylm.observe.events import EventLog
from raylm.observe.run_folder import RunRecord, create_run_folder
from raylm.training.loading import Trained, load_trained

VALID_NATS = {7: 3.5, 14: 3.25, 21: 3.75}
"""Validation losses by step: the newest checkpoint is not the best."""

MODEL: dict[str, Any] = {"layers": 2, "hidden": 6, "init_scale": 0.9}


def make_run(folder: Path, data: dict[str, Any] | None = None, texts: Path | None = None, **model: Any) -> Path:
    """The folder of a run with a checkpoint at each step of VALID_NATS, each with weights of its own."""
    folder.mkdir(parents=True)
    texts = texts or make_texts(folder / "data")
    config = tiny(model={**MODEL, **model}, data=data or {})
    datasets = {split: str(texts / split) for split in ("train", "valid", "test")}
    run = folder / "run"
    create_run_folder(run, RunRecord(config, "made", "", datasets))
    store = CheckpointStore(run / "checkpoints")
    train = open_dataset(texts / "train")
    log = EventLog(run, say=silent)
    for step, nats in VALID_NATS.items():
        snapshot = Snapshot(
            step=step,
            weights=initial_weights(config.model, len(train.vocabulary), seed=step),
            slots={},
            carry={},
            cursor={"position": step},
            ledger={},
            rng={"seed": 0},
        )
        store.save(snapshot, config=config.model_dump(mode="json"), dataset_id=train.dataset_id)
        log.append("eval", step, step, split="valid", nats=nats)
    log.close()
    return run


def no_data(*_: object) -> Any:
    raise AssertionError("the data are there: nothing to prepare again")


def silent(line: str) -> None:
    raise AssertionError(f"nothing to say, but: {line}")


def load(path: Path, *, best: bool = False) -> Trained:
    return load_trained(str(path), no_data, silent, best=best)
