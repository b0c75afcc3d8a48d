"""Evaluation is the literature's: batch 1, one carried pass over the whole text; samples are pure functions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from made_datasets import make_dataset, random_rows, words
from test_lstm import reference

from raylm.config import DataConfig, ModelConfig
from raylm.data.dataset import Dataset
from raylm.data.tokenize import BYTE_VOCABULARY
from raylm.data.vocabulary import Vocabulary
from raylm.model.dropout import Masks, mask_key
from raylm.model.language_model import Carry, LanguageModel
from raylm.model.types import Tensor, Touch, untouched
from raylm.training.datasets import EVALUATION_WINDOW
from raylm.training.evaluate import Evaluator, Score, perplexity

WORDS = 30


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return Evaluator(LanguageModel(ModelConfig(layers=2, hidden=6, init_scale=0.5, dropout=0.5), WORDS, seed=0))


def text(path: Path, rows: int) -> Dataset:
    return make_dataset(path, *random_rows(rows, vocabulary=WORDS), WORDS, chunk=64, shard=256)


@pytest.mark.parametrize("rows", [3, 120])
def test_the_score_is_one_carried_pass_over_the_whole_text_without_dropout(
    tmp_path: Path, evaluator: Evaluator, rows: int
) -> None:
    """Texts shorter than a window of the evaluation, and longer than two."""
    dataset = text(tmp_path / "text", rows)
    ids = dataset.read(0, dataset.tokens)
    model = evaluator.model
    column = ids.astype(np.int32)[:, None]
    loss, _ = model.loss_sum(column[:-1], column[1:], np.ones((len(ids) - 1, 1), np.float32), model.zero_carry(1), None)
    score = evaluator.score(dataset)
    assert score.tokens == len(ids) - 1
    assert score.nats == pytest.approx(float(loss) / (len(ids) - 1), rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(score.nats))


def test_the_score_is_that_of_the_equations_in_double_precision_to_1e_6_nats(
    tmp_path: Path, evaluator: Evaluator
) -> None:
    dataset = text(tmp_path / "text", 120)
    ids = dataset.read(0, dataset.tokens)
    weights = {name: weight.numpy().astype(np.float64) for name, weight in evaluator.model.weights.items()}
    outputs = weights["embedding"][ids[:-1]][:, None]
    for layer in range(2):
        parts = (weights[f"lstm{layer}/{part}"] for part in ("kernel", "recurrent", "bias"))
        outputs, _, _ = reference(outputs, np.zeros((1, 6)), np.zeros((1, 6)), *parts)
    logits = outputs[:, 0] @ weights["softmax"].T + weights["softmax/bias"]
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(ids) - 1), ids[1:]]
    assert evaluator.score(dataset).nats == pytest.approx(losses.mean(), abs=1e-6)


def test_the_texts_above_are_shorter_than_a_window_and_longer_than_two(tmp_path: Path) -> None:
    assert text(tmp_path / "a", 3).tokens < EVALUATION_WINDOW
    assert text(tmp_path / "b", 120).tokens > 2 * EVALUATION_WINDOW


class _DroppingAlways(LanguageModel):
    """Drops units where no gradient is taken too, always the same ones."""

    def loss_sum(
        self,
        inputs_TB: Tensor,
        targets_TB: Tensor,
        weights_TB: Tensor,
        carry: Carry,
        masks: Masks | None,
        touch: Touch = untouched,
        position: Tensor | None = None,
    ) -> tuple[Tensor, Carry]:
        drawn = masks or Masks(mask_key(0, 0, 0))
        return super().loss_sum(inputs_TB, targets_TB, weights_TB, carry, drawn, touch, position)


def test_dropout_that_is_left_on_shows_in_two_lanes_of_the_same_words(tmp_path: Path, evaluator: Evaluator) -> None:
    dataset, config = text(tmp_path / "text", 40), evaluator.model.config
    assert evaluator.score(dataset).lanes_apart < 1e-5
    assert Evaluator(_DroppingAlways(config, WORDS, seed=0)).score(dataset).lanes_apart > 0.003


def test_sentences_are_scored_each_alone_from_a_carry_of_zero_in_whatever_batches(
    tmp_path: Path, evaluator: Evaluator
) -> None:
    """Rows of up to 12 tokens, the longest in two pieces; the first word of each is given."""
    dataset = text(tmp_path / "text", 40)
    model, total, tokens = evaluator.model, 0.0, 0
    chunks = [dataset.chunk(number) for number in range(dataset.manifest.totals.chunks)]
    for row in (row for chunk in chunks for row in np.split(chunk.tokens, chunk.row_offsets[1:-1])):
        ids = row.astype(np.int32)[:, None]
        for begin in range(0, len(ids) - 1, 8):
            piece = ids[begin : begin + 9]
            ones = np.ones((len(piece) - 1, 1), np.float32)
            total += float(model.loss_sum(piece[:-1], piece[1:], ones, model.zero_carry(1), None)[0])
            tokens += len(piece) - 1
    score = Evaluator(model, DataConfig(mode="sentences", buckets=(3, 8))).score(dataset)
    assert score.tokens == tokens == dataset.tokens - dataset.rows
    assert score.nats == pytest.approx(total / tokens, rel=1e-5)


def test_a_sample_of_a_model_of_sentences_ends_with_its_sentence(evaluator: Evaluator) -> None:
    alone = Evaluator(evaluator.model, DataConfig(mode="sentences"))
    samples = [alone.sample(words(WORDS), "w3", 200, seed, step=0).split() for seed in range(3)]
    for seed, sample in enumerate(samples):
        assert sample.index("<eos>") == len(sample) - 1
        assert evaluator.sample(words(WORDS), "w3", 200, seed, step=0).split()[: len(sample)] == sample


def test_a_score_repeats_bit_for_bit_and_changes_nothing(tmp_path: Path, evaluator: Evaluator) -> None:
    dataset = text(tmp_path / "text", 100)
    before = [weight.numpy() for weight in evaluator.model.weights.values()]
    assert evaluator.score(dataset) == evaluator.score(dataset)
    for weight, value in zip(evaluator.model.weights.values(), before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)


def test_a_model_that_knows_nothing_scores_the_logarithm_of_the_vocabulary(tmp_path: Path) -> None:
    model = LanguageModel(ModelConfig(layers=1, hidden=2), WORDS, seed=0)
    for weight in model.weights.values():
        weight.assign(tf.zeros_like(weight))
    assert Evaluator(model).score(text(tmp_path / "text", 20)).perplexity == pytest.approx(WORDS, rel=1e-5)


def test_perplexity_overflows_to_infinity_and_keeps_nan() -> None:
    assert perplexity(0.0) == 1
    assert perplexity(699.0) < math.inf
    assert perplexity(1e6) == perplexity(math.inf) == math.inf
    assert math.isnan(perplexity(math.nan))
    assert Score(math.log(82.0), 5).perplexity == pytest.approx(82.0)


def test_a_sample_is_a_pure_function_of_weights_seed_and_step(evaluator: Evaluator) -> None:
    vocabulary = words(WORDS)
    samples = [evaluator.sample(vocabulary, "w3 w4", 40, seed, step) for seed, step in ((1, 5), (1, 5), (2, 5), (1, 6))]
    assert samples[0] == samples[1]
    assert len(set(samples)) == 3
    assert [len(sample.split()) for sample in samples] == [40] * 4


def test_a_sample_goes_on_from_its_prompt() -> None:
    """A model whose next word depends on the last one alone, strongly."""
    model = LanguageModel(ModelConfig(layers=1, hidden=WORDS), WORDS, seed=0)
    for weight in model.weights.values():
        weight.assign(tf.zeros_like(weight))
    kernel = np.zeros((WORDS, 4 * WORDS), np.float32)
    successor = np.roll(np.eye(WORDS, dtype=np.float32), 1, axis=1)  # word n is followed by word n + 1
    kernel[:, 3 * WORDS :] = 100 * successor
    model.weights["lstm0/kernel"].assign(kernel)
    model.weights["lstm0/bias"].assign(np.repeat(np.float32([100, -100, 100, 0]), WORDS))
    model.weights["embedding"].assign(np.eye(WORDS, dtype=np.float32))
    model.weights["softmax"].assign(100 * np.eye(WORDS, dtype=np.float32))
    sample = Evaluator(model).sample(words(WORDS), "W9 w5", 4, seed=0, step=0)
    assert sample == "w6 w7 w8 w9"


def test_a_sample_never_says_unk_and_draws_every_other_word() -> None:
    model = LanguageModel(ModelConfig(layers=1, hidden=2, init_scale=1e-3), 5, seed=0)
    drawn = set(Evaluator(model).sample(words(5), "w2", 300, seed=0, step=0).split())
    assert drawn == {"<eos>", "w2", "w3", "w4"}


def test_words_of_the_prompt_that_are_unknown_and_empty_prompts_are_no_error(evaluator: Evaluator) -> None:
    for prompt in ("", "  ", "never heard of"):
        assert len(evaluator.sample(words(WORDS), prompt, 3, seed=0, step=0).split()) == 3


def test_the_prompt_s_unknown_words_are_left_out_where_there_is_no_unk(evaluator: Evaluator) -> None:
    vocabulary = Vocabulary(("<eos>", *(f"w{number}" for number in range(1, WORDS))))
    samples = [evaluator.sample(vocabulary, prompt, 9, seed=0, step=0) for prompt in ("the company said w7", "w7")]
    assert samples[0] == samples[1]
    assert len(evaluator.sample(vocabulary, "the company said", 3, seed=0, step=0).split()) == 3


def test_a_sample_of_a_model_of_bytes_is_text() -> None:
    """One that says the two bytes of é and line feeds, whatever it reads."""
    vocabulary = Vocabulary(BYTE_VOCABULARY)
    model = LanguageModel(ModelConfig(layers=1, hidden=2), len(vocabulary), seed=0)
    bias = np.full(len(vocabulary), -100, np.float32)
    bias[[*"é".encode(), vocabulary.end_of_sentence]] = 0
    model.weights["softmax/bias"].assign(bias)
    sample = Evaluator(model).sample(vocabulary, "né à\n", 100, seed=0, step=0, tokenizer="bytes")
    assert set(sample) == {"é", "\n", "\N{REPLACEMENT CHARACTER}"}
