"""The language model: its weights, its loss against NumPy, and where dropout stands."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from raylm.config import ModelConfig, RunConfig
from raylm.model.dropout import Masks, mask_key
from raylm.model.language_model import LanguageModel, carry_names, initial_weights
from raylm.recipes import RECIPES

TINY = ModelConfig(layers=2, hidden=3, init_scale=0.5)
WORDS = 7
STEPS, LANES = 4, 2


def window(seed: int = 0, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs and targets [T, B], with words that come twice, and weights with a lane that ends early."""
    random = np.random.default_rng(seed)
    inputs, targets = random.integers(0, WORDS, (2, steps, LANES)).astype(np.int32)
    weights = np.ones((steps, LANES), np.float32)
    weights[-1, 1] = 0
    return inputs, targets, weights


def reference_loss(
    weights: dict[str, np.ndarray], inputs: np.ndarray, targets: np.ndarray, counted: np.ndarray
) -> float:
    """Zaremba et al. 2014 without dropout, one word and one lane at a time, from a carry of zero."""
    total = 0.0
    for lane in range(inputs.shape[1]):
        states = {layer: (np.zeros(3), np.zeros(3)) for layer in range(2)}
        for word, target, weight in zip(inputs[:, lane], targets[:, lane], counted[:, lane], strict=True):
            x = weights["embedding"][word]
            for layer, (hidden, cell) in states.items():
                part = {name: weights[f"lstm{layer}/{name}"] for name in ("kernel", "recurrent", "bias")}
                i, f, o, g = np.split(x @ part["kernel"] + hidden @ part["recurrent"] + part["bias"], 4)
                cell = cell / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
                x = np.tanh(cell) / (1 + np.exp(-o))
                states[layer] = (x, cell)
            logits = weights.get("softmax", weights["embedding"]) @ x + weights["softmax/bias"]
            total += weight * (np.log(np.exp(logits).sum()) - logits[target])
    return float(total)


@pytest.mark.parametrize(
    ("name", "parameters"), [("ptb-small", 4_651_600), ("ptb-medium", 19_775_200), ("ptb-large", 66_022_000)]
)
def test_the_recipes_have_the_published_numbers_of_parameters(name: str, parameters: int) -> None:
    """4.65 M, 19.8 M and 66.0 M at 10,000 words."""
    config = RunConfig.model_validate(RECIPES[name]).model
    weights = initial_weights(config, 10_000, seed=0)
    assert sum(weight.size for weight in weights.values()) == parameters
    reach = np.abs(weights["embedding"]).max()
    assert 0.99 * config.init_scale < reach <= np.float32(config.init_scale)


def test_initial_weights_hold_for_ever() -> None:
    """A failure means that a seed no longer gives the run it gave."""
    weights = initial_weights(ModelConfig(layers=2, hidden=4, init_scale=0.1), 10, seed=3)
    digest = hashlib.sha256(b"".join(weight.astype("<f4").tobytes() for weight in weights.values())).hexdigest()
    assert [(name, weight.shape) for name, weight in weights.items()] == GOLDEN_SHAPES
    assert weights["embedding"][0].tolist() == GOLDEN_FIRST_ROW
    assert digest == GOLDEN_SHA256


GOLDEN_SHAPES = [
    ("embedding", (10, 4)),
    ("lstm0/kernel", (4, 16)),
    ("lstm0/recurrent", (4, 16)),
    ("lstm0/bias", (16,)),
    ("lstm1/kernel", (4, 16)),
    ("lstm1/recurrent", (4, 16)),
    ("lstm1/bias", (16,)),
    ("softmax", (10, 4)),
    ("softmax/bias", (10,)),
]
GOLDEN_FIRST_ROW = [0.0724116787314415, 0.0868564024567604, -0.045946646481752396, -0.08416770398616791]
GOLDEN_SHA256 = "6e51021845d0cb2ab95a395ee4c685049a6f783754ab764e6069672f89f913ea"


