"""Whether `raylm diagnose` names the fault of a training: small real trainings, each with one fault, and healthy ones.

python jobs/bench_diagnose.py                           about ten minutes on two cores
python jobs/bench_diagnose.py --only "carry dropped" "targets are the inputs"
python jobs/bench_diagnose.py --only healthy --recipe-seconds 60

Each trains on some lines of the Penn Treebank (else of the sample) in a process of its own, at two sizes, and is right
where the first finding is the one that is meant. Healthy are the same trainings without a fault, and every recipe for
some seconds: none may have a finding above a note.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_USE_LEGACY_KERAS="1")

import tensorflow as tf

from raylm.cli.words import merged
from raylm.config import RunConfig
from raylm.data.corpora import find_corpus
from raylm.data.dataset import open_dataset
from raylm.data.prepare import prepare_corpus
from raylm.guard.judge import Outcome
from raylm.model import language_model
from raylm.model.dropout import Masks, mask_key
from raylm.observe.data_symptoms import data_evidence
from raylm.observe.findings import Diagnosis, evidence_of
from raylm.observe.run_folder import RunRecord, create_run_folder
from raylm.observe.story import read_story
from raylm.observe.symptoms import diagnose
from raylm.optim.optimizers import SGD
from raylm.recipes import RECIPES
from raylm.training import loop
from raylm.training.datasets import Datasets
from raylm.training.step import Batch
from raylm.training.topology import Topology

Texts = dict[str, list[str]]
Patch = Callable[[], AbstractContextManager[Any]]

SIZES: dict[str, dict[str, Any]] = {"1 x 48": {"layers": 1, "hidden": 48}, "2 x 128": {"layers": 2, "hidden": 128}}
BASE: dict[str, Any] = {
    "epochs": 50,
    "steps": 400,
    "data": {"lanes": 20, "window": 20, "vocabulary_size": 2000},
    "schedule": {"kind": "constant", "learning_rate": 1.0},
    "checkpoint": {"every": 100_000},
    "guard": {"max_rollbacks": 4, "probe_seconds": 5},
    "report": {"log_every": 10, "sample_every": 0},
}


@dataclass(frozen=True)
class Fault:
    """right: the rules of which one must be the first finding. lines: of the train text. What is changed: the
    configuration, the texts, the code as it runs."""

    right: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=dict)
    texts: Callable[[Texts], Texts] = lambda texts: texts
    code: Patch = nullcontext
    lines: int = 8000


def _batches(change: Callable[..., tuple[Any, ...]]) -> Patch:
    """Every batch (inputs, targets, weights, reset) changed on its way to the step."""
    return lambda: mock.patch.object(loop, "Batch", lambda *parts: Batch(*change(*parts)))


def _summed() -> AbstractContextManager[Any]:
    return mock.patch.object(loop, "Outcome", lambda **told: Outcome(**{**told, "loss": told["loss"] * told["tokens"]}))


def _first_weights(change: Callable[[str, Any], Any]) -> Patch:
    original = language_model.initial_weights

    def changed(*arguments: Any) -> dict[str, Any]:
        return {name: change(name, value) for name, value in original(*arguments).items()}

    return lambda: mock.patch.object(language_model, "initial_weights", changed)


def _embedding_left_out() -> AbstractContextManager[Any]:
    original = SGD.apply

    def apply(self: SGD, gradients: Sequence[Any], factor: Any, rate: Any) -> None:
        first = gradients[0]
        still = first._replace(rows=0 * first.rows) if hasattr(first, "rows") else 0 * first
        original(self, [still, *gradients[1:]], factor, rate)

    return mock.patch.object(SGD, "apply", apply)


def _dropout_in_evaluation() -> AbstractContextManager[Any]:
    original = language_model.LanguageModel._outputs

    def outputs(self: Any, inputs: Any, carry: Any, masks: Any, *rest: Any) -> Any:
        return original(self, inputs, carry, masks or Masks(mask_key(0, 0, 0)), *rest)

    return mock.patch.object(language_model.LanguageModel, "_outputs", outputs)


def _shuffled(texts: Texts) -> Texts:
    draw = random.Random(0)
    words = " ".join(texts["train"]).split()
    draw.shuffle(words)
    lines = [" ".join(words[start : start + 20]) for start in range(0, len(words), 20)]
    return {**texts, "train": lines[300:], "valid": lines[:300]}


FAULTS: dict[str, Fault] = {
    "Adam at 1.0": Fault(("worse than guessing",), {"optimizer": {"name": "adam"}, "schedule": {"learning_rate": 1.0}}),
    "SGD at 300": Fault(("worse than guessing",), {"schedule": {"learning_rate": 300.0}}),
    "rate of 1e-5": Fault(("learns nothing",), {"schedule": {"learning_rate": 1e-5}}),
    "no clip, rate 20": Fault(
        ("explodes again", "failed", "no clip", "worse than guessing"),
        {"optimizer": {"clip_norm": None}, "schedule": {"learning_rate": 20.0}},
    ),
    "decay in epochs": Fault(
        ("decayed too soon",), {"schedule": {"kind": "exponential", "decay_steps": 5, "decay_rate": 0.5}}
    ),
    "warm-up in tokens": Fault(("never warm",), {"schedule": {"warmup_steps": 500_000}}),
    "first weights of 3": Fault(("first loss",), {"model": {"init_scale": 3.0}}),
    "dead first weights": Fault(("weight never moves",), code=_first_weights(lambda name, value: 0 * value)),
    "gates shut": Fault(
        ("gates saturated",),
        code=_first_weights(lambda name, value: 100 * value if name.startswith("lstm") else value),
    ),
    "targets are the inputs": Fault(
        ("too good",), code=_batches(lambda inputs, targets, weights, reset: (inputs, inputs, weights, reset))
    ),
    "targets of another lane": Fault(
        ("context ignored",),
        {"steps": 2050, "report": {"log_every": 20}},
        code=_batches(lambda inputs, targets, weights, reset: (inputs, tf.roll(targets, 1, 0), weights, reset)),
        lines=40_000,
    ),
    "words shuffled": Fault(
        ("context ignored",), {"steps": 2050, "report": {"log_every": 20}}, texts=_shuffled, lines=40_000
    ),
    "carry dropped": Fault(
        ("carry dropped",),
        code=_batches(lambda inputs, targets, weights, reset: (inputs, targets, weights, reset | True)),
    ),
    "loss summed": Fault(("loss is a sum",), code=_summed),
    "tied embedding broken": Fault(("weight never moves",), code=_embedding_left_out),
    "vocabulary off by one": Fault(
        ("bad batches", "failed"),
        {"guard": {"snapshot_every": 10, "max_rollbacks": 16}},
        code=_batches(lambda inputs, targets, weights, reset: (inputs + 1, targets + 1, weights, reset)),
    ),
    "dropout in evaluation": Fault(
        ("dropout in evaluation",), {"model": {"dropout": 0.5}, "steps": 600}, code=_dropout_in_evaluation
    ),
    "overfit": Fault(
        ("overfit",),
        {"steps": 900, "optimizer": {"name": "adam"}, "schedule": {"learning_rate": 0.005}},
        texts=lambda texts: {**texts, "train": texts["train"][:400]},
    ),
    "duplicated lines": Fault(("repeated rows",), texts=lambda texts: {**texts, "train": 3 * texts["train"][:2000]}),
    "valid in train": Fault(("valid in train",), texts=lambda texts: {**texts, "valid": texts["train"][:300]}),
    "vocabulary of 60": Fault(("unknown words",), {"data": {"vocabulary_size": 60}}),
}

HEALTHY: dict[str, dict[str, Any]] = {
    "healthy: SGD at 1": {},
    "healthy: SGD at 20 on a mean": {
        "optimizer": {"clip_norm": 0.25, "loss_scale": "token_mean"},
        "schedule": {"learning_rate": 20.0},
    },
    "healthy: Adam at .002": {"optimizer": {"name": "adam"}, "schedule": {"learning_rate": 0.002}},
    "healthy: dropout .5, tied": {"model": {"dropout": 0.5, "tie_weights": True}, "steps": 600},
}


def main() -> None:
    """Prints the table."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="raylm-diagnose-"))
    cases = [*itertools.product([*FAULTS, *HEALTHY], SIZES), *((f"healthy: recipe {name}", "") for name in RECIPES)]
    wanted = [case for case in cases if not options.only or any(word in case[0] for word in options.only)]
    try:
        _table(wanted, folder, options.recipe_seconds)
    finally:
        shutil.rmtree(folder)


