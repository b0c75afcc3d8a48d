"""How fast a rounding error grows in training: why one replica and two agree at one learning rate and not at another.

    python jobs/sensitivity.py --data-dir FOLDER_WITH_PTB

Trains `ptb-small`'s network for 50 updates three ways: one replica; one replica with one weight moved by one unit in
the last place; two replicas. Prints the relative difference of the loss to the first, at several learning rates. If
the nudged run drifts as far as the two replicas, the drift is the training's own and no order of summation mends it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from raylm.config import ModelConfig, RunConfig
from raylm.data.corpora import find_corpus
from raylm.data.dataset import open_dataset
from raylm.data.prepare import prepare_corpus
from raylm.recipes import PTB_SMALL
from raylm.training.datasets import Datasets
from raylm.training.topology import Topology

STEPS = (1, 10, 20, 30, 40, 50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        rate, replicas, nudge = arguments.child
        print(json.dumps(losses(arguments.data_dir, float(rate), int(replicas), nudge == "nudge")))
        return
    print("relative difference of the loss at step " + " ".join(f"{step:>8}" for step in STEPS))
    for rate in ("1.0", "0.3", "0.1"):
        first = run(arguments.data_dir, rate, "1", "plain")
        for name, options in (("nudged", ("1", "nudge")), ("2 replicas", ("2", "plain"))):
            other = run(arguments.data_dir, rate, *options)
            drift = (abs(other[step - 1] - first[step - 1]) / first[step - 1] for step in STEPS)
            print(f"learning rate {rate:>4}, {name:<20} " + " ".join(f"{value:8.1e}" for value in drift))


def run(data_dir: Path, *child: str) -> list[float]:
    """The losses of one run, in a process of its own: TensorFlow takes one strategy a process."""
    command = [sys.executable, __file__, "--data-dir", str(data_dir), "--child", *child]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(loss) for loss in json.loads(done.stdout.splitlines()[-1])]


def losses(data_dir: Path, rate: float, replicas: int, nudge: bool) -> list[float]:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import raylm.model.language_model as language_model  # here: TensorFlow reads the environment
    from raylm.training.loop import Outside, train

    if nudge:
        original = language_model.drawn_weights

        def nudged(config: ModelConfig, vocabulary: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
            for name, values in original(config, vocabulary, seed):
                if name == "lstm0/kernel":
                    values[0, 0] = np.nextafter(values[0, 0], np.float32(1))
                yield name, values

        language_model.drawn_weights = nudged
    seen: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = find_corpus("ptb", data_dir=data_dir, cache_dir=Path(folder), say=lambda line: None)
        prepared = prepare_corpus(corpus, Path(folder) / "datasets", lambda line: None)
        train_set, tiny = open_dataset(prepared.train), open_dataset(prepared.valid)
        config = RunConfig.model_validate(
            {
                **PTB_SMALL,
                "steps": max(STEPS),
                "schedule": {"kind": "constant", "learning_rate": rate},
                "report": {"log_every": 1, "sample_every": 0},
            }
        )
        outside = Outside(
            lambda event: seen.append(event["loss"]) if event["kind"] == "step" else None,
            lambda: False,
            lambda metrics, checkpoint: None,
        )
        topology = Topology(0, 1, replicas, config.data.lanes)
        train(config, Datasets("ptb", train_set, tiny, tiny), topology, Path(folder) / "run", outside)
    return seen


if __name__ == "__main__":
    main()