def test_every_parameter_starts_uniform_in_the_scale() -> None:
    for name, weight in initial_weights(ModelConfig(hidden=100, init_scale=0.2), 500, seed=1).items():
        assert np.abs(weight).max() <= np.float32(0.2), name
        assert abs(weight.mean()) < 5 * 0.2 / np.sqrt(3 * weight.size), name
        assert weight.std() == pytest.approx(0.2 / np.sqrt(3), rel=0.1), name


def test_seeds_have_weights_of_their_own() -> None:
    first, again, other = (initial_weights(TINY, WORDS, seed) for seed in (1, 1, 2))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.isin(first[name], other[name]).all()


def test_peepholes_are_weights_of_each_layer_and_change_the_model() -> None:
    config = TINY.model_copy(update={"peepholes": True})
    model = LanguageModel(config, WORDS, seed=1)
    assert [name for name in model.weights if "peepholes" in name] == ["lstm0/peepholes", "lstm1/peepholes"]
    assert model.weights["lstm0/peepholes"].shape == (3, 3)
    arrays = window()
    with tf.GradientTape() as tape:
        loss, _ = model.loss_sum(*arrays, model.zero_carry(LANES), None)
    for gradient in tape.gradient(loss, [model.weights[f"lstm{layer}/peepholes"] for layer in (0, 1)]):
        assert (np.abs(gradient.numpy()) > 0).all()
    for layer in (0, 1):
        model.weights[f"lstm{layer}/peepholes"].assign(np.zeros((3, 3)))
    assert float(model.loss_sum(*arrays, model.zero_carry(LANES), None)[0]) != float(loss)


def test_the_forget_bias_is_added_to_the_forget_gate_alone() -> None:
    plain = initial_weights(TINY, WORDS, seed=0)
    biased = initial_weights(TINY.model_copy(update={"forget_bias": 1.0}), WORDS, seed=0)
    for name in plain:
        added = np.zeros_like(plain[name])
        if name.startswith("lstm") and name.endswith("bias"):
            added[3:6] = 1
        np.testing.assert_allclose(biased[name] - plain[name], added, atol=1e-6)


