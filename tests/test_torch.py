"""The same network in PyTorch, from the same weights and batch: loss, gradients, and fifty updates.

Where PyTorch is installed: `pip install torch`, `pytest -m slow tests/test_torch.py`.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from training_cases import Window, steps
from training_runner import call

from raylm.config import ModelConfig, RunConfig
from raylm.errors import UserError
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


REPRODUCED: dict[str, dict[str, Any]] = {
    "zaremba": {
        "model": {"layers": 2, "hidden": 24, "init_scale": 0.3},
        "optimizer": {"name": "sgd", "clip_norm": 2.0, "loss_scale": "sequence_sum"},
    },
    "awd": {
        "data": {"lanes": LANES, "window": TIME, "jitter": True},
        "model": {
            "layers": 3,
            "hidden": 24,
            "embedding": 10,
            "tie_weights": True,
            "init": "awd",
            "init_scale": 0.5,
            "activation_regularization": 2.0,
            "temporal_regularization": 1.0,
        },
        "optimizer": {"name": "sgd", "clip_norm": 0.1, "loss_scale": "token_mean", "weight_decay": 1e-3},
        "schedule": {"kind": "constant", "learning_rate": 30.0},
    },
}


@pytest.fixture(scope="module")
def training(reference: Any) -> Any:
    sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))
    return importlib.import_module("torch_training")


@pytest.mark.parametrize("recipe", REPRODUCED)
def test_an_update_of_the_reproduction_s_pytorch_side_is_raylm_s(
    recipe: str, training: Any, reference: Any, tmp_path: Path
) -> None:
    """Three windows from the same weights without masks: AR, TAR, weight decay, tied weights, the shorter window's rate
    and the clip."""
    tree = {"data": {"lanes": LANES, "window": TIME}, "schedule": {"kind": "held"}, **REPRODUCED[recipe]}
    config, random, windows = RunConfig.model_validate(tree), np.random.default_rng(2), []
    for number, length in enumerate((TIME, 7, TIME)):
        inputs, targets = random.integers(0, WORDS, (2, LANES, length)).astype(np.int32)
        rate = config.schedule.learning_rate * (length / TIME if config.data.jitter else 1)
        reset, ones = np.full(LANES, number == 0), np.ones((LANES, length), np.float32)
        windows.append(Window(inputs, targets, ones, reset, rate, number))
    states = call(steps, 1, LANES, WORDS, {recipe: (tree, windows)})[recipe]
    other = training.Training(config, dict.fromkeys(("train", "valid", "test"), np.arange(99)), WORDS, tmp_path)
    network, torch, weights = other.network, reference.torch, states[0].weights
    layers = [
        reference.of_gates(weights[f"lstm{layer}/{part}"]).T
        for layer, part in itertools.product(range(config.model.layers), ("kernel", "recurrent", "bias"))
    ]
    given = [weights["embedding"], *([] if config.model.tie_weights else [weights["softmax"]]), weights["softmax/bias"]]
    tables = [network.embedding, *([] if config.model.tie_weights else [network.softmax]), network.bias]
    with torch.no_grad():
        for parameter, value in zip([*network.layers, *tables], [*layers, *given], strict=True):
            parameter.copy_(torch.tensor(value))
    for window in windows:
        other.update(*(torch.tensor(ids.T).long() for ids in window[:2]))
    for name, parameter in (("embedding", network.embedding), ("softmax/bias", network.bias)):
        moved = np.abs(states[-1].weights[name] - weights[name]).max()
        difference = np.abs(parameter.detach().numpy() - states[-1].weights[name]).max()
        assert difference < 1e-4 * moved, name
    for number, (layer, part) in enumerate(itertools.product(range(config.model.layers), ("kernel", "recurrent"))):
        found = reference.of_gates(network.layers[number // 2 * 3 + number % 2].detach().numpy().T)
        wanted, before = (state.weights[f"lstm{layer}/{part}"] for state in (states[-1], states[0]))
        assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted - before).max(), (layer, part)


def test_the_reproduction_s_pytorch_side_goes_on_where_it_was_stopped(training: Any, tmp_path: Path) -> None:
    """Stopped again and again, in training and in evaluation, with masks, lengths and averaging: the same end."""
    masks = {"embedding_dropout": 0.1, "dropout": 0.3, "locked_dropout": True, "recurrent_dropout": 0.5}
    awd = REPRODUCED["awd"]
    tree = {**awd, "epochs": 4, "model": {**awd["model"], **masks}}
    tree["optimizer"] = {**awd["optimizer"], "averaging": "triggered", "patience": 1}
    config, random = RunConfig.model_validate(tree), np.random.default_rng(3)
    texts = {split: random.integers(0, WORDS, 400) for split in ("train", "valid", "test")}
    unbroken = training.Training(config, texts, WORDS, tmp_path / "unbroken")
    assert unbroken.run(lambda: False, print)
    assert unbroken.progress.averaged > 0
    attempts = 0
    for _ in range(100):
        calls = itertools.count()
        broken = training.Training(config, texts, WORDS, tmp_path / "broken")
        if broken.run(lambda calls=calls: next(calls) >= 4, print):  # type: ignore[misc]
            break
        attempts += 1
    assert 3 < attempts < 100
    assert broken.progress.valid == unbroken.progress.valid
    assert broken.progress.test == unbroken.progress.test
    with pytest.raises(UserError, match="of another configuration or text: choose another --storage-path"):
        training.Training(config.model_copy(update={"seed": 1}), texts, WORDS, tmp_path / "broken")
    broken.file.write_bytes(broken.file.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"pytorch\.safetensors cannot be read .*: remove it to begin"):
        training.Training(config, texts, WORDS, tmp_path / "broken")


def test_the_reproduction_s_pytorch_side_refuses_what_it_has_not(training: Any, tmp_path: Path) -> None:
    config = RunConfig.model_validate({**REPRODUCED["zaremba"], "optimizer": {"name": "adam"}})
    with pytest.raises(UserError, match=r"--optimizer\.name: .* add --without-pytorch"):
        training.Training(config, {}, WORDS, tmp_path)


@pytest.mark.parametrize(
    "part", ["embedding_dropout", "input_dropout", "dropout", "output_dropout", "recurrent_dropout"]
)
def test_each_mask_of_the_reproduction_s_pytorch_side_changes_its_loss_in_training_alone(
    part: str, training: Any, reference: Any
) -> None:
    torch, sizes = reference.torch, REPRODUCED["awd"]["model"]
    network = training.Awd(ModelConfig(**{**sizes, part: 0.5, "locked_dropout": part == "dropout"}), WORDS)
    plain = training.Awd(ModelConfig(**sizes), WORDS)
    plain.load_state_dict(network.state_dict())
    ids, carry = torch.randint(0, WORDS, (TIME, LANES)), network.zero_carry(LANES)
    masked, unmasked = (each(ids, ids, carry)[0].item() for each in (network, plain))
    assert abs(masked - unmasked) > 1e-6
    assert network.eval()(ids, ids, carry)[0].item() == plain.eval()(ids, ids, carry)[0].item()
