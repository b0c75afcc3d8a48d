"""The same network in PyTorch, from the same weights and batch: loss, gradients, and fifty updates.

Where PyTorch is installed: `pip install torch`, `pytest -m slow tests/test_torch.py`.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from training_cases import Window, steps
from training_runner import call

from raylm.config import ModelConfig, RunConfig
from raylm.model.language_model import LanguageModel
from raylm.optim.schedules import learning_rate

pytestmark = pytest.mark.slow

WORDS, TIME, LANES = 50, 12, 4
NETWORKS: dict[str, dict[str, Any]] = {
    "two layers": {"layers": 2, "hidden": 24},
    "projection": {"layers": 2, "hidden": 24, "projection": 10},
    "peepholes": {"layers": 2, "hidden": 24, "peepholes": True},
}


@pytest.fixture(scope="module")
def reference() -> Any:
    pytest.importorskip("torch", reason="PyTorch is the other side of the comparison: pip install torch")
    return importlib.import_module("torch_reference")


@pytest.mark.parametrize("network", NETWORKS)
def test_loss_and_every_gradient_are_pytorch_s_to_1e_5(network: str, reference: Any) -> None:
    """From a carry that is not zero; differences are measured against the largest number of each gradient."""
    config = ModelConfig(**NETWORKS[network], init_scale=0.3)
    model, random = LanguageModel(config, WORDS, seed=3), np.random.default_rng(0)
    inputs, targets = random.integers(0, WORDS, (2, TIME, LANES)).astype(np.int32)
    carry = tf.nest.map_structure(
        lambda part: random.normal(size=part.shape, scale=0.3).astype(np.float32), model.zero_carry(LANES)
    )
    variables = list(model.weights.values())
    with tf.GradientTape() as tape:
        tape.watch(variables)
        loss, _ = model.loss_sum(inputs, targets, np.ones((TIME, LANES), np.float32), carry, None)
    gradients = dict(zip(model.weights, map(tf.convert_to_tensor, tape.gradient(loss, variables)), strict=True))
    other = reference.Network({name: weight.numpy() for name, weight in model.weights.items()}, config)
    wanted, _ = other.loss_sum(inputs, targets, [tuple(map(reference.torch.tensor, pair)) for pair in carry])
    wanted.backward()
    assert float(loss) == pytest.approx(wanted.item(), rel=1e-5)
    assert other.named().keys() == gradients.keys()
    for name, (parameter, as_ours) in other.named().items():
        expected = as_ours(parameter.grad.numpy())
        np.testing.assert_allclose(
            gradients[name].numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=name
        )


@pytest.mark.parametrize("network", NETWORKS)
def test_fifty_updates_follow_a_pytorch_loop_to_1e_3(network: str, reference: Any) -> None:
    """Plain SGD on the sum over time, clipped by its global norm, the learning rate held for four epochs of five
    windows and then halved, the carry kept within an epoch; losses and weights."""
    tree: dict[str, Any] = {
        "model": {**NETWORKS[network], "init_scale": 0.3},
        "optimizer": {"name": "sgd", "clip_norm": 2.0, "loss_scale": "sequence_sum"},
        "schedule": {"kind": "held", "learning_rate": 1.0, "held_epochs": 4, "divisor": 2.0},
    }
    config, random = RunConfig.model_validate(tree), np.random.default_rng(1)
    windows = []
    for number in range(50):
        inputs, targets = random.integers(0, WORDS, (2, LANES, TIME)).astype(np.int32)
        targets = (inputs * 7 + 3) % WORDS if number % 2 else targets
        reset, rate = np.full(LANES, number % 5 == 0), learning_rate(config.schedule, number, number // 5, 50)
        windows.append(Window(inputs, targets, np.ones((LANES, TIME), np.float32), reset, rate, number))
    states = call(steps, 1, LANES, WORDS, {network: (tree, windows)})[network]
    other, norms = reference.Network(states[0].weights, config.model), []
    parameters = [parameter for parameter, _ in other.named().values()]
    for number, (window, state) in enumerate(zip(windows, states[1:], strict=True)):
        if number % 5 == 0:
            sizes = zip(config.model.widths[1:], config.model.units, strict=True)
            carry = [tuple(reference.torch.zeros(LANES, size) for size in pair) for pair in sizes]
        loss, carry = other.loss_sum(window.inputs.T, window.targets.T, carry)
        carry = [tuple(part.detach() for part in pair) for pair in carry]
        for parameter in parameters:
            parameter.grad = None
        (loss / LANES).backward()
        norms.append(reference.torch.nn.utils.clip_grad_norm_(parameters, 2.0).item())
        rate = 0.5 ** max(0, number // 5 - 3)
        with reference.torch.no_grad():
            for parameter in parameters:
                parameter -= rate * parameter.grad
        assert state.result["loss_sum"] == pytest.approx(loss.item(), rel=1e-3), number
    assert sum(norm > 2 for norm in norms) > 10
    for name, (parameter, as_ours) in other.named().items():
        np.testing.assert_allclose(
            states[-1].weights[name], as_ours(parameter.detach().numpy()), rtol=0, atol=1e-3, err_msg=name
        )