def test_the_model_holds_the_initial_weights_in_their_order() -> None:
    model, weights = LanguageModel(TINY, WORDS, seed=5), initial_weights(TINY, WORDS, seed=5)
    assert list(model.weights) == list(weights)
    assert model.parameters == sum(weight.size for weight in weights.values())
    for name, variable in model.weights.items():
        np.testing.assert_array_equal(variable.numpy(), weights[name])


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_weights": True}, {"loss_chunk": 2}, {"sampled_softmax": WORDS, "tie_weights": True}],
    ids=["plain", "tied", "in pieces", "sampled"],
)
def test_the_loss_and_every_gradient_are_those_of_the_whole_network(changes: dict[str, Any]) -> None:
    """Of tied weights the gradient of both uses; of sampled ones with all words drawn."""
    model = LanguageModel(TINY.model_copy(update=changes), WORDS, seed=0)
    inputs, targets, counted = window()
    with tf.GradientTape() as tape:
        tape.watch(list(model.weights.values()))
        loss, _ = model.loss_sum(inputs, targets, counted, model.zero_carry(LANES), None, position=tf.constant(0))
    exact = {name: weight.numpy().astype(np.float64) for name, weight in model.weights.items()}
    assert float(loss) == pytest.approx(reference_loss(exact, inputs, targets, counted), rel=1e-6)
    for (name, value), found in zip(exact.items(), tape.gradient(loss, list(model.weights.values())), strict=True):
        wanted = np.empty_like(value)
        for place in np.ndindex(value.shape):
            kept = value[place]
            value[place] = kept + 1e-5
            above = reference_loss(exact, inputs, targets, counted)
            value[place] = kept - 1e-5
            wanted[place] = (above - reference_loss(exact, inputs, targets, counted)) / 2e-5
            value[place] = kept
        np.testing.assert_allclose(tf.convert_to_tensor(found).numpy(), wanted, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("by_rows", [(), ("embedding",)])
def test_a_table_is_used_by_rows_only_where_updates_write_rows(by_rows: tuple[str, ...]) -> None:
    """Elsewhere it would make a copy of the table of each read and of each update."""
    model = LanguageModel(TINY.model_copy(update={"sampled_softmax": 2}), WORDS, 0, by_rows=by_rows)
    loss = tf.function(lambda: model.loss_sum(*window(), model.zero_carry(LANES), None, position=tf.constant(0)))
    kinds = [operation.type for operation in loss.get_concrete_function().graph.get_operations()]
    assert kinds.count("ResourceGather") == len(by_rows)


def test_a_sampled_softmax_is_exact_where_no_position_is_given() -> None:
    model, sampled = (
        LanguageModel(TINY.model_copy(update=change), WORDS, 0) for change in ({}, {"sampled_softmax": 2})
    )
    wanted, found = (one.loss_sum(*window(), one.zero_carry(LANES), None)[0] for one in (model, sampled))
    assert float(found) == float(wanted)
    estimates = [
        float(sampled.loss_sum(*window(), sampled.zero_carry(LANES), None, position=tf.constant(position))[0])
        for position in (0, 1, 1)
    ]
    assert estimates[0] != estimates[1] == estimates[2] != float(wanted)


def test_two_windows_with_the_carry_lose_what_one_long_window_loses() -> None:
    model = LanguageModel(TINY, WORDS, seed=0)
    inputs, targets, counted = window(steps=6)
    whole, last = model.loss_sum(inputs, targets, counted, model.zero_carry(LANES), None)
    first, between = model.loss_sum(inputs[:2], targets[:2], counted[:2], model.zero_carry(LANES), None)
    second, end = model.loss_sum(inputs[2:], targets[2:], counted[2:], between, None)
    assert float(first) + float(second) == pytest.approx(float(whole), rel=1e-6)
    for found, wanted in zip(tf.nest.flatten(end), tf.nest.flatten(last), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_next_word_s_logits_agree_with_the_loss() -> None:
    model = LanguageModel(TINY, WORDS, seed=0)
    inputs, targets, counted = window(steps=1)
    counted[:] = 1
    loss, carry = model.loss_sum(inputs, targets, counted, model.zero_carry(LANES), None)
    logits, next_carry = model.next_logits(tf.constant(inputs[0]), model.zero_carry(LANES))
    log_shares = tf.nn.log_softmax(logits).numpy()
    assert float(loss) == pytest.approx(-log_shares[range(LANES), targets[0]].sum(), rel=1e-6)
    for found, wanted in zip(tf.nest.flatten(next_carry), tf.nest.flatten(carry), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_the_carry_s_names_are_in_the_order_of_its_tensors() -> None:
    assert carry_names(2) == ["layer0/hidden", "layer0/cell", "layer1/hidden", "layer1/cell"]
    assert len(tf.nest.flatten(LanguageModel(TINY, WORDS, 0).zero_carry(LANES))) == 4


# Dropout

KEY = (3, 17, 0)


def masks(seed: int = KEY[0], position: int = KEY[1], first_lane: int = KEY[2]) -> Masks:
    return Masks(mask_key(seed, tf.constant(position), tf.constant(first_lane)))


def pattern(drawn: Masks, place: int = 0, rate: float = 0.5) -> list[bool]:
    return (drawn.drop(tf.ones([5, 4, 6]), rate, place).numpy() > 0).ravel().tolist()


def test_masks_are_a_pure_function_of_seed_position_place_and_lane() -> None:
    assert pattern(masks()) == pattern(masks())
    others = [masks(seed=4), masks(position=18), masks(first_lane=1)]
    others += [masks(seed=KEY[0] + (1 << bit)) for bit in (31, 32, 62)]
    drawn = [pattern(masks()), pattern(masks(), place=1), *map(pattern, others)]
    drawn.append(pattern(masks(seed=KEY[1], position=KEY[0])))
    assert len({tuple(each) for each in drawn}) == len(drawn)


def test_masks_hold_for_ever() -> None:
    """A failure means that resumed runs would draw other masks than the ones they stopped with."""
    assert "".join("x" if kept else "." for kept in pattern(masks())[:24]) == "..x.xxxxx.x..x.xx...xxxx"


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.65])
def test_dropout_zeroes_its_share_and_scales_the_rest(rate: float) -> None:
    dropped = masks().drop(tf.ones([50, 20, 30]), rate, 0).numpy()
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], 1 / (1 - rate), rtol=1e-6)
    assert kept.mean() == pytest.approx(1 - rate, abs=4 * np.sqrt(rate * (1 - rate) / kept.size))


