"""Trainings with one fault each, and healthy ones: what `jobs/bench_diagnose.py` lets `raylm diagnose` look at."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import tensorflow as tf

from raylm.guard.judge import Outcome
from raylm.model import language_model
from raylm.model.dropout import Masks, mask_key
from raylm.optim.optimizers import SGD
from raylm.training import pipeline
from raylm.training.step import Batch

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
    return lambda: mock.patch.object(pipeline, "Batch", lambda *parts: Batch(*change(*parts)))


def _summed() -> AbstractContextManager[Any]:
    def outcome(**told: Any) -> Outcome:
        return Outcome(**{**told, "loss": told["loss"] * told["tokens"]})

    return mock.patch.object(pipeline, "Outcome", outcome)


def _first_weights(change: Callable[[str, Any], Any]) -> Patch:
    original = language_model.drawn_weights

    def changed(*arguments: Any) -> Iterator[tuple[str, Any]]:
        return ((name, change(name, value)) for name, value in original(*arguments))

    return lambda: mock.patch.object(language_model, "drawn_weights", changed)


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
