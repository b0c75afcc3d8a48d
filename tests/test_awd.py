"""AWD-LSTM's parts (Merity, Keskar and Socher 2017), each by its effect on the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from raylm.config import ModelConfig, RunConfig
from raylm.model.dropout import Masks, mask_key
from raylm.model.language_model import LanguageModel, initial_weights
from raylm.recipes import RECIPES

WORDS, TIME, LANES = 9, 4, 2
SIZES: dict[str, Any] = {"layers": 3, "hidden": 4, "embedding": 3, "init_scale": 0.5, "tie_weights": True}
PARTS: dict[str, Any] = {
    "dropout": 0.25,
    "input_dropout": 0.4,
    "output_dropout": 0.5,
    "locked_dropout": True,
    "embedding_dropout": 0.3,
    "recurrent_dropout": 0.5,
}
PENALTIES = {"activation_regularization": 2.0, "temporal_regularization": 1.5}
MASKS = Masks(mask_key(3, tf.constant(17), tf.constant(0)))


def model(**parts: Any) -> LanguageModel:
    return LanguageModel(ModelConfig(**SIZES, **parts), WORDS, seed=1)


def window(steps: int = TIME) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets and weights [T, B]; words come often, and one lane ends early."""
    inputs, targets = np.random.default_rng(5).integers(0, WORDS, (2, steps, LANES)).astype(np.int32)
    weights = np.ones((steps, LANES), np.float32)
    weights[-1, 1] = 0
    return inputs, targets, weights


def outputs(made: LanguageModel, masks: Masks | None = MASKS) -> np.ndarray:
    hidden: np.ndarray = made.outputs(tf.constant(window()[0]), made.zero_carry(LANES), masks)[0].numpy()
    return hidden


@pytest.mark.parametrize("part", [part for part in PARTS if part != "locked_dropout"])
def test_each_mask_changes_what_is_read_in_training_and_nothing_in_evaluation(part: str) -> None:
    plain, with_part = model(), model(**{part: 0.5})
    assert with_part.config.draws_masks
    assert not plain.config.draws_masks
    np.testing.assert_array_equal(outputs(with_part, None), outputs(plain, None))
    np.testing.assert_array_equal(outputs(with_part), outputs(with_part))
    changed = outputs(with_part) != outputs(plain)
    assert changed[1:].any(axis=(1, 2)).all()
    # Before the second time step nothing goes through the recurrent connection.
    assert changed[0].any() == (part != "recurrent_dropout")


def test_a_locked_mask_is_the_same_at_every_time_step_and_another_in_each_lane() -> None:
    made = model(output_dropout=0.5, locked_dropout=True)
    dropped = outputs(made) == 0
    assert 0 < dropped.sum() < dropped.size
    assert (dropped == dropped[:1]).all()
    assert not (dropped[:, 0] == dropped[:, 1]).all()
    free = outputs(model(output_dropout=0.5)) == 0
    assert not (free == free[:1]).all()


def test_a_dropped_word_is_read_as_zeros_wherever_it_stands_and_the_others_are_scaled() -> None:
    ids = np.random.default_rng(0).integers(0, 400, (50, 20))
    rows = MASKS.drop_words(tf.ones([50, 20, 3]), tf.constant(ids), 400, 0.25, 7).numpy()
    kept = {word: set(np.unique(rows[ids == word])) for word in np.unique(ids)}
    assert set(map(tuple, kept.values())) == {(0.0,), (np.float32(1 / 0.75),)}
    assert np.mean([values == {0.0} for values in kept.values()]) == pytest.approx(0.25, abs=0.09)


def test_a_dropped_word_that_is_not_finite_is_taken_out_wholly() -> None:
    rows = MASKS.drop_words(tf.fill([1, WORDS, 2], np.inf), tf.range(WORDS)[None], WORDS, 0.5, 0).numpy()
    assert set(np.unique(rows)) == {0.0, np.inf}


def scales(rate: float, place: int, shape: tuple[int, ...], locked: bool = False) -> np.ndarray:
    """What a mask multiplies by."""
    return np.broadcast_to(MASKS.drop(tf.ones(shape), rate, place, locked).numpy().astype(np.float64), shape)


