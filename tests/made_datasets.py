"""Small datasets for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raylm.data.dataset import Dataset, open_dataset
from raylm.data.vocabulary import Vocabulary
from raylm.data.writer import DatasetWriter


def words(count: int) -> Vocabulary:
    """`<eos>`, `<unk>`, w2, w3, ..."""
    return Vocabulary(("<eos>", "<unk>", *(f"w{number}" for number in range(2, count))))


def random_rows(count: int, seed: int = 0, longest: int = 12, vocabulary: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Ids of `count` rows, and their lengths from 1 to `longest`; each row ends with `<eos>`."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, count)
    tokens = random.integers(1, vocabulary, int(lengths.sum()))
    tokens[np.cumsum(lengths) - 1] = 0
    return tokens, lengths


def make_dataset(
    path: Path, tokens: np.ndarray, lengths: np.ndarray, vocabulary: int, chunk: int = 256, shard: int = 1024
) -> Dataset:
    """Write rows as a dataset and open it."""
    with DatasetWriter(path, words(vocabulary), chunk_tokens=chunk, shard_tokens=shard) as writer:
        writer.append(tokens, lengths)
        writer.commit()
    return open_dataset(path)


def counting_dataset(path: Path, lengths: list[int], chunk: int = 16, shard: int = 48) -> Dataset:
    """A dataset whose tokens are 0, 1, 2, ...: an id says where in the stream it is."""
    total = sum(lengths)
    return make_dataset(path, np.arange(total), np.array(lengths), max(total, 3), chunk, shard)
