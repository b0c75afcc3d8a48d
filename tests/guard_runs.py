"""Runs the real training loop on a tiny model, without Ray: the runs of one topology share a process a worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from made_datasets import make_dataset, random_rows
from training_runner import Call, Killed, answers, environments

from raylm.config import RunConfig
from raylm.data.dataset import open_dataset
from raylm.training.datasets import Datasets
from raylm.training.loop import Outside, train
from raylm.training.topology import Topology

TINY: dict[str, Any] = {
    "steps": 12,
    "epochs": 10,
    "data": {"lanes": 8, "window": 5},
    "model": {"layers": 2, "hidden": 8},
    "optimizer": {"name": "adam", "clip_norm": 1.0},
    "schedule": {"kind": "constant", "learning_rate": 0.01},
    "guard": {"snapshot_every": 4},
    "checkpoint": {"every": 100},
    "report": {"sample_every": 0, "log_every": 1, "signals": False},  # they are half the graph; test_step has them
}
VOCABULARY = 30


def config(**changes: Any) -> dict[str, Any]:
    """TINY with changes, sections merged: config(steps=9, guard={"ring": 2})."""
    return {
        key: {**TINY.get(key, {}), **changes.get(key, {})}
        if isinstance(TINY.get(key, changes.get(key)), Mapping)
        else changes.get(key, TINY.get(key))
        for key in {**TINY, **changes}
    }


def run_all(
    folder: Path,
    configs: Mapping[str, Mapping[str, Any]],
    replicas: int = 1,
    workers: int = 1,
    kill_at_rollback: int = 0,
    seconds: float = 280,
) -> dict[str, dict[str, Any]]:
    """Each run's summary by name; their folders are folder / name.

    kill_at_rollback: the rollback in which rank 0 dies by SIGKILL; then there are no summaries.
    """
    calls = start_all(folder, configs, replicas, workers, kill_at_rollback)
    try:
        found = answers(calls, seconds)
    except Killed as killed:
        if kill_at_rollback and killed.exitcode == -signal.SIGKILL:
            return {}
        raise
    assert not kill_at_rollback
    for others in found[1:]:
        assert [one["state_sha256"] for one in others] == [one["state_sha256"] for one in found[0]]
    return dict(zip(configs, found[0], strict=True))


def start_all(
    folder: Path,
    configs: Mapping[str, Mapping[str, Any]],
    replicas: int = 1,
    workers: int = 1,
    kill_at_rollback: int = 0,
) -> list[Call]:
    """The processes of `run_all`, under way; what each says on standard error is in folder / stderr-RANK."""
    return [
        Call(_runs, folder, rank, workers, replicas, configs, kill_at_rollback, environment=environment)
        for rank, environment in enumerate(environments(workers))
    ]


def _runs(
    folder: Path,
    rank: int,
    workers: int,
    replicas: int,
    configs: Mapping[str, Mapping[str, Any]],
    kill_at_rollback: int,
) -> list[dict[str, Any]]:
    os.dup2(os.open(folder / f"stderr-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    text = folder / f"text-{rank}"
    if text.exists():
        dataset = open_dataset(text)
    else:
        tokens, lengths = random_rows(120, vocabulary=VOCABULARY)
        dataset = make_dataset(text, tokens, lengths, VOCABULARY)

    def publish(event: Mapping[str, Any]) -> None:
        if event["kind"] == "rollback" and event["rollbacks"] == kill_at_rollback:
            os.kill(os.getpid(), signal.SIGKILL)

    outside = Outside(publish, lambda: False, lambda _, __: None)
    summaries = []
    for name, fields in configs.items():
        settings = RunConfig.model_validate(fields)
        topology = Topology(rank, workers, replicas, settings.data.lanes, settings.cluster.fixed_shards)
        datasets = Datasets("made", dataset, dataset, dataset)
        summaries.append(train(settings, datasets, topology, folder / name, outside).to_json())
    return summaries
