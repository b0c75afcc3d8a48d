"""One update: what it computes, the gate that no non-finite number passes, and replicas that make no difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from training_cases import Stepped, Window, steps
from training_runner import Call, answers

from raylm.config import RunConfig
from raylm.model.language_model import LanguageModel

WORDS, LANES, TIME = 11, 5, 4
MODEL = {"layers": 1, "hidden": 6, "init_scale": 0.3}
CLIPPED: dict[str, Any] = {
    "model": {**MODEL, "layers": 2},
    "optimizer": {"name": "sgd", "clip_norm": 0.2, "loss_scale": "sequence_sum"},
}
QUIET = {"report": {"signals": False}}  # half the graph: where signals are not looked at
MEAN = {"model": MODEL, "optimizer": {"name": "sgd", "clip_norm": None, "loss_scale": "token_mean"}, **QUIET}
ADAM: dict[str, Any] = {"model": MODEL, "optimizer": {"name": "adam", "clip_norm": 0.2}, **QUIET}
DROPOUT = {"model": {**MODEL, "dropout": 0.5}, **QUIET}


def window(seed: int, **control: Any) -> Window:
    """Five lanes, of which two end early; no lane begins anew."""
    random = np.random.default_rng(seed)
    inputs, targets = random.integers(0, WORDS, (2, LANES, TIME)).astype(np.int32)
    weights = np.ones((LANES, TIME), np.float32)
    weights[1, -1] = weights[4, -2:] = 0
    return Window(inputs, targets, weights, np.zeros(LANES, bool), **control)


def beginning_anew(seed: int, lane: int) -> Window:
    reset = np.zeros(LANES, bool)
    reset[lane] = True
    return window(seed)._replace(reset=reset)


def last_lane(seed: int, weight: float) -> Window:
    """The first target of the last lane alone, and so of one replica alone, counts so much."""
    weights = window(seed).weights.copy()
    weights[-1, 0] = weight
    return window(seed)._replace(weights=weights)


SOUND = [window(1), window(2, stop=1.0), beginning_anew(3, lane=1), window(4)]
BAD = {
    "NaN in the loss": window(9)._replace(weights=np.full((LANES, TIME), np.nan, np.float32)),
    "NaN on one replica": last_lane(9, math.nan),
    "infinity on one replica": last_lane(9, math.inf),
    "gradient that overflows": last_lane(9, 3e37),
}
TWINS = window(7)._replace(inputs=np.ones((LANES, TIME), np.int32), targets=np.ones((LANES, TIME), np.int32))
SCENARIOS = {
    "clipped": (CLIPPED, SOUND),
    "seldom": ({**ADAM, "report": {"log_every": 2}}, [window(1)._replace(position=position) for position in range(3)]),
    "no signals": ({**CLIPPED, **QUIET}, SOUND),
    "mean": (MEAN, SOUND[:2]),
    "sound": (ADAM, SOUND),
    "faults": (ADAM, [SOUND[0], *BAD.values(), *SOUND[1:]]),
    "dropout": (DROPOUT, [TWINS._replace(position=position, learning_rate=0.0) for position in (0, 1)]),
}
BY_REPLICAS = {
    1: ("clipped", "mean", "sound", "faults"),
    2: ("clipped", "no signals", "seldom", "mean", "faults", "dropout"),
    4: ("clipped", "faults"),
}
"""Of five lanes, two replicas hold three and two; of four, the last holds none."""


@pytest.fixture(scope="module")
def stepped() -> dict[int, dict[str, list[Stepped]]]:
    """By the number of replicas and the scenario: the state before the first step and after each."""
    calls = [
        Call(steps, replicas, LANES, WORDS, {name: SCENARIOS[name] for name in names})
        for replicas, names in BY_REPLICAS.items()
    ]
    return dict(zip(BY_REPLICAS, answers(calls), strict=True))


def reference(tree: dict[str, Any], windows: Sequence[Window]) -> list[dict[str, Any]]:
    """Plain SGD on the whole global batch at once, in double precision but for the gradient itself."""
    config = RunConfig.model_validate(tree)
    model = LanguageModel(config.model, WORDS, config.seed)
    carry, found = model.zero_carry(LANES), []
    for each in windows:
        carry = tf.nest.map_structure(lambda part, kept=~each.reset: part * kept[:, None].astype(np.float32), carry)
        variables = list(model.weights.values())
        with tf.GradientTape() as tape:
            tape.watch(variables)
            loss, carry = model.loss_sum(each.inputs.T, each.targets.T, each.weights.T, carry, None)
        gradients = [tf.convert_to_tensor(part).numpy().astype(np.float64) for part in tape.gradient(loss, variables)]
        scale = 1 / (each.weights.sum() if config.optimizer.loss_scale == "token_mean" else LANES)
        norm = scale * math.sqrt(sum((gradient**2).sum() for gradient in gradients))
        clip = min(1.0, (config.optimizer.clip_norm or math.inf) / norm)
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign_sub((each.learning_rate * clip * scale * gradient).astype(np.float32))
        weights = {name: variable.numpy() for name, variable in model.weights.items()}
        parts = [part.numpy() for part in tf.nest.flatten(carry)]
        found.append({"loss_sum": float(loss), "norm": norm, "weights": weights, "carry": parts})
    return found


def assert_close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6 * np.abs(value).max(), err_msg=name)


def assert_same(found: Stepped, wanted: Stepped) -> None:
    for part in ("weights", "slots", "carry"):
        for name, value in getattr(wanted, part).items():
            np.testing.assert_array_equal(getattr(found, part)[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("replicas", "scenario"), [(1, "clipped"), (2, "clipped"), (4, "clipped"), (1, "mean"), (2, "mean")]
)
def test_an_update_is_the_global_batch_s_whatever_the_replicas(stepped: Any, replicas: int, scenario: str) -> None:
    """Loss scale, global norm, clip after the all-reduce, carry, lanes that begin anew, lanes of padding."""
    tree, windows = SCENARIOS[scenario]
    for each, state, wanted in zip(windows, stepped[replicas][scenario][1:], reference(tree, windows), strict=True):
        assert state.result["tokens"] == each.weights.sum()
        assert state.result["loss_sum"] == pytest.approx(wanted["loss_sum"], rel=1e-6)
        assert state.result["norm"] == pytest.approx(wanted["norm"], rel=1e-5)
        assert state.result["finite"] == 1
        assert_close(state.weights, wanted["weights"])
        assert_close(state.carry, dict(zip(state.carry, wanted["carry"], strict=True)))


@pytest.mark.parametrize("replicas", BY_REPLICAS)
def test_a_clipped_update_is_as_long_as_the_clip(stepped: Any, replicas: int) -> None:
    """Gradients that each replica clips before the sum give another length."""
    for window, before, after in zip(
        SOUND, stepped[replicas]["clipped"], stepped[replicas]["clipped"][1:], strict=False
    ):
        assert after.result["norm"] > 2 * CLIPPED["optimizer"]["clip_norm"]
        moved = [after.weights[name].astype(np.float64) - value for name, value in before.weights.items()]
        length = math.sqrt(sum((part**2).sum() for part in moved))
        assert length == pytest.approx(window.learning_rate * CLIPPED["optimizer"]["clip_norm"], rel=1e-4)


@pytest.mark.parametrize("replicas", BY_REPLICAS)
@pytest.mark.parametrize("fault", range(len(BAD)), ids=list(BAD))
def test_a_step_that_is_not_finite_changes_nothing(stepped: Any, replicas: int, fault: int) -> None:
    """Weights, slots and carry are bit for bit what they were, whichever replica met the fault."""
    before, after = stepped[replicas]["faults"][fault + 1 : fault + 3]
    assert after.result["finite"] == 0
    assert_same(after, before)


@pytest.mark.parametrize("replicas", BY_REPLICAS)
def test_the_outcome_tells_a_bad_loss_from_a_bad_gradient(stepped: Any, replicas: int) -> None:
    results = [state.result for state in stepped[replicas]["faults"][2 : 2 + len(BAD)]]
    told = dict(zip(BAD, results, strict=True))
    assert math.isnan(told["NaN in the loss"]["loss_sum"])
    assert math.isnan(told["NaN on one replica"]["loss_sum"])
    assert math.isinf(told["infinity on one replica"]["loss_sum"])
    assert math.isfinite(told["gradient that overflows"]["loss_sum"])
    assert not math.isfinite(told["gradient that overflows"]["norm"])


def test_steps_after_faults_are_those_of_a_run_without_them(stepped: Any) -> None:
    with_faults = [state for state in stepped[1]["faults"] if state.result.get("finite", 1)]
    for found, wanted in zip(with_faults, stepped[1]["sound"], strict=True):
        assert_same(found, wanted)
        assert found.result == wanted.result


@pytest.mark.parametrize("replicas", [2, 4])
def test_adam_s_weights_and_slots_are_those_of_one_replica(stepped: Any, replicas: int) -> None:
    sound = [state for state in stepped[replicas]["faults"] if state.result.get("finite", 1)]
    for found, wanted in zip(sound, stepped[1]["sound"], strict=True):
        for name, value in wanted.weights.items():
            np.testing.assert_allclose(found.weights[name], value, atol=1e-4, err_msg=name)
        for name, value in wanted.slots.items():
            np.testing.assert_allclose(found.slots[name], value, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("replicas", BY_REPLICAS)
def test_every_rank_learns_whether_one_was_asked_to_stop(stepped: Any, replicas: int) -> None:
    asked = [state.result["stop"] > 0 for state in stepped[replicas]["clipped"][1:]]
    assert asked == [False, True, False, False]


def test_replicas_draw_masks_of_their_own_from_the_position(stepped: Any) -> None:
    """Lanes that read the same begin to differ, and windows at other positions too."""
    first, elsewhere = stepped[2]["dropout"][1:]
    hidden = first.carry["layer0/hidden"]
    assert not np.array_equal(hidden[0], hidden[3])
    assert not np.array_equal(hidden, elsewhere.carry["layer0/hidden"])


def test_signals_change_no_bit_of_what_is_trained(stepped: Any) -> None:
    for found, wanted in zip(stepped[2]["clipped"], stepped[2]["no signals"], strict=True):
        assert_same(found, wanted)
        assert found.result == wanted.result
        assert not wanted.signals


def test_signals_are_taken_at_one_window_in_so_many(stepped: Any) -> None:
    taken = [bool(state.signals) for state in stepped[2]["seldom"][1:]]
    assert taken == [True, False, True]


def test_signals_tell_how_far_the_weights_moved_and_how_the_state_stands(stepped: Any) -> None:
    """Of weights so small nearly every row is looked at."""
    states = stepped[1]["clipped"]
    for each, before, after in zip(SOUND, states, states[1:], strict=False):
        length = math.sqrt(sum((part.astype(np.float64) ** 2).sum() for part in before.weights.values()))
        moved = each.learning_rate * CLIPPED["optimizer"]["clip_norm"]
        assert after.signals["update_ratio"] == pytest.approx(moved / length, rel=0.05)
        assert all(after.signals[f"update_ratio/{name}"] > 0 for name in after.weights)
        cell = after.carry["layer1/cell"]
        assert after.signals["cell/layer1"] == pytest.approx(math.sqrt((cell**2).mean()), rel=1e-5)
        read = np.concatenate([part * ~each.reset[:, None] for part in before.carry.values()])
        assert after.signals["carry_read"] == pytest.approx(math.sqrt((read**2).mean()), rel=1e-5)
        assert (after.signals["row_dead"], after.signals["saturated/layer0"]) == (0, 0)
        assert 1 < after.signals["row_largest"] < 2
