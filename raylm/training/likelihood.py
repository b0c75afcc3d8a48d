"""The log probability of every word of a text, without dropout: given all before it, one lane with its carry kept, or
sentence by sentence, each given its first word.

Two ways to adapt to a text of one lane while it is read, neither of which ever sees a word before it is predicted:

- the neural cache (Grave, Joulin and Usunier 2016, arXiv:1612.04426): words that followed similar hidden states lately
  are made likelier, p = (1 − λ) p_model + λ p_cache, where p_cache(w) is the sum of softmax(θ h_t · h_i) over the last
  `window` places i < t with x_{i+1} = w;
- dynamic evaluation (Krause, Kahembwe, Murray and Renals 2017, arXiv:1709.07432), with plain SGD: after each `window`
  words were predicted, one step on their mean loss, clipped by global norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import tensorflow as tf

from raylm.model.language_model import Carry, LanguageModel
from raylm.model.types import Tensor
from raylm.optim.clipping import clip_factor, global_norm
from raylm.optim.optimizers import SGD
from raylm.optim.rows import row_gradient, summed_by_row

WINDOW = 256
"""Words read at once: it bounds memory, and the carry makes the result independent of it."""
SENTENCES = 32
"""Sentences read at once; no one's result depends on the others."""


@dataclass(frozen=True)
class Cache:
    """weight: λ, the cache's share, between 0 and 1. theta: how much more similar states count. window: places
    remembered."""

    weight: float
    theta: float
    window: int


@dataclass(frozen=True)
class Dynamic:
    """learning_rate: of the mean loss of `window` words in nats. clip: largest global norm of its gradient."""

    learning_rate: float
    clip: float
    window: int


