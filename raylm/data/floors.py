"""What can be reached without a network: perplexities to hold a language model's against. NumPy only.

A model stuck at the unigram floor has learnt nothing of order; one that ends above the bigram floor has learnt less of
it than a table of word pairs holds.
"""

from __future__ import annotations

import numpy as np

from raylm.data.dataset import Dataset

BIGRAM_SHARE = 0.6
"""Weight of the pairs' frequencies beside the words' own (Jelinek and Mercer 1980)."""

_UNIGRAM_TOKENS = 20_000_000  # enough to know the words' distribution of any corpus
_BIGRAM_TOKENS = 2_000_000  # a third of a second; all of PTB. With less text than there is, the floor is a little high


def unigram_entropy(train: Dataset) -> float:
    """Entropy of the words' distribution in nats: what a model reaches on this text that ignores the context."""
    counts = np.bincount(train.read(0, min(train.tokens, _UNIGRAM_TOKENS)))
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def bigram_nats(train: Dataset, text: Dataset, share: float = BIGRAM_SHARE) -> float:
    """Cross-entropy of a text in nats a token, by the counts of the train text: `share` of the frequency of a word
    after the word before it, the rest the word's own frequency. A share of 0 is the unigram floor.

    Both share a vocabulary. A word that the train text lacks counts as if it were there once.
    """
    known = train.read(0, min(train.tokens, _BIGRAM_TOKENS)).astype(np.int64)
    asked = text.read(0, min(text.tokens, _BIGRAM_TOKENS)).astype(np.int64)
    words = len(train.vocabulary)
    counts = np.maximum(np.bincount(known, minlength=words), 1)
    before, after = asked[:-1], asked[1:]
    pairs, pair_counts = np.unique(known[:-1] * words + known[1:], return_counts=True)
    wanted = before * words + after
    places = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    together = np.where(pairs[places] == wanted, pair_counts[places], 0)
    likely = share * together / counts[before] + (1 - share) * counts[after] / counts.sum()
    return float(-np.log(likely).mean())