def test_dropout_takes_a_value_out_wholly_even_where_it_is_not_finite() -> None:
    values = tf.fill([5, 4, 6], np.inf)
    assert set(np.unique(masks().drop(values, 0.5, 0).numpy())) == {0.0, np.inf}


def test_a_rate_of_zero_changes_nothing() -> None:
    model = LanguageModel(TINY, WORDS, seed=0)
    inputs, targets, counted = window()
    loss, carry = model.loss_sum(inputs, targets, counted, model.zero_carry(LANES), None)
    same_loss, same_carry = model.loss_sum(inputs, targets, counted, model.zero_carry(LANES), masks())
    assert float(same_loss) == float(loss)
    for found, wanted in zip(tf.nest.flatten(same_carry), tf.nest.flatten(carry), strict=True):
        np.testing.assert_array_equal(found, wanted)


def outputs(cut: str | None = None, drawn: Masks | None = None) -> tuple[np.ndarray, list[np.ndarray]]:
    """Outputs before the softmax and the carry, from a carry that is not zero; the weight `cut` set to zero."""
    model = LanguageModel(TINY.model_copy(update={"dropout": 0.5}), WORDS, seed=0)
    if cut is not None:
        model.weights[cut].assign(tf.zeros_like(model.weights[cut]))
    random = np.random.default_rng(2)
    carry = tf.nest.map_structure(
        lambda part: tf.constant(random.normal(size=part.shape), tf.float32), model.zero_carry(LANES)
    )
    hidden, next_carry = model.outputs(tf.constant(window()[0]), carry, drawn)
    return hidden.numpy(), [part.numpy() for part in tf.nest.flatten(next_carry)]


def test_dropout_never_stands_on_the_recurrent_connection() -> None:
    """Layers that hear nothing but themselves go on as without dropout, bit for bit."""
    for layer in range(2):
        _, carry = outputs(cut=f"lstm{layer}/kernel")
        _, dropped = outputs(cut=f"lstm{layer}/kernel", drawn=masks())
        for part in (2 * layer, 2 * layer + 1):
            np.testing.assert_array_equal(dropped[part], carry[part])


def test_dropout_stands_on_the_embedding_and_between_the_layers() -> None:
    _, carry = outputs()
    _, dropped = outputs(drawn=masks())
    assert not np.isclose(dropped[0], carry[0]).all()
    _, carry = outputs(cut="lstm0/kernel")
    _, dropped = outputs(cut="lstm0/kernel", drawn=masks())
    np.testing.assert_array_equal(dropped[0], carry[0])
    assert not np.isclose(dropped[2], carry[2]).all()


def test_dropout_stands_before_the_softmax_and_not_on_the_carry() -> None:
    _, plain = outputs(cut="lstm1/kernel")
    hidden, carry = outputs(cut="lstm1/kernel", drawn=masks())
    last = hidden[-1]
    assert 0 < (last == 0).sum() < last.size
    np.testing.assert_allclose(last[last != 0], 2 * carry[2][last != 0], rtol=1e-6)
    np.testing.assert_array_equal(carry[2], plain[2])


def test_each_time_step_and_lane_has_a_mask_of_its_own() -> None:
    hidden, _ = outputs(drawn=masks())
    rows = {tuple(row == 0) for row in hidden.reshape(-1, hidden.shape[-1])}
    assert len(rows) > 2


def test_the_gradient_goes_through_the_kept_values_alone() -> None:
    values = tf.ones([5, 4, 6])
    with tf.GradientTape() as tape:
        tape.watch(values)
        dropped = masks().drop(values, 0.5, 0)
    np.testing.assert_array_equal(tape.gradient(dropped, values), dropped)
