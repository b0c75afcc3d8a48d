"""The first hundred training losses of every recipe, made small, and the loss of its evaluation then, as the training
loop tells them: what no refactoring may change.

    PYTHONPATH=. python tests/golden.py "why they change"

writes golden.json anew, which says why and on which processor and versions; the commit that has it says why too.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_USE_LEGACY_KERAS="1", CUDA_VISIBLE_DEVICES="-1")

import numpy as np
import tensorflow as tf
from graph_sums import Sums
from made_datasets import make_dataset

from raylm.config import RunConfig
from raylm.data.dataset import Dataset
from raylm.recipes import RECIPES
from raylm.training.datasets import Datasets
from raylm.training.loop import Outside, train
from raylm.training.topology import Topology

GOLDEN = Path(__file__).with_name("golden.json")
STEPS, WORDS, LANES = 100, 23, 4
_SIZES = {"hidden": 12, "embedding": 8, "projection": 6, "sampled_softmax": 7}


def small(name: str) -> RunConfig:
    """A recipe with few units, words, lanes and updates and short windows; parts, update and schedule are its own."""
    config = RunConfig.model_validate({**RECIPES[name], "recipe": name})
    sizes = {key: size for key, size in _SIZES.items() if getattr(config.model, key) is not None}
    data = {"lanes": LANES, "window": 10 if config.data.jitter else 5, "buckets": (4, 8)}
    changes = {
        "steps": STEPS,
        "data": config.data.model_copy(update=data),
        "model": config.model.model_copy(update=sizes),
        "optimizer": config.optimizer.model_copy(update={"patience": STEPS}),
        "report": config.report.model_copy(update={"log_every": 1, "sample_every": 0, "signals": False}),
    }
    return config.model_copy(update=changes)


def made_text(path: Path) -> Dataset:
    """Rows in which some words tell the next one; a hundred windows are several epochs."""
    random = np.random.default_rng(0)
    lengths = random.integers(3, 12, 40)
    tokens = np.zeros(int(lengths.sum()), np.int64)
    for place, guess in enumerate(random.integers(1, WORDS, len(tokens))):
        tokens[place] = guess if place % 3 == 0 else tokens[place - 1] * 5 % (WORDS - 1) + 1
    tokens[np.cumsum(lengths) - 1] = 0
    return make_dataset(path, tokens, lengths, WORDS)


def figures(names: Sequence[str]) -> tuple[dict[str, dict[str, list[float]]], dict[str, Sums]]:
    """Of each recipe the mean loss of each of its first updates and of the evaluation after them, in nats a token, and
    what its steps add. Fixes this process's strategy."""
    with tempfile.TemporaryDirectory() as folder:
        text, sums = made_text(Path(folder) / "text"), {name: Sums() for name in names}
        return {name: _figures(small(name), text, Path(folder) / name, sums[name]) for name in names}, sums


def _figures(config: RunConfig, text: Dataset, folder: Path, sums: Sums) -> dict[str, list[float]]:
    told: list[Mapping[str, Any]] = []

    def hear(event: Mapping[str, Any]) -> None:
        told.append(event)
        sums.hear(event)

    outside = Outside(hear, lambda: False, lambda *_: None)
    train(config, Datasets("golden", text, text, text), Topology(0, 1, 1, config.data.lanes), folder, outside)
    return {
        "training": [event["loss"] for event in told if event["kind"] == "step"],
        "evaluation": [event["nats"] for event in told if event["kind"] == "eval" and event["split"] == "test"],
    }


def made_with() -> dict[str, str]:
    """What the last digits depend on."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    processor = found[1] if found else platform.processor()
    return {"processor": processor, "tensorflow": tf.__version__, "numpy": np.__version__}


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1 or not arguments[0].strip():
        print('say why the losses change: python tests/golden.py "REASON"', file=sys.stderr)
        return 2
    document: dict[str, Any] = {"reason": arguments[0], "made_with": made_with()}
    rows = (f"    {json.dumps(name)}: {json.dumps(each)}" for name, each in figures([*RECIPES])[0].items())
    head = json.dumps(document, indent=2).removesuffix("\n}")
    GOLDEN.write_text(f'{head},\n  "losses": {{\n' + ",\n".join(rows) + "\n  }\n}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