class Likelihood:
    """Reads texts with one model, with or without what adapts to them; its step is traced once."""

    def __init__(self, model: LanguageModel, cache: Cache | None = None, dynamic: Dynamic | None = None) -> None:
        self._model, self._cache, self._dynamic = model, cache, dynamic
        ids = tf.TensorSpec([None, None], tf.int32)
        carry = tf.nest.map_structure(lambda part: tf.TensorSpec([None, part.shape[1]]), model.zero_carry(1))
        read = self._read_and_learn if dynamic else self._plainly
        self._read: Any = tf.function(read, [ids, ids, carry], autograph=False)

    def log_probabilities(self, ids: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Log probabilities in nats, float32, of every id but the first, some at a time; memory holds one window.

        ids: pieces of one text in order. With `dynamic` the model's weights change on the way; they are put back at
        the end, also where the reader stops early and closes the iterator.
        """
        carry, remembered = self._model.zero_carry(1), _Remembered(self._cache) if self._cache else None
        with _weights_put_back(self._model) if self._dynamic else nullcontext():
            for window in _windows(ids, self._dynamic.window if self._dynamic else WINDOW):
                inputs, targets = window[:-1, None], window[1:, None]
                read = self._read(tf.constant(inputs), tf.constant(targets), carry)
                logs, hidden, carry = read[0][:, 0].numpy(), read[1][:, 0].numpy(), read[2]
                yield logs if remembered is None else remembered.mix(logs, hidden, targets[:, 0])

    def of_sentences(self, sentences: Iterable[np.ndarray], longest: int) -> Iterator[np.ndarray]:
        """Log probabilities of each sentence's ids but the first, one array a sentence; nothing adapts.

        Each is read from a carry of zero; one of more than `longest` targets in pieces of so many, as in training.
        """
        assert (self._cache, self._dynamic) == (None, None)
        for group in _groups(sentences):
            pieces = [each[at : at + longest + 1] for each in group for at in range(0, max(len(each) - 1, 1), longest)]
            padded = np.zeros((max(map(len, pieces)), len(pieces)), np.int32)
            for lane, piece in enumerate(pieces):
                padded[: len(piece), lane] = piece
            carry = self._model.zero_carry(len(pieces))
            logs_TB = np.zeros((0, len(pieces)), np.float32)
            if len(padded) > 1:
                logs_TB = self._read(tf.constant(padded[:-1]), tf.constant(padded[1:]), carry)[0].numpy()
            found = iter([logs_TB[: len(piece) - 1, lane] for lane, piece in enumerate(pieces)])
            for each in group:
                yield np.concatenate([next(found) for _ in range(0, max(len(each) - 1, 1), longest)])

    def _plainly(self, inputs_TB: Tensor, targets_TB: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Carry]:
        """Log probabilities [T, B] of the targets, the hidden states [T, B, H] that predict them, and the carry."""
        hidden, after = self._model.outputs(inputs_TB, carry, None)
        logits = self._model.logits(tf.reshape(hidden, [-1, hidden.shape[-1]]))
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.reshape(targets_TB, [-1]), logits)
        return -tf.reshape(losses, tf.shape(targets_TB)), hidden, after

    def _read_and_learn(self, inputs_TB: Tensor, targets_TB: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Carry]:
        """The same, and then a step of SGD on what was predicted."""
        assert self._dynamic is not None
        weights = self._model.weights
        with tf.GradientTape() as tape:
            tape.watch(list(weights.values()))
            logs, hidden, after = self._plainly(inputs_TB, targets_TB, carry)
            loss = -tf.reduce_mean(logs)
        found = tape.gradient(loss, list(weights.values()))
        slices = [row_gradient(each) if isinstance(each, tf.IndexedSlices) else each for each in found]
        gradients = [summed_by_row(each) for each in slices]
        factor = clip_factor(global_norm(gradients), self._dynamic.clip)
        SGD(weights).apply(gradients, [factor] * len(gradients), tf.constant(self._dynamic.learning_rate))
        return logs, hidden, after


def _windows(ids: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """int32 [size + 1] each, the last one shorter; each begins with the last id of the one before."""
    ahead = np.zeros(0, np.int32)
    for piece in ids:
        ahead = np.concatenate([ahead, piece.astype(np.int32)])
        whole = max(len(ahead) - 1, 0) // size * size
        for start in range(0, whole, size):
            yield ahead[start : start + size + 1]
        ahead = ahead[whole:]
    if len(ahead) > 1:
        yield ahead


def _groups(sentences: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    left = iter(sentences)
    while group := list(islice(left, SENTENCES)):
        yield group


class _Remembered:
    """The last hidden states and the word that followed each."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._states: np.ndarray | None = None
        self._words = np.zeros(0, np.int32)

    def mix(self, logs_T: np.ndarray, states_TH: np.ndarray, words_T: np.ndarray) -> np.ndarray:
        """Log probabilities with the cache's share in them, each from the places before its own; then these are
        remembered too."""
        known = len(self._words)
        states = states_TH if self._states is None else np.concatenate([self._states, states_TH])
        words = np.concatenate([self._words, words_T])
        mixed = mix_cache(self._cache, logs_T, states, words, known)
        self._states, self._words = states[-self._cache.window :], words[-self._cache.window :]
        return mixed


def mix_cache(cache: Cache, logs_T: np.ndarray, states: np.ndarray, words: np.ndarray, known: int) -> np.ndarray:
    """p_model and p_cache interpolated, in logarithms, for the places from `known` on.

    states [known + T, H], words [known + T]: place i is the hidden state that predicts word i. A place looks back on at
    most `cache.window` places strictly before it; with none, p_model stands alone.
    """
    place = np.arange(known, len(words))[:, None]
    other = np.arange(len(words))[None]
    seen = (other < place) & (other >= place - cache.window)
    scores = np.where(seen, cache.theta * (states[known:] @ states.T).astype(np.float64), -np.inf)
    highest = np.max(scores, axis=1, keepdims=True, initial=-1e300)
    likeness = np.exp(scores - highest)
    totals = likeness.sum(axis=1)
    same = np.where(words[known:, None] == words[None], likeness, 0.0).sum(axis=1)
    share = np.where(totals > 0, cache.weight, 0.0)
    from_cache = share * same / np.where(totals > 0, totals, 1.0)
    with np.errstate(divide="ignore"):  # the logarithm of nothing: what the cache does not hold
        mixed: np.ndarray = np.logaddexp(np.log1p(-share) + logs_T, np.log(from_cache))
    return mixed.astype(np.float32)


@contextmanager
def _weights_put_back(model: LanguageModel) -> Iterator[None]:
    before = [weight.numpy() for weight in model.weights.values()]
    try:
        yield
    finally:
        for weight, value in zip(model.weights.values(), before, strict=True):
            weight.assign(value)
