"""Evaluation as the model was trained, and text sampled from it. No dropout, every target once.

Streams, the literature's protocol: one lane, one pass over the whole file with the carry kept. Sentences: each alone,
from a carry of zero, its first word given and not predicted (pieces of a sentence longer than the widest bucket are
alone too); so its perplexity is not the literature's, which predicts every word and knows the sentences before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from raylm.config import DataConfig
from raylm.data.dataset import Dataset
from raylm.data.streams import Window
from raylm.data.tokenize import SYMBOLS, symbols
from raylm.data.vocabulary import Vocabulary
from raylm.model.language_model import Carry, LanguageModel
from raylm.model.types import Tensor
from raylm.training.datasets import open_evaluation
from raylm.training.generate import shown


@dataclass(frozen=True)
class Score:
    """Mean negative log-likelihood in nats a token over `tokens` targets.

    lanes_apart: how far, in nats a token, two readings of the same words lie apart: rounding, and no more, where the
    evaluation draws nothing at random.
    """

    nats: float
    tokens: int
    lanes_apart: float = 0.0

    @property
    def perplexity(self) -> float:
        """exp(nats); infinite where that overflows."""
        return perplexity(self.nats)


def perplexity(nats: float) -> float:
    """exp(nats); infinite where that overflows, NaN for NaN."""
    return math.exp(nats) if not nats >= 700 else math.inf


class Evaluator:
    """The compiled reading functions of one model; each is traced once. data: how the model reads."""

    def __init__(self, model: LanguageModel, data: DataConfig = DataConfig()) -> None:  # noqa: B008 - it is frozen
        self.model, self.data = model, data
        ids, weights = tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None, None], tf.float32)
        carry = tf.nest.map_structure(lambda part: tf.TensorSpec([None, part.shape[1]]), model.zero_carry(1))

        @tf.function(input_signature=[ids, ids, weights, carry], autograph=False)
        def window_loss(inputs: Tensor, targets: Tensor, weights: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
            return model.loss_sum(tf.transpose(inputs), tf.transpose(targets), tf.transpose(weights), carry, None)

        @tf.function(autograph=False)
        def next_logits(token: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
            return model.next_logits(token, carry)

        self._window_loss: Callable[..., tuple[Any, Carry]] = window_loss
        self._next_logits: Callable[..., tuple[Any, Carry]] = next_logits

    def score(self, dataset: Dataset) -> Score:
        """The perplexity of the model on a whole dataset."""
        source = open_evaluation(self.data, dataset)
        cursor, carry = source.start(), self.model.zero_carry(1)
        total, tokens, apart = 0.0, 0, None
        while cursor.epoch == 0:
            window, cursor = source.read(cursor)
            apart = self._lanes_apart(window) if apart is None else apart
            if window.reset:
                carry = self.model.zero_carry(len(window.inputs))
            arrays = (window.inputs, window.targets, window.weights)
            loss, carry = self._window_loss(*map(tf.constant, arrays), carry)
            total += float(loss)
            tokens += window.targets_total
        return Score(total / tokens, tokens, apart or 0.0)

    def _lanes_apart(self, window: Window) -> float:
        """Two lanes read a window's first row from a carry of zero; each is counted alone, in a call of its own."""
        parts = (window.inputs, window.targets, window.weights)
        inputs, targets, weights = (np.repeat(part[:1], 2, axis=0) for part in parts)
        alone = [weights * np.array([[lane == 0], [lane == 1]], np.float32) for lane in range(2)]
        carry = self.model.zero_carry(2)
        one, other = (float(self._window_loss(*map(tf.constant, (inputs, targets, w)), carry)[0]) for w in alone)
        return abs(one - other) / max(float(weights[0].sum()), 1.0)

    def sample(
        self, vocabulary: Vocabulary, prompt: str, words: int, seed: int, step: int, tokenizer: str = "whitespace"
    ) -> str:
        """`words` words drawn after the prompt, or characters or bytes of such a model; a pure function of the weights,
        the seed and the step. A model of sentences ends with its sentence.

        `<unk>` is never drawn, so that the text can be read; the prompt's unknown words are left out where the
        vocabulary has no `<unk>`.
        """
        generator = np.random.Generator(np.random.Philox(key=[seed, step]))
        given = symbols(prompt, tokenizer) if tokenizer in SYMBOLS else prompt.lower().split()
        known = [word for word in given if vocabulary.unknown is not None or word in vocabulary.ids]
        ids = vocabulary.encode(known) or [vocabulary.end_of_sentence]
        carry = self.model.zero_carry(1)
        for token in ids[:-1]:
            _, carry = self._next_logits(tf.constant([token]), carry)
        drawn = ids[-1:]
        for _ in range(words):
            logits, carry = self._next_logits(tf.constant([drawn[-1]]), carry)
            drawn.append(_draw(logits[0].numpy().astype(np.float64), vocabulary.unknown, generator))
            if self.data.mode == "sentences" and drawn[-1] == vocabulary.end_of_sentence:
                break
        if tokenizer in SYMBOLS:
            return b"".join(shown(drawn[1:], vocabulary, tokenizer, begins_line=True)).decode(errors="replace")
        return vocabulary.decode(drawn[1:])


def _draw(logits: np.ndarray, never: int | None, generator: np.random.Generator) -> int:
    if never is not None:
        logits[never] = -np.inf
    shares = np.exp(logits - logits.max())
    drawn = np.searchsorted(np.cumsum(shares), generator.random() * shares.sum(), side="right")
    return int(min(drawn, len(shares) - 1))
