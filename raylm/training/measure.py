"""The perplexity of a model on a text, as the literature measures it, and with what adapts to the text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from raylm.errors import UserError
from raylm.training.evaluate import perplexity
from raylm.training.likelihood import Likelihood
from raylm.training.texts import Text, sentences


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

    @property
    def bits(self) -> float:
        """Mean bits a token: of a model of bytes, what a byte of the text would be compressed to."""
        return self.nats / math.log(2)

    @property
    def unknown_rate(self) -> float:
        """The share of targets that are `<unk>`."""
        return self.unknowns / self.tokens


def measure(likelihood: Likelihood, text: Text, unknown: int | None, longest: int | None = None) -> Measured:
    """Reads a whole text once, without dropout: as one lane with the carry kept, the first token given; with `longest`
    sentence by sentence, the first token of each given (`Likelihood.of_sentences`).

    unknown: the id of `<unk>`, None where the vocabulary has none.

    Raises:
        UserError: the text cannot be read, or has no token to predict.
    """
    began, unknowns = time.perf_counter(), 0

    def counted(ids: Iterable[np.ndarray], given: Callable[[int], int]) -> Iterator[np.ndarray]:
        nonlocal unknowns
        for number, piece in enumerate(ids):
            unknowns += int(np.count_nonzero(piece[given(number) :] == (-1 if unknown is None else unknown)))
            yield piece

    if longest is None:
        found = likelihood.log_probabilities(counted((ids for ids, _ in text.read()), lambda number: int(number == 0)))
    else:
        found = likelihood.of_sentences(counted(sentences(text.read()), lambda _: 1), longest)
    total, tokens = 0.0, 0
    for logs in found:
        total -= float(logs.sum(dtype=np.float64))
        tokens += len(logs)
    if not tokens:
        raise UserError(f"{text.name} has no token to predict: it needs two at least")
    return Measured(text.name, total / tokens, tokens, unknowns, time.perf_counter() - began)
