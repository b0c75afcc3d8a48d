"""Perplexities that a network is held against."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from made_datasets import make_dataset, random_rows

from raylm.data.corpora import find_corpus
from raylm.data.dataset import open_dataset
from raylm.data.floors import bigram_nats, unigram_entropy
from raylm.data.prepare import prepare_corpus


def test_the_penn_treebanks_floors_come_out(ptb_dir: Path, tmp_path: Path) -> None:
    corpus = find_corpus("ptb", data_dir=ptb_dir, say=lambda line: None)
    splits = prepare_corpus(corpus, tmp_path, lambda line: None, vocabulary_size=10_000)
    train = open_dataset(splits.train)
    found = {
        split: [round(math.exp(bigram_nats(train, open_dataset(path), share))) for share in (0.0, 0.6)]
        for split, path in (("valid", splits.valid), ("test", splits.test))
    }
    assert found == {"valid": [687, 229], "test": [639, 212]}
    assert round(math.exp(unigram_entropy(train))) == 685


def test_a_text_of_pairs_is_known_by_its_pairs(tmp_path: Path) -> None:
    tokens = np.tile([2, 3], 500)
    train = make_dataset(tmp_path / "train", tokens, np.array([1000]), 4)
    assert unigram_entropy(train) == pytest.approx(math.log(2))
    assert bigram_nats(train, train) == pytest.approx(-math.log(0.6 + 0.4 * 0.5), abs=2e-3)


def test_words_that_the_train_text_lacks_cost_much_and_break_nothing(tmp_path: Path) -> None:
    train = make_dataset(tmp_path / "train", np.array([2, 3, 0]), np.array([3]), 50)
    text = make_dataset(tmp_path / "text", *random_rows(20, vocabulary=50), 50)
    assert math.log(4) < bigram_nats(train, text) < 6
