"""Gradients kept as rows: the same numbers as the whole gradient, in an order that never changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from raylm.config import OptimizerConfig, RunConfig
from raylm.model.shapes import stays_rows, updated_by_rows
from raylm.optim.clipping import global_norm
from raylm.optim.optimizers import make_optimizer
from raylm.optim.rows import (
    RowGradient,
    among_replicas,
    dense,
    joined,
    of_all_replicas,
    row_gradient,
    summed_by_row,
)

WORDS, WIDTH = 12, 3


def rows(seed: int, count: int = 9, common: int = 0) -> RowGradient:
    """Half of the words never stand, the others more than once."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, WORDS // 2, count).astype(np.int32)
    table = random.normal(size=(count, WIDTH)).astype(np.float32)
    return row_gradient(tf.IndexedSlices(tf.constant(table), tf.constant(ids)), common)


def whole(gradient: RowGradient) -> np.ndarray:
    found = np.zeros((WORDS, WIDTH))
    for ids, values in (gradient[:2], gradient[2:]):
        np.add.at(found, ids.numpy(), values.numpy().astype(np.float64))
    return found


def weight() -> tf.Variable:
    return tf.Variable(np.random.default_rng(9).normal(size=(WORDS, WIDTH)).astype(np.float32))


def test_summed_rows_have_each_word_once_and_are_the_whole_gradient() -> None:
    gradient = summed_by_row(rows(0))
    assert len(set(gradient.ids.numpy().tolist())) == len(gradient.ids) < 9
    np.testing.assert_allclose(dense(gradient, weight()), whole(rows(0)), rtol=1e-6, atol=1e-7)


def test_rows_of_one_word_are_added_in_the_order_in_which_they_stand() -> None:
    """(1e8 + 1) − 1e8 is 0 in single precision, (1e8 − 1e8) + 1 is 1."""
    for values, total in (([1e8, 1.0, -1e8], 0.0), ([1e8, -1e8, 1.0], 1.0)):
        column = np.array(values, np.float32)[:, None]
        gradient = summed_by_row(row_gradient(tf.IndexedSlices(tf.constant(column), tf.constant([5, 5, 5]))))
        assert gradient.rows.numpy().tolist() == [[total]]


def test_the_norm_is_that_of_summed_rows() -> None:
    wanted = np.sqrt((whole(rows(1)) ** 2).sum())
    assert float(global_norm([summed_by_row(rows(1))])) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "adagrad"])
def test_an_update_by_rows_is_that_of_the_whole_gradient(name: str) -> None:
    """Of Adam too, whose moments decay in every row."""
    by_rows, by_whole = weight(), weight()
    optimizers = [make_optimizer(OptimizerConfig(name=name), {"table": table}) for table in (by_rows, by_whole)]
    for step in range(4):
        gradient = summed_by_row(rows(step))
        for optimizer, given in zip(optimizers, (gradient, dense(gradient, by_whole)), strict=True):
            optimizer.apply([given], [tf.constant(0.3)], tf.constant(0.1))
    np.testing.assert_array_equal(by_rows.numpy(), by_whole.numpy())
    for (slot, found), wanted in zip(optimizers[0].slots.items(), optimizers[1].slots.values(), strict=True):
        np.testing.assert_array_equal(found.numpy(), wanted.numpy(), err_msg=slot)


def all_reduced(shares: list[RowGradient]) -> RowGradient:
    tables = [among_replicas(share, tf.constant(replica), len(shares)) for replica, share in enumerate(shares)]
    total, common = tables[0], shares[0].common_rows
    for table, share in zip(tables[1:], shares[1:], strict=True):
        total, common = total + table, common + share.common_rows
    return of_all_replicas(shares[-1], total, common)


@pytest.mark.parametrize("common", [0, 4])
def test_rows_summed_over_replicas_stand_one_after_the_other_bit_for_bit(common: int) -> None:
    shares = [rows(seed, common=common) for seed in range(3)]
    shares = [share._replace(common_ids=shares[0].common_ids) for share in shares]
    shares[1] = shares[1]._replace(rows=-tf.zeros_like(shares[1].rows))
    tf.where([True], [1.0], 0.0)  # from here on TensorFlow may take 0.0 for -0.0
    found, wanted = all_reduced(shares), joined(shares)
    for part, expected in zip(found, wanted, strict=True):
        assert part.numpy().tobytes() == expected.numpy().tobytes()
    whole_sum = sum(whole(share) for share in shares)
    np.testing.assert_allclose(dense(summed_by_row(found), weight()), whole_sum, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dense(found, weight()), whole_sum, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_row_of_one_replica_reaches_the_norm(bad: float) -> None:
    spoilt = rows(1)
    spoilt = spoilt._replace(rows=tf.tensor_scatter_nd_update(spoilt.rows, [[4, 1]], [bad]))
    assert not np.isfinite(float(global_norm([summed_by_row(all_reduced([rows(0), spoilt]))])))


@pytest.mark.parametrize(
    ("lookups", "words", "kept"),
    [(700, 10_000, True), (5_000, 10_000, True), (5_001, 10_000, False), (700, 2**25, False)],
)
def test_rows_are_kept_where_they_are_few(lookups: int, words: int, kept: bool) -> None:
    assert stays_rows(lookups, words) is kept


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, {"embedding"}),
        ({"model": {"sampled_softmax": 100}}, {"embedding", "softmax"}),
        ({"optimizer": {"name": "adam"}}, set()),
        ({"model": {"tie_weights": True}}, set()),
        ({"cluster": {"exact_elastic": True}}, set()),
    ],
)
def test_tables_are_updated_by_rows_where_the_update_leaves_the_others_as_they_are(
    changes: dict[str, Any], names: set[str]
) -> None:
    assert updated_by_rows(RunConfig.model_validate({"recipe": "rows", **changes}), 10_000) == names
