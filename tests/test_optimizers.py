"""Updates, clipping and norms against the papers' formulas in NumPy, in double precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tensorflow as tf

from raylm.config import OptimizerConfig
from raylm.optim.averaging import averages, stopped_falling
from raylm.optim.clipping import clip_factor, global_norm
from raylm.optim.optimizers import Averaged, make_optimizer

SHAPES = {"embedding": (7, 3), "bias": (5,), "scalar": ()}


def arrays(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def sgd(learning_rate: float, decay: float = 0.0) -> Callable[[np.ndarray], Iterator[np.ndarray]]:
    def updates(weight: np.ndarray) -> Iterator[np.ndarray]:
        while True:
            gradient = yield weight
            weight = weight - learning_rate * (gradient + decay * weight)

    return updates


def adam(
    learning_rate: float, beta1: float, beta2: float, epsilon: float, decay: float = 0.0
) -> Callable[..., Iterator[np.ndarray]]:
    """Kingma and Ba 2015, algorithm 1, line by line; with the decay of Loshchilov and Hutter 2019, algorithm 2."""

    def updates(weight: np.ndarray) -> Iterator[np.ndarray]:
        first = second = np.zeros_like(weight)
        for t in range(1, 1000):
            gradient = yield weight
            first = beta1 * first + (1 - beta1) * gradient
            second = beta2 * second + (1 - beta2) * gradient**2
            first_corrected = first / (1 - beta1**t)
            second_corrected = second / (1 - beta2**t)
            step = first_corrected / (np.sqrt(second_corrected) + epsilon)
            weight = weight - learning_rate * (step + decay * weight)

    return updates


def adagrad(learning_rate: float, accumulator: float) -> Callable[[np.ndarray], Iterator[np.ndarray]]:
    def updates(weight: np.ndarray) -> Iterator[np.ndarray]:
        squares = np.full_like(weight, accumulator)
        while True:
            gradient = yield weight
            squares = squares + gradient**2
            weight = weight - learning_rate * gradient / np.sqrt(squares)

    return updates


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (OptimizerConfig(name="sgd"), sgd(0.1)),
        (OptimizerConfig(name="adam"), adam(0.1, 0.9, 0.999, 1e-8)),
        (OptimizerConfig(name="adam", beta1=0.0, beta2=0.5, epsilon=0.1), adam(0.1, 0.0, 0.5, 0.1)),
        (OptimizerConfig(name="adagrad"), adagrad(0.1, 1.0)),
        (OptimizerConfig(name="adagrad", accumulator=0.1), adagrad(0.1, 0.1)),
        (OptimizerConfig(name="sgd", weight_decay=0.2), sgd(0.1, 0.2)),
        (OptimizerConfig(name="adam", weight_decay=0.2), adam(0.1, 0.9, 0.999, 1e-8, 0.2)),
    ],
    ids=[
        *("sgd", "adam", "adam with other constants", "adagrad", "adagrad from little"),
        *("sgd with decay", "adam with decay"),
    ],
)
def test_updates_are_the_published_ones(
    config: OptimizerConfig, reference: Callable[..., Iterator[np.ndarray]]
) -> None:
    start = arrays(0)
    weights = {name: tf.Variable(value) for name, value in start.items()}
    optimizer = make_optimizer(config, weights)
    expected = {name: reference(value.astype(np.float64)) for name, value in start.items()}
    for updates in expected.values():
        next(updates)
    for step in range(1, 9):
        gradients = arrays(step)
        factor = 1 / step
        optimizer.apply([tf.constant(gradients[name]) for name in weights], [tf.constant(factor)] * 3, tf.constant(0.1))
        for name, weight in weights.items():
            wanted = expected[name].send(factor * gradients[name].astype(np.float64))
            np.testing.assert_allclose(weight.numpy(), wanted, rtol=5e-5, atol=5e-6)


def test_slots_are_there_and_zero_before_the_first_step() -> None:
    weights = {name: tf.Variable(value) for name, value in arrays(0).items()}
    assert make_optimizer(OptimizerConfig(name="sgd"), weights).slots == {}
    slots = make_optimizer(OptimizerConfig(name="adam"), weights).slots
    assert [(name, tuple(slot.shape)) for name, slot in slots.items()] == [
        ("embedding/first", (7, 3)),
        ("embedding/second", (7, 3)),
        ("bias/first", (5,)),
        ("bias/second", (5,)),
        ("scalar/first", ()),
        ("scalar/second", ()),
        ("updates", ()),
    ]
    assert all(not slot.numpy().any() for slot in slots.values())


def test_adam_s_first_step_moves_every_weight_by_the_learning_rate() -> None:
    weights = {name: tf.Variable(value) for name, value in arrays(0).items()}
    before = {name: weight.numpy() for name, weight in weights.items()}
    gradients = arrays(1)
    adam = make_optimizer(OptimizerConfig(name="adam"), weights)
    adam.apply([tf.constant(gradients[name]) for name in weights], [tf.constant(1.0)] * 3, tf.constant(0.01))
    for name, weight in weights.items():
        np.testing.assert_allclose(before[name] - weight.numpy(), 0.01 * np.sign(gradients[name]), rtol=1e-3)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_mean_is_of_the_weights_after_the_updates_that_are_averaged(name: str) -> None:
    weights = {name: tf.Variable(value) for name, value in arrays(0).items()}
    plain, optimizer = (
        make_optimizer(OptimizerConfig.model_validate({"name": name, "averaging": averaging}), weights)
        for averaging in ("off", "always")
    )
    assert isinstance(optimizer, Averaged)
    assert list(optimizer.slots) == [*plain.slots, "average/embedding", "average/bias", "average/scalar", "averaged"]
    seen = []
    for step in range(5):
        optimizer.apply(
            [tf.constant(value) for value in arrays(step).values()], [tf.constant(1.0)] * 3, tf.constant(0.1)
        )
        if step > 1:
            assert (averages(optimizer.slots) == {}) == (step == 2)
            optimizer.average()
            seen.append({name: weight.numpy() for name, weight in weights.items()})
    for key, mean in averages(optimizer.slots).items():
        np.testing.assert_allclose(mean, np.mean([each[key] for each in seen], axis=0), rtol=1e-5, atol=1e-6)
        assert not np.allclose(mean, weights[key])


def test_the_exponential_mean_is_of_the_layers_alone_and_forgets() -> None:
    weights = {name: tf.Variable(0.0) for name in ("embedding", "lstm0/bias")}
    config = OptimizerConfig(averaging="exponential", averaging_decay=0.75)
    optimizer = make_optimizer(config, weights)
    assert isinstance(optimizer, Averaged)
    mean, values = 0.0, [3.0, 1.0, 4.0, 1.0, 5.0, 9.0]
    for count, value in enumerate(values, 1):
        weights["lstm0/bias"].assign(value)
        optimizer.average()
        mean += max(1 / count, 0.25) * (value - mean)
    found = averages(optimizer.slots)
    assert list(found) == ["lstm0/bias"]
    assert float(found["lstm0/bias"]) == pytest.approx(mean)


@pytest.mark.parametrize(
    ("losses", "patience", "stopped"),
    [
        ((), 1, False),
        ((5, 4), 1, False),
        ((5, 4, 4.5), 1, False),  # lower than all but the last before it
        ((5, 4, 4.5, 4.1), 1, True),
        ((5, 4, 4.5, 4.1, 1), 1, True),  # once is for ever
        ((3, 3, 3, 3), 1, False),
        ((1, 9, 9, 9, 9, 9), 5, False),  # five are logged, and more than five are asked for
        ((1, 9, 9, 9, 9, 9, 1), 5, False),
        ((1, 9, 9, 9, 9, 9, 1.1), 5, True),
        ((2, 1, 1, 1, 1, 1, 1.9), 5, False),  # the lowest lie among the last five
    ],
)
def test_the_trigger_is_that_of_nt_asgd(losses: tuple[float, ...], patience: int, stopped: bool) -> None:
    assert stopped_falling(losses, patience) == stopped


def test_the_global_norm_is_of_all_gradients_as_one_vector() -> None:
    gradients = arrays(3)
    wanted = np.sqrt(sum(float((value.astype(np.float64) ** 2).sum()) for value in gradients.values()))
    assert float(global_norm([tf.constant(value) for value in gradients.values()])) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_non_finite_element_makes_the_global_norm_non_finite(bad: float) -> None:
    gradients = arrays(3)
    gradients["embedding"][4, 1] = bad
    assert not np.isfinite(float(global_norm([tf.constant(value) for value in gradients.values()])))


@pytest.mark.parametrize(
    ("norm", "clip", "factor"),
    [(10.0, 5.0, 0.5), (5.0, 5.0, 1.0), (4.9, 5.0, 1.0), (0.0, 5.0, 1.0), (1e30, 0.25, 2.5e-31), (7.0, None, 1.0)],
)
def test_the_clip_factor_brings_the_norm_down_and_never_up(norm: float, clip: float | None, factor: float) -> None:
    assert float(clip_factor(tf.constant(norm), clip)) == pytest.approx(factor, rel=1e-6)
