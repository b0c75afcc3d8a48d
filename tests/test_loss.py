"""The cross-entropy and its hand-written gradient against the formula in NumPy, in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from raylm.model.loss import cross_entropy_sum
from raylm.model.shapes import words_at_once

ROWS, HIDDEN, WORDS = 6, 3, 5


def arguments(seed: int = 0, dtype: type = np.float64) -> list[np.ndarray]:
    """hidden, softmax, bias, targets, weights; rows 1 and 4 have weight 0."""
    random = np.random.default_rng(seed)
    floats = [random.normal(size=shape).astype(dtype) for shape in ((ROWS, HIDDEN), (WORDS, HIDDEN), (WORDS,))]
    weights = np.array([1, 0, 1, 1, 0, 1], dtype)
    return [*floats, random.integers(0, WORDS, ROWS).astype(np.int32), weights]


def losses_of(hidden: np.ndarray, softmax: np.ndarray, bias: np.ndarray, targets: np.ndarray) -> np.ndarray:
    logits = hidden @ softmax.T + bias
    logits -= logits.max(1, keepdims=True)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(targets)), targets]


def value_and_gradients(
    values: list[np.ndarray], upstream: float = 1.0, chunk: int | None = None
) -> tuple[np.ndarray, list[np.ndarray]]:
    tensors = [tf.constant(value) for value in values]
    watched = [tensors[0], tensors[1], tensors[2], tensors[4]]
    with tf.GradientTape() as tape:
        tape.watch(watched)
        loss = cross_entropy_sum(*tensors, chunk=chunk)
        total = upstream * loss
    return loss.numpy(), [gradient.numpy() for gradient in tape.gradient(total, watched)]


def test_the_loss_is_the_weighted_sum_of_negative_log_probabilities() -> None:
    values = arguments()
    values[4] = np.array([1, 0, 0.5, 2, 0, 1])
    loss, _ = value_and_gradients(values)
    assert loss == pytest.approx(float((losses_of(*values[:4]) * values[4]).sum()), rel=1e-13)


@pytest.mark.parametrize(("upstream", "chunk"), [(1.0, None), (-0.3, None), (-0.3, 2)])
def test_every_gradient_is_that_of_finite_differences(upstream: float, chunk: int | None) -> None:
    values = arguments()
    _, gradients = value_and_gradients(values, upstream, chunk)
    for found, value in zip(gradients, (values[0], values[1], values[2], values[4]), strict=True):
        wanted = np.empty_like(value)
        for place in np.ndindex(value.shape):
            kept = value[place]
            sums = []
            for changed in (kept + 1e-5, kept - 1e-5):
                value[place] = changed
                sums.append(float((losses_of(*values[:4]) * values[4]).sum()))
            value[place] = kept
            wanted[place] = upstream * (sums[0] - sums[1]) / 2e-5
        np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("chunk", [None, 2])
def test_a_row_of_weight_zero_adds_exactly_nothing_whatever_it_holds(chunk: int | None) -> None:
    values = arguments(dtype=np.float32)
    loss, gradients = value_and_gradients(values, chunk=chunk)
    assert not gradients[0][[1, 4]].any()
    for filling, target in ((0.0, 0), (1e3, WORDS - 1), (-7.5, 2)):
        values[0][[1, 4]] = filling
        values[3][[1, 4]] = target
        other_loss, other_gradients = value_and_gradients(values, chunk=chunk)
        assert other_loss == loss
        for found, wanted in zip(other_gradients[:3], gradients[:3], strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_a_batch_without_targets_has_loss_zero_and_no_gradient() -> None:
    """The mean over nothing would be 0/0."""
    values = arguments(dtype=np.float32)
    values[4][:] = 0
    loss, gradients = value_and_gradients(values)
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients[:3])


def test_a_model_that_knows_nothing_loses_the_logarithm_of_the_vocabulary() -> None:
    words = 10_000
    zeros = [np.zeros(shape, np.float32) for shape in ((4, HIDDEN), (words, HIDDEN), (words,))]
    loss = cross_entropy_sum(*zeros, np.arange(4, dtype=np.int32), np.ones(4, np.float32))
    assert float(loss) / 4 == pytest.approx(math.log(words), rel=1e-6)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("size", [1e4, -1e4, 1e30])
def test_huge_logits_overflow_nothing(size: float, chunk: int | None) -> None:
    values = arguments(dtype=np.float32)
    values[2][0] = size
    loss, gradients = value_and_gradients(values, chunk=chunk)
    assert np.isfinite(loss)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4])
def test_pieces_of_any_size_give_the_same_numbers_again_and_again(chunk: int) -> None:
    """Compiled too, where the gradient's memory is written in place."""
    values = arguments(dtype=np.float32)
    wanted, expected = value_and_gradients(values)

    @tf.function
    def compiled(*tensors: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(tensors[:3])
            loss = cross_entropy_sum(*tensors, chunk=chunk)
        return [loss, *tape.gradient(loss, tensors[:3])]

    for _ in range(2):
        loss, *gradients = (part.numpy() for part in compiled(*map(tf.constant, values)))
        assert loss == pytest.approx(wanted, rel=1e-6)
        for found, value in zip(gradients, expected, strict=False):
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)


def test_every_piece_of_the_logits_is_touched_and_goes_on_touched() -> None:
    values, seen = arguments(dtype=np.float32), []

    def touch(name: str, tensor: tf.Tensor) -> tf.Tensor:
        seen.append((name, tensor.numpy()))
        return tensor * np.nan if len(seen) == 2 else tensor

    loss = cross_entropy_sum(*map(tf.constant, values), touch, 2)
    assert [name for name, _ in seen] == ["logits"] * 3
    np.testing.assert_allclose(
        np.concatenate([piece for _, piece in seen], 1), values[0] @ values[1].T + values[2], rtol=1e-5, atol=1e-6
    )
    assert np.isnan(loss)


@pytest.mark.parametrize(
    ("setting", "rows", "words", "at_once"),
    [
        ("auto", 700, 10_000, 10_000),
        ("auto", 700, 100_000, 5_888),
        ("auto", None, 10_000, 10_000),
        ("auto", None, 100_000, 4_000),
        (None, 700, 100_000, 100_000),
        (300, 700, 10_000, 300),
        (300, None, 200, 200),
    ],
)
def test_auto_takes_as_many_words_as_memory_is_set_aside_for(
    setting: int | str | None, rows: int | None, words: int, at_once: int
) -> None:
    assert words_at_once(setting, rows, words) == at_once