def _table(cases: Sequence[tuple[str, str]], folder: Path, recipe_seconds: float) -> None:
    right: dict[bool, list[bool]] = {True: [], False: []}
    print(f"{'planted':<28}{'size':<9}{'verdict':<9}{'first finding':<23}{'since':>6}{'seconds':>9}")
    for number, (name, size) in enumerate(cases):
        began = time.monotonic()
        found = _apart(name, size, folder / str(number), recipe_seconds)
        first = found.findings[0] if found.findings else None
        sick = name in FAULTS
        good = first is not None and first.rule in FAULTS[name].right if sick else found.verdict == "healthy"
        right[sick].append(good)
        shown = first.rule if first is not None and (sick or not good) else "-"
        since = "-" if found.since is None else str(found.since)
        seconds = time.monotonic() - began
        print(
            f"{name:<28}{size:<9}{found.verdict:<9}{shown:<23}{since:>6}{seconds:>9.0f}{'' if good else '  NOT RIGHT'}",
            flush=True,
        )
    print(f"faults: first finding right in {sum(right[True])} of {len(right[True])}")
    print(f"healthy: nothing above a note in {sum(right[False])} of {len(right[False])}")


def _apart(*case: Any) -> Diagnosis:
    """In a process of its own: TensorFlow allows one strategy each."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_diagnosed, case)


def _diagnosed(name: str, size: str, folder: Path, recipe_seconds: float) -> Diagnosis:
    """Trains one case and looks at what it left."""
    fault = FAULTS.get(name, Fault((), HEALTHY.get(name, {})))
    recipe = name.removeprefix("healthy: recipe ")
    if recipe in RECIPES:
        tree, until = (
            {**RECIPES[recipe], "recipe": recipe, "report": {"sample_every": 0}},
            time.monotonic() + recipe_seconds,
        )
    else:
        tree, until = merged(merged(BASE, {"model": SIZES[size]}), fault.config), float("inf")
    config = RunConfig.model_validate(tree)
    places = _datasets(config, fault, folder, whole=recipe in RECIPES)
    opened = Datasets("text", *(open_dataset(places[split]) for split in ("train", "valid", "test")))
    create_run_folder(folder / "run", RunRecord(config, "text", "", places))
    outside = loop.Outside(lambda event: None, lambda: time.monotonic() > until, lambda metrics, path: None)
    with fault.code():
        loop.train(config, opened, Topology(0, 1, 1, config.data.lanes), folder / "run", outside)
    return diagnose(evidence_of(read_story(folder / "run")), data_evidence(places["train"], places["valid"]))


def _no_one(line: str) -> None:
    """Nobody listens."""


def _datasets(config: RunConfig, fault: Fault, folder: Path, whole: bool) -> dict[str, str]:
    corpus = find_corpus(("auto",), say=_no_one)
    if not whole:
        texts = {
            split: getattr(corpus, split)[0].read_text().splitlines()[:most]
            for split, most in (("train", fault.lines), ("valid", 300), ("test", 300))
        }
        (folder / "text").mkdir(parents=True)
        for split, lines in fault.texts(texts).items():
            (folder / "text" / f"{split}.txt").write_text("\n".join(lines) + "\n")
        corpus = find_corpus((str(folder / "text"),), cache_dir=folder / "cache", say=_no_one)
    prepared = prepare_corpus(corpus, folder / "datasets", _no_one, vocabulary_size=config.data.vocabulary_size)
    return {split: str(path) for split, path in asdict(prepared).items()}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Whether raylm diagnose names the fault of a training.")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORDS", help="cases whose name holds one of these")
    parser.add_argument("--recipe-seconds", type=float, default=30, help="how long each whole recipe trains")
    return parser.parse_args()


if __name__ == "__main__":
    main()