def reference(weights: dict[str, np.ndarray], masks: list[np.ndarray], recurrent: list[np.ndarray]) -> float:
    """The objective in double precision, one word and one lane at a time. masks: on the input of each layer and of the
    softmax [T, B, H]; recurrent: on each layer's recurrent matrix."""
    inputs, targets, counted = window()
    words = scales(PARTS["embedding_dropout"], 4, (WORDS,))
    loss = activation = change = 0.0
    for lane in range(LANES):
        states = [(np.zeros(units), np.zeros(units)) for units in (4, 4, 3)]
        for time in range(TIME):
            x = weights["embedding"][inputs[time, lane]] * words[inputs[time, lane]]
            last = states[-1][0]
            for layer, (hidden, cell) in enumerate(states):
                x = x * masks[layer][time, lane]
                z = x @ weights[f"lstm{layer}/kernel"] + weights[f"lstm{layer}/bias"]
                z = z + hidden @ (weights[f"lstm{layer}/recurrent"] * recurrent[layer])
                i, f, o, g = np.split(z, 4)
                cell = cell / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
                x = np.tanh(cell) / (1 + np.exp(-o))
                states[layer] = (x, cell)
            weight, dropped = counted[time, lane], x * masks[-1][time, lane]
            logits = weights["embedding"] @ dropped + weights["softmax/bias"]
            loss += weight * (np.log(np.exp(logits).sum()) - logits[targets[time, lane]])
            activation += weight * (dropped**2).mean()
            change += (time > 0) * weight * ((x - last) ** 2).mean()
    return float(loss + 2.0 * activation + 1.5 * change * TIME / (TIME - 1))


def test_the_objective_and_every_gradient_are_those_of_the_masked_network_by_finite_differences() -> None:
    """All parts at once, layers of several sizes, tied weights; dropped recurrent weights get a gradient of zero."""
    made = model(**PARTS, **PENALTIES)
    variables = list(made.weights.values())
    with tf.GradientTape() as tape:
        tape.watch(variables)
        loss, penalty, _ = made.losses(*window(), made.zero_carry(LANES), MASKS, position=tf.constant(0))
        objective = loss + penalty
    masks = [
        scales(rate, place, (TIME, LANES, units), locked=True)
        for place, (rate, units) in enumerate(zip(made.config.dropout_rates, (3, 4, 4, 3), strict=True))
    ]
    recurrent = [scales(0.5, 5 + layer, (units, 4 * units)) for layer, units in enumerate((4, 4, 3))]
    exact = {name: weight.numpy().astype(np.float64) for name, weight in made.weights.items()}
    assert float(objective) == pytest.approx(reference(exact, masks, recurrent), rel=1e-5)
    for (name, value), found in zip(exact.items(), tape.gradient(objective, variables), strict=True):
        gradient, wanted = tf.convert_to_tensor(found).numpy(), np.empty_like(value)
        for place in np.ndindex(value.shape):
            kept = value[place]
            value[place] = kept + 1e-5
            above = reference(exact, masks, recurrent)
            value[place] = kept - 1e-5
            wanted[place] = (above - reference(exact, masks, recurrent)) / 2e-5
            value[place] = kept
        np.testing.assert_allclose(gradient, wanted, rtol=2e-4, atol=2e-5, err_msg=name)
        if name.endswith("recurrent"):
            assert (gradient[recurrent[int(name[4])] == 0] == 0).all()


def test_the_regularization_is_no_part_of_the_loss_that_is_told() -> None:
    plain, regular = model(**PARTS), model(**PARTS, **PENALTIES)
    arguments = (*window(), plain.zero_carry(LANES), MASKS)
    wanted, nothing, _ = plain.losses(*arguments)
    loss, penalty, _ = regular.losses(*arguments)
    assert nothing is None
    assert float(loss) == float(wanted) == float(regular.loss_sum(*arguments)[0])
    assert float(penalty) > 0


def test_a_window_of_one_time_step_has_no_change_to_regularize() -> None:
    made = model(temporal_regularization=1.0)
    _, penalty, _ = made.losses(*window(steps=1), made.zero_carry(LANES), None)
    assert float(penalty) == 0


def test_the_recipe_has_the_published_sizes_and_starts() -> None:
    """24 M parameters at 10,000 words; each layer in ± 1/√units, the embedding in ± .1, the softmax's bias 0."""
    config = RunConfig.model_validate(RECIPES["ptb-awd"]).model
    assert config.widths == (400, 1150, 1150, 400)
    weights = initial_weights(config, 10_000, seed=0)
    assert sum(weight.size for weight in weights.values()) == 24_210_800
    reach = {name: float(np.abs(weight).max()) for name, weight in weights.items()}
    for layer, units in enumerate((1150, 1150, 400)):
        for part in ("kernel", "recurrent", "bias"):
            assert reach[f"lstm{layer}/{part}"] == pytest.approx(units**-0.5, rel=0.02)
    assert reach["embedding"] == pytest.approx(0.1, rel=0.01)
    assert reach["softmax/bias"] == 0
