"""What is in a dataset: its counts, lengths and words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raylm.data.dataset import Dataset


@dataclass(frozen=True)
class Bin:
    """How many rows have first to last tokens."""

    first: int
    last: int
    rows: int


@dataclass(frozen=True)
class Frequency:
    """How often a word occurs, and its share of all tokens."""

    word: str
    count: int
    share: float


@dataclass(frozen=True)
class Description:
    """What is in a dataset. Lengths are in tokens, `<eos>` counted; entropy is in nats a token.

    `unigram_perplexity` is the exponential of the entropy: what the best model without context reaches here.
    """

    dataset: Dataset
    bytes: int
    shards: int
    unknown_rate: float
    shortest_row: int
    mean_row: float
    longest_row: int
    row_lengths: tuple[Bin, ...]
    rows_without_target: int
    distinct_words: int
    most_frequent: tuple[Frequency, ...]
    entropy: float
    unigram_perplexity: float


def describe(dataset: Dataset, most_frequent: int = 20) -> Description:
    """Count everything in a dataset; reads all of it.

    Raises:
        UserError: a chunk is damaged.
    """
    counts = np.zeros(len(dataset.vocabulary), np.int64)
    lengths: dict[int, int] = {}
    for number in range(dataset.manifest.totals.chunks):
        chunk = dataset.chunk(number)
        counts += np.bincount(chunk.tokens, minlength=len(counts))
        for length, rows in zip(*np.unique(np.diff(chunk.row_offsets), return_counts=True), strict=True):
            lengths[int(length)] = lengths.get(int(length), 0) + int(rows)
    shares = counts[counts > 0] / dataset.tokens
    entropy = float(-(shares * np.log(shares)).sum())
    top = np.argsort(-counts, kind="stable")[:most_frequent]
    return Description(
        dataset=dataset,
        bytes=sum(record.bytes for record in dataset.manifest.files.values()),
        shards=int(dataset.index.shard[-1]) + 1,
        unknown_rate=dataset.unknowns / dataset.tokens,
        shortest_row=min(lengths),
        mean_row=dataset.tokens / dataset.rows,
        longest_row=max(lengths),
        row_lengths=_histogram(lengths),
        rows_without_target=lengths.get(1, 0),
        distinct_words=int(np.count_nonzero(counts)),
        most_frequent=tuple(
            Frequency(dataset.vocabulary.words[word], int(counts[word]), float(counts[word] / dataset.tokens))
            for word in top
            if counts[word]
        ),
        entropy=entropy,
        unigram_perplexity=math.exp(entropy),
    )


def _histogram(lengths: dict[int, int]) -> tuple[Bin, ...]:
    """Bins that double: 1, 2, 3-4, 5-8, ..."""
    bins: dict[int, int] = {}
    for length, rows in lengths.items():
        power = (length - 1).bit_length()
        bins[power] = bins.get(power, 0) + rows
    return tuple(Bin((1 << power - 1) + 1 if power else 1, 1 << power, bins[power]) for power in sorted(bins))
