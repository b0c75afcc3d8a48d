"""Rows that occur more than once: within a text, and of one text in another. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raylm.data.dataset import Dataset

SHORTEST = 8
"""Tokens, `<eos>` among them, from which a row that occurs twice is no chance."""

_MOST_TOKENS = 4_000_000


@dataclass(frozen=True)
class Repeats:
    """Of the rows of at least `SHORTEST` tokens: how many there are in train, the share of them that an earlier one
    equals, and the share of the valid text's that the train text holds."""

    rows: int
    repeated: float
    valid_in_train: float


def repeats(train: Dataset, valid: Dataset) -> Repeats:
    """Counts repeated rows by a hash of 64 bits; of a long text, in its first chunks up to four million tokens.

    Raises:
        UserError: a chunk is damaged.
    """
    known, asked = _hashes(train), _hashes(valid)
    repeated = 1 - len(np.unique(known)) / len(known) if len(known) else 0.0
    return Repeats(len(known), repeated, float(np.isin(asked, known).mean()) if len(asked) else 0.0)


def _hashes(dataset: Dataset) -> np.ndarray:
    """A hash of each row that is long enough."""
    parts, tokens = [np.empty(0, np.uint64)], 0
    for number in range(dataset.manifest.totals.chunks):
        if tokens >= _MOST_TOKENS:
            break
        chunk = dataset.chunk(number)
        starts, lengths = np.asarray(chunk.row_offsets[:-1]), np.diff(chunk.row_offsets)
        places = np.arange(len(chunk.tokens)) - np.repeat(starts, lengths)
        mixed = _mixed(chunk.tokens.astype(np.uint64) + (places.astype(np.uint64) << np.uint64(32)))
        parts.append(np.add.reduceat(mixed, starts)[lengths >= SHORTEST])
        tokens += len(chunk.tokens)
    return np.concatenate(parts)


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's mixing (Steele, Lea and Flood 2014), so that sums of these numbers do not collide."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))
