"""No false alarms: healthy recipes, some of them at high learning rates, are left alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_datasets import make_dataset
from training_cases import Attempt, attempt
from training_runner import Call

from raylm.config import RunConfig
from raylm.observe.events import read_events

SGD: dict[str, Any] = {"name": "sgd", "clip_norm": 5.0, "loss_scale": "sequence_sum"}
MEAN: dict[str, Any] = {"name": "sgd", "clip_norm": 0.25, "loss_scale": "token_mean"}
HEALTHY: dict[str, dict[str, Any]] = {
    "zaremba, learning rate 1": {"optimizer": SGD, "schedule": {"learning_rate": 1.0}},
    "zaremba, seed 1": {"optimizer": SGD, "schedule": {"learning_rate": 1.0}, "seed": 1},
    "zaremba, window 35": {"optimizer": SGD, "schedule": {"learning_rate": 1.0}, "data": {"lanes": 20, "window": 35}},
    "zaremba, dropout": {"optimizer": SGD, "schedule": {"learning_rate": 1.0}, "model": {"hidden": 64, "dropout": 0.5}},
    "learning rate 20, clip .25": {"optimizer": MEAN, "schedule": {"learning_rate": 20.0}},
    "learning rate 30, clip .25": {"optimizer": MEAN, "schedule": {"learning_rate": 30.0}},
    "learning rate 30, seed 1": {"optimizer": MEAN, "schedule": {"learning_rate": 30.0}, "seed": 1},
    "adam, .002": {"optimizer": {"name": "adam", "clip_norm": 1.0}, "schedule": {"learning_rate": 0.002}},
    "adam, .01": {"optimizer": {"name": "adam", "clip_norm": 1.0}, "schedule": {"learning_rate": 0.01}},
    "five lanes": {"optimizer": SGD, "schedule": {"learning_rate": 1.0}, "data": {"lanes": 5, "window": 10}},
}


def runs(data: Path, folder: Path, recipes: dict[str, dict[str, Any]]) -> list[Attempt]:
    """Each recipe, a few epochs with their short last windows, one after the other."""
    return [
        attempt(
            RunConfig.model_validate(
                {
                    "epochs": 9,
                    "steps": 600,
                    "model": {"hidden": 64},
                    "report": {"sample_every": 0},
                    "checkpoint": {"every": 10_000},
                    **recipe,
                }
            ),
            data,
            folder / name,
        )
        for name, recipe in recipes.items()
    ]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_clean_runs_of_healthy_recipes_raise_no_alarm(ptb_dir: Path, tmp_path: Path) -> None:
    """On PTB's validation text, the whole vocabulary: epochs of about 180 windows, each with a short one at its end."""
    lines = [[*line.split(), "<eos>"] for line in (ptb_dir / "ptb.valid.txt").read_text().splitlines()]
    counts = Counter(word for line in lines for word in line)
    ids = {word: number for number, (word, _) in enumerate([("<eos>", 0), *counts.most_common()])}
    tokens = np.array([0 if word == "<eos>" else ids[word] for line in lines for word in line])
    for split, share in (("train", len(lines)), ("valid", 100), ("test", 100)):
        lengths = np.array([len(line) for line in lines[:share]])
        make_dataset(tmp_path / split, tokens[: lengths.sum()], lengths, len(ids) + 1, chunk=4096, shard=65536)
    call = Call(runs, tmp_path, tmp_path, HEALTHY)
    told = call.answer(seconds=1700)
    call.kill()
    for name, each in zip(HEALTHY, told, strict=True):
        assert each.summary is not None, each.mistake
        assert each.summary.status == "completed"
        assert each.summary.rollbacks == 0, name
        assert not [event for event in read_events(tmp_path / name) if event["kind"] == "incident"], name
