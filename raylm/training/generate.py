"""Text sampled word by word: which words may come, how one is drawn, and the stream of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from raylm.data.tokenize import tokenizer_named
from raylm.data.vocabulary import Vocabulary
from raylm.model.language_model import LanguageModel


@dataclass(frozen=True)
class Sampling:
    """How a word is drawn.

    temperature: divides the logits; 0 takes the likeliest word. top_k: only the k likeliest, None for all. top_p: only
    the likeliest words that together reach this share (Holtzman et al. 2019, arXiv:1904.09751). never: ids not drawn.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    never: tuple[int, ...] = ()


class Generator:
    """Samples from one model; its step is traced once."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._step = tf.function(model.next_logits, autograph=False)

    def ids(
        self, context: Sequence[int], sampling: Sampling, random: np.random.Generator, last: int | None = None
    ) -> Iterator[int]:
        """Ids that go on from a context of at least one id, each drawn when it is asked for; without end unless `last`
        is drawn.

        A pure function of the weights, the context, the sampling and the state of `random`.
        """
        carry = self._model.zero_carry(1)
        for token in context[:-1]:
            _, carry = self._step(tf.constant([token]), carry)
        token = context[-1]
        while True:
            logits, carry = self._step(tf.constant([token]), carry)
            token = draw(logits[0].numpy(), sampling, random)
            yield token
            if token == last:
                return


def draw(logits_V: np.ndarray, sampling: Sampling, random: np.random.Generator) -> int:
    """One id. Of equally likely words the lower id counts as the likelier one."""
    logits = logits_V.astype(np.float64)
    logits[list(sampling.never)] = -np.inf
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    order = np.argsort(-logits, kind="stable")[: sampling.top_k]
    shares = np.exp((logits[order] - logits[order[0]]) / sampling.temperature)
    sums = np.cumsum(shares)
    kept = 1 + int(np.searchsorted(sums, sampling.top_p * sums[-1])) if sampling.top_p < 1 else len(order)
    kept = min(kept, int(np.count_nonzero(shares)))
    place = np.searchsorted(sums[:kept], random.random() * sums[kept - 1], side="right")
    return int(order[min(int(place), kept - 1)])


def read_prompt(prompt: str, vocabulary: Vocabulary, tokenizer: str) -> tuple[list[int], list[str]]:
    """The ids of a prompt, as text is read in training, and its words that are `<unk>`.

    A word the vocabulary has in lower case only is lowered.

    Raises:
        UserError: a word is not in a vocabulary without `<unk>`.
    """
    text = prompt if tokenizer == "bytes" else " ".join(prompt.split("\n"))
    words = tokenizer_named(tokenizer)
    if tokenizer == "whitespace":
        text = " ".join(word if word in vocabulary.ids else word.lower() for word in text.split())
    ids = words.encoder(vocabulary)(text.encode()).ids.tolist()[:-1]
    raw = [] if tokenizer == "bytes" else list(text) if tokenizer == "characters" else text.split()
    unknown = [word for word in raw if any(piece not in vocabulary.ids for piece in words.pieces(word))]
    return ids, unknown


def shown(ids: Iterable[int], vocabulary: Vocabulary, tokenizer: str, *, begins_line: bool) -> Iterator[bytes]:
    """What to print for each id: words set apart by blanks, `<eos>` as the end of a line; UTF-8 unless it is bytes."""
    for token in ids:
        ends_line = token == vocabulary.end_of_sentence
        if ends_line:
            yield b"\n"
        elif tokenizer == "bytes":
            yield bytes([token])
        else:
            blank = "" if begins_line or tokenizer == "characters" else " "
            yield (blank + vocabulary.words[token]).encode()
        begins_line = ends_line
