"""A tiny run and its data for the tests of the training loop, and how they look at what it left."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_datasets import make_dataset, random_rows

from raylm.checkpoint.snapshot import Snapshot, state_sha256
from raylm.checkpoint.store import CheckpointStore
from raylm.config import RunConfig
from raylm.data.cursor import Cursor
from raylm.data.dataset import open_dataset
from raylm.observe.events import read_events

WORDS, LANES, WINDOW = 30, 5, 6
FIGURES = ("status", "steps", "tokens", "train_perplexity", "valid_perplexity", "test_perplexity")


def tiny(**changes: Any) -> RunConfig:
    """Two epochs of 12 windows, Adam and dropout; sections are merged: tiny(model={"hidden": 3})."""
    tree: dict[str, Any] = {
        "recipe": "tiny",
        "epochs": 2,
        "data": {"lanes": LANES, "window": WINDOW},
        "model": {"layers": 1, "hidden": 8, "dropout": 0.3},
        "optimizer": {"name": "adam", "clip_norm": 1.0},
        "schedule": {"kind": "cosine", "learning_rate": 0.02, "warmup_steps": 3},
        "guard": {"backoff": 1.0},
        "checkpoint": {"every": 7, "keep_last": 50},
        "report": {"log_every": 1, "sample_every": 0, "signals": False},  # they are half the graph; test_step has them
    }
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return RunConfig.model_validate(tree)


def make_texts(folder: Path) -> Path:
    """Train, valid and test datasets in `folder`; an epoch has 12 windows, until the longest lane ends."""
    for seed, (split, rows) in enumerate({"train": 54, "valid": 8, "test": 9}.items()):
        make_dataset(folder / split, *random_rows(rows, seed, vocabulary=WORDS), WORDS, chunk=64, shard=128)
    targets = open_dataset(folder / "train").tokens - 1
    assert math.ceil(math.ceil(targets / LANES) / WINDOW) == 12
    return folder


def end_of(folder: Path) -> Snapshot:
    """The state in a run's newest checkpoint."""
    return CheckpointStore(folder / "checkpoints").load_newest(pytest.fail)[1]


def digest(folder: Path) -> str:
    """Of the state in the newest checkpoint but for the guard's ledger, which tells how the run came there."""
    return state_sha256(replace(end_of(folder), ledger={}))


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(folder) if event["kind"] == kind]


def begin_without(config: RunConfig, data: Path, folder: Path, begun: Path, left_out: list[tuple[int, int]]) -> None:
    """A run in `folder` that begins as the run in `begun` did, with windows left out from the start."""
    first = CheckpointStore(begun / "checkpoints").load(begun / "checkpoints" / "step-00000000")
    cursor = Cursor.from_json(first.cursor)
    for pair in left_out:
        cursor = cursor.leave_out(*pair)
    dataset = open_dataset(data / "train").dataset_id
    store = CheckpointStore(folder / "checkpoints")
    store.save(replace(first, cursor=cursor.to_json()), config=config.model_dump(mode="json"), dataset_id=dataset)
