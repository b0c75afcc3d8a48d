"""Sampled softmax: candidates that are a pure function of the window, and a loss that estimates the exact one."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from raylm.model.loss import cross_entropy_sum
from raylm.model.sampling import Candidates, draw_candidates, sampled_cross_entropy_sum

ROWS, HIDDEN, WORDS = 5, 4, 60


def arrays(seed: int = 0) -> list[np.ndarray]:
    """hidden, softmax, bias, targets (one word stands twice), weights (one is 0)."""
    random = np.random.default_rng(seed)
    floats = [random.normal(size=shape).astype(np.float32) for shape in ((ROWS, HIDDEN), (WORDS, HIDDEN), (WORDS,))]
    return [*floats, np.array([0, 7, 7, 59, 3], np.int32), np.array([1, 1, 1, 1, 0], np.float32)]


def loss_and_gradients(candidates: Candidates | None) -> tuple[float, list[np.ndarray]]:
    """Of the sampled loss, for None of the exact one."""
    hidden, softmax, bias, targets, weights = arrays()
    hidden, tables = tf.constant(hidden), [tf.Variable(softmax), tf.Variable(bias)]
    with tf.GradientTape() as tape:
        tape.watch([hidden, *tables])
        if candidates is None:
            loss = cross_entropy_sum(hidden, *tables, targets, weights)
        else:
            loss = sampled_cross_entropy_sum(hidden, *tables, targets, weights, candidates)
    gradients = [tf.convert_to_tensor(gradient).numpy() for gradient in tape.gradient(loss, [hidden, *tables])]
    return float(loss), gradients


def drawn(count: int, position: int = 0, seed: int = 1) -> Candidates:
    return draw_candidates(seed, tf.constant(position), count, WORDS)


def test_candidates_are_distinct_and_a_pure_function_of_seed_and_position() -> None:
    ids = drawn(20, 3).ids.numpy()
    assert len(set(ids)) == 20
    assert ids.min() >= 0
    assert ids.max() < WORDS
    for other, same in ((drawn(20, 3), True), (drawn(20, 4), False), (drawn(20, 3, seed=2), False)):
        assert np.array_equal(other.ids, ids) is same


def test_words_are_drawn_as_often_as_their_probabilities_say() -> None:
    """Of each word: 1 / probability, where it was drawn, has mean 1; frequent words are drawn more often."""
    inverse, times = np.zeros(WORDS), np.zeros(WORDS)
    draw = tf.function(lambda position: draw_candidates(1, position, 15, WORDS))
    windows = 4000
    for position in range(windows):
        ids, logs = (part.numpy() for part in draw(tf.constant(position)))
        inverse[ids] += np.exp(-logs)
        times[ids] += 1
    assert inverse / windows == pytest.approx(np.ones(WORDS), abs=0.15)
    assert inverse.mean() / windows == pytest.approx(1, abs=0.02)
    assert times[0] > 3 * times[30] > 0


def test_with_all_words_drawn_loss_and_gradients_are_the_exact_ones() -> None:
    loss, gradients = loss_and_gradients(drawn(WORDS))
    wanted, expected = loss_and_gradients(None)
    assert loss == pytest.approx(wanted, rel=1e-6)
    for found, value in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6)


def test_the_more_words_are_drawn_the_closer_the_gradient_to_the_exact_one() -> None:
    _, exact = loss_and_gradients(None)
    distances = []
    for count in (10, 30, 50):
        means = [np.zeros_like(part) for part in exact]
        for position in range(25):
            for mean, part in zip(means, loss_and_gradients(drawn(count, position))[1], strict=True):
                mean += part / 25
        distances.append(sum(float(np.square(mean - part).sum()) for mean, part in zip(means, exact, strict=True)))
    assert distances[0] > 1.5 * distances[1] > 3 * distances[2]


def test_a_candidate_that_is_the_target_counts_once() -> None:
    """Words 7 and 9 alone: the loss of the target 7 is log(1 + exp(l9) / q9 / exp(l7))."""
    hidden, softmax, bias, _, _ = arrays()
    candidates = Candidates(tf.constant([7, 9]), tf.math.log([0.5, 0.25]))
    weights = np.array([0, 1, 0, 0, 0], np.float32)
    loss = sampled_cross_entropy_sum(
        tf.constant(hidden), tf.Variable(softmax), tf.Variable(bias), np.full(ROWS, 7, np.int32), weights, candidates
    )
    logits = hidden[1] @ softmax[[7, 9]].T + bias[[7, 9]]
    assert float(loss) == pytest.approx(float(np.log1p(4 * np.exp(logits[1] - logits[0]))), rel=1e-5)


def test_only_rows_of_candidates_and_targets_have_a_gradient() -> None:
    candidates = drawn(10)
    _, (_, softmax, bias) = loss_and_gradients(candidates)
    allowed = {*candidates.ids.numpy().tolist(), 0, 7, 59, 3}
    assert set(np.flatnonzero(np.abs(softmax).sum(1))) | set(np.flatnonzero(bias)) <= allowed


def test_a_row_of_weight_zero_adds_nothing() -> None:
    values = arrays()
    assert values[4][4] == 0
    _, (hidden, *_) = loss_and_gradients(drawn(10))
    assert not hidden[4].any()
