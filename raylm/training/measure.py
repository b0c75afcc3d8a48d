"""The perplexity of a model on a text, as the literature measures it, and with what adapts to the text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from raylm.errors import UserError
from raylm.training.evaluate import perplexity
from raylm.training.likelihood import Likelihood
from raylm.training.texts import Text


@dataclass(frozen=True)
class Measured:
    """nats: mean negative log likelihood of `tokens` targets; unknowns: how many of these are `<unk>`."""

    text: str
    nats: float
    tokens: int
    unknowns: int
    seconds: float

    @property
    def perplexity(self) -> float:
        """exp(nats); infinite where that overflows."""
        return perplexity(self.nats)


def measure(likelihood: Likelihood, text: Text, unknown: int | None) -> Measured:
    """Reads a whole text once: one lane, the carry kept, no dropout; the first token is given, not predicted.

    unknown: the id of `<unk>`, None where the vocabulary has none.

    Raises:
        UserError: the text cannot be read, or has no token to predict.
    """
    began, unknowns, before = time.perf_counter(), 0, None

    def counted() -> Iterator[np.ndarray]:
        nonlocal unknowns, before
        for piece in text.read():
            if unknown is not None:
                unknowns += int(np.count_nonzero(piece == unknown))
            before = piece[0] if before is None else before
            yield piece

    total, tokens = 0.0, 0
    for logs in likelihood.log_probabilities(counted()):
        total -= float(logs.sum(dtype=np.float64))
        tokens += len(logs)
    if not tokens:
        raise UserError(f"{text.name} has fewer than two tokens: there is nothing to predict")
    unknowns -= int(before is not None and before == unknown)
    return Measured(text.name, total / tokens, tokens, unknowns, time.perf_counter() - began)
