"""Log probabilities are the literature's, and what adapts to the text never sees a word before it is predicted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from made_datasets import make_dataset, random_rows

from raylm.config import DataConfig, ModelConfig
from raylm.model.language_model import LanguageModel
from raylm.training.evaluate import Evaluator
from raylm.training.likelihood import WINDOW, Cache, Dynamic, Likelihood

WORDS = 30
CACHE = Cache(weight=0.2, theta=1.5, window=40)
DYNAMIC = Dynamic(learning_rate=0.5, clip=0.25, window=8)
WAYS: dict[str, tuple[Cache | None, Dynamic | None]] = {
    "plain": (None, None),
    "cache": (CACHE, None),
    "dynamic": (None, DYNAMIC),
    "both": (CACHE, DYNAMIC),
}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(ModelConfig(layers=2, hidden=6, init_scale=0.9, dropout=0.5), WORDS, seed=0)


@pytest.fixture(scope="module")
def readers(model: LanguageModel) -> dict[str, Likelihood]:
    return {way: Likelihood(model, *adapting) for way, adapting in WAYS.items()}


def text(tokens: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, WORDS, tokens)


def logs_of(reader: Likelihood, ids: np.ndarray, piece: int = 10**9) -> np.ndarray:
    pieces = (ids[start : start + piece] for start in range(0, len(ids), piece))
    return np.concatenate(list(reader.log_probabilities(pieces)))


def test_they_are_those_of_the_evaluation_in_training(
    tmp_path: Path, model: LanguageModel, readers: dict[str, Likelihood]
) -> None:
    dataset = make_dataset(tmp_path / "text", *random_rows(120, vocabulary=WORDS), WORDS)
    score = Evaluator(model).score(dataset)
    logs = logs_of(readers["plain"], dataset.read(0, dataset.tokens))
    assert score.tokens == len(logs) > 2 * WINDOW
    assert -logs.mean(dtype=np.float64) == pytest.approx(score.nats, abs=1e-6)


def test_sentence_by_sentence_they_are_those_of_the_training_on_sentences(
    tmp_path: Path, model: LanguageModel, readers: dict[str, Likelihood]
) -> None:
    """Some longer than the widest bucket, and some of one token, which have no target."""
    dataset = make_dataset(tmp_path / "text", *random_rows(120, vocabulary=WORDS), WORDS)
    score = Evaluator(model, DataConfig(mode="sentences", buckets=(3, 6))).score(dataset)
    rows = np.split(dataset.read(0, dataset.tokens), np.cumsum(random_rows(120, vocabulary=WORDS)[1])[:-1])
    found = list(readers["plain"].of_sentences(rows, longest=6))
    assert [len(logs) for logs in found] == [len(row) - 1 for row in rows]
    assert score.tokens == sum(map(len, found))
    assert -np.concatenate(found).mean(dtype=np.float64) == pytest.approx(score.nats, abs=1e-6)


def test_a_sentence_is_read_as_if_alone(readers: dict[str, Likelihood]) -> None:
    rows = [text(length, seed=length) for length in (5, 12, 1, 2, 9)]
    for row, found in zip(rows, readers["plain"].of_sentences(rows, longest=20), strict=True):
        expected = logs_of(readers["plain"], row) if len(row) > 1 else []
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(next(readers["plain"].of_sentences([text(1)], longest=20))) == 0


@pytest.mark.parametrize("way", WAYS)
def test_how_the_text_comes_in_pieces_changes_nothing(way: str, readers: dict[str, Likelihood]) -> None:
    size = DYNAMIC.window if WAYS[way][1] else WINDOW
    ids = text(2 * size + 5)
    expected = logs_of(readers[way], ids)
    assert len(expected) == len(ids) - 1
    for piece in (1, 7, size):
        np.testing.assert_array_equal(logs_of(readers[way], ids, piece), expected)


@pytest.mark.parametrize("way", WAYS)
def test_no_later_word_changes_an_earlier_log_probability(way: str, readers: dict[str, Likelihood]) -> None:
    """In and at the edges of the windows of the cache, of dynamic evaluation and of the reading."""
    size = DYNAMIC.window if WAYS[way][1] else WINDOW
    ids = text(size + 60)
    before = logs_of(readers[way], ids)
    for place in (1, 41, size - 1, size, size + 1, len(ids) - 1):
        changed = ids.copy()
        changed[place:] = (ids[place:] + 1 + text(len(ids) - place, seed=place) % (WORDS - 1)) % WORDS
        after = logs_of(readers[way], changed)
        np.testing.assert_array_equal(after[: place - 1], before[: place - 1])
        assert (after[place - 1 :] != before[place - 1 :]).mean() > 0.9  # and the change is one that shows


@pytest.mark.parametrize("way", WAYS)
def test_the_probabilities_of_all_words_that_could_come_next_add_up_to_one(
    way: str, readers: dict[str, Likelihood]
) -> None:
    ids = text(45)
    last = [logs_of(readers[way], np.append(ids, word))[-1] for word in range(WORDS)]
    assert np.exp(last).sum() == pytest.approx(1, abs=1e-5)


def test_the_cache_is_grave_s_formula_one_word_at_a_time(model: LanguageModel, readers: dict[str, Likelihood]) -> None:
    ids = text(WINDOW + 60)
    hidden = model.outputs(ids[:-1, None].astype(np.int32), model.zero_carry(1), None)[0].numpy()[:, 0]
    plain = logs_of(readers["plain"], ids).astype(np.float64)
    expected = []
    for t, word in enumerate(ids[1:]):
        seen = range(max(0, t - CACHE.window), t)
        similar = [np.exp(CACHE.theta * hidden[t] @ hidden[i]) for i in seen]
        same = sum(value for value, i in zip(similar, seen, strict=True) if ids[i + 1] == word)
        share = CACHE.weight if t else 0
        expected.append(np.log((1 - share) * np.exp(plain[t]) + (share * same / sum(similar) if t else 0)))
    np.testing.assert_allclose(logs_of(readers["cache"], ids), expected, rtol=1e-5)


def test_dynamic_evaluation_is_clipped_sgd_on_the_words_already_predicted(
    model: LanguageModel, readers: dict[str, Likelihood]
) -> None:
    ids = text(3 * DYNAMIC.window + 4).astype(np.int32)
    ids[2:6] = ids[1]  # a word that comes again in a window: its row's gradient is a sum
    twin = LanguageModel(model.config, WORDS, seed=0)
    carry, expected = twin.zero_carry(1), []
    for start in range(0, len(ids) - 1, DYNAMIC.window):
        targets = ids[start + 1 :][: DYNAMIC.window]
        inputs = ids[start:][: len(targets), None]
        hidden, _ = twin.outputs(inputs, carry, None)
        logs = tf.nn.log_softmax(twin.logits(hidden[:, 0])).numpy()
        expected += list(logs[np.arange(len(targets)), targets])
        with tf.GradientTape() as tape:
            tape.watch(list(twin.weights.values()))
            loss, carry = twin.loss_sum(inputs, targets[:, None], np.ones_like(inputs, np.float32), carry, None)
            loss /= len(targets)
        gradients = [tf.convert_to_tensor(each) for each in tape.gradient(loss, list(twin.weights.values()))]
        norm = np.sqrt(sum(float(tf.reduce_sum(each**2)) for each in gradients))
        assert norm > DYNAMIC.clip
        for weight, gradient in zip(twin.weights.values(), gradients, strict=True):
            weight.assign_sub(DYNAMIC.learning_rate * gradient * min(1, DYNAMIC.clip / norm))
    np.testing.assert_allclose(logs_of(readers["dynamic"], ids), expected, rtol=1e-4)


@pytest.mark.parametrize("stops_early", [False, True])
def test_the_weights_are_put_back_after_dynamic_evaluation(
    stops_early: bool, model: LanguageModel, readers: dict[str, Likelihood]
) -> None:
    before = [weight.numpy() for weight in model.weights.values()]
    reading = readers["dynamic"].log_probabilities([text(100)])
    for _ in itertools.islice(reading, 3 if stops_early else None):
        pass
    assert stops_early == any(
        (weight.numpy() != value).any() for weight, value in zip(model.weights.values(), before, strict=True)
    )
    reading.close()
    for weight, value in zip(model.weights.values(), before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)


@pytest.mark.parametrize("way", ["cache", "dynamic"])
def test_a_text_that_repeats_itself_becomes_likelier(way: str, readers: dict[str, Likelihood]) -> None:
    ids = np.tile(text(20), 15)
    assert logs_of(readers[way], ids)[-40:].mean() > logs_of(readers["plain"], ids)[-40:].mean() + 0.2


def test_the_text_is_read_no_further_than_what_is_asked_for(readers: dict[str, Likelihood]) -> None:
    taken = []

    def pieces() -> Iterator[np.ndarray]:
        for number in range(9):
            taken.append(number)
            yield text(WINDOW)

    next(readers["plain"].log_probabilities(pieces()))
    assert taken == [0, 1]


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_text_without_a_target_has_no_log_probability(tokens: int, readers: dict[str, Likelihood]) -> None:
    assert list(readers["plain"].log_probabilities([text(tokens)])) == []
