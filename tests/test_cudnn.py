"""cuDNN's layer, as far as a machine without a GPU can tell: what its buffer means, its graph, who may choose it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError
from test_lstm import sigmoid

from raylm.config import ModelConfig, RunConfig
from raylm.errors import UserError
from raylm.model.cudnn import flat_weights, middle_gates
from raylm.model.dropout import Masks
from raylm.model.kernels import Choice, choose, disagreement, random_arguments, random_upstream, results, trial
from raylm.model.language_model import LanguageModel
from raylm.model.lstm import LayerCarry, LayerWeights, lstm_layer
from raylm.model.types import untouched
from raylm.training.signals import Watch, signal_names
from raylm.training.step import Batch, Control, share_of_step

STEPS, LANES, INPUTS, UNITS, WORDS = 4, 3, 5, 2, 30


def as_the_library_reads(buffer: np.ndarray, inputs: np.ndarray, hidden: np.ndarray, cell: np.ndarray) -> list[Any]:
    """Outputs, last hidden and last cell from cuDNN's flat buffer, by its manual (`cudnnGetRNNWeightParams`, LSTM): of
    the input, forget, new memory and output gate the matrices for the input, then those for the hidden state, each row
    after row, then all biases in the same order."""
    reads, units = inputs.shape[2], cell.shape[1]
    sizes = [*[(units, reads)] * 4, *[(units, units)] * 4, *[(units,)] * 8]
    ends = np.cumsum([np.prod(size) for size in sizes])
    parts = [part.reshape(size) for part, size in zip(np.split(buffer, ends[:-1]), sizes, strict=True)]
    w, r, b_w, b_r = (parts[first : first + 4] for first in (0, 4, 8, 12))
    outputs = []
    for x in inputs:
        i, f, c, o = (x @ w[k].T + hidden @ r[k].T + b_w[k] + b_r[k] for k in range(4))
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(c)
        hidden = sigmoid(o) * np.tanh(cell)
        outputs.append(hidden)
    return [np.stack(outputs), hidden, cell]


def weights_of(values: dict[str, Any]) -> LayerWeights:
    return LayerWeights(*(tf.constant(values[name]) for name in ("kernel", "recurrent", "bias")))


def test_the_flat_buffer_means_to_cudnn_what_the_weights_mean_to_us() -> None:
    values = random_arguments(STEPS, LANES, INPUTS, UNITS)
    buffer = flat_weights(weights_of(values)).numpy()
    given = {name: values[name] for name in ("inputs", "hidden", "cell")}
    found = as_the_library_reads(buffer, *given.values())
    carry = LayerCarry(tf.constant(values["hidden"]), tf.constant(values["cell"]))
    outputs, last = lstm_layer(tf.constant(values["inputs"]), carry, weights_of(values))
    for ours, theirs in zip((outputs, *last), found, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-13, atol=1e-15)


def test_every_weight_stands_in_the_buffer_once_and_so_does_its_gradient_come_back() -> None:
    shapes = {"kernel": (INPUTS, 4 * UNITS), "recurrent": (UNITS, 4 * UNITS), "bias": (4 * UNITS,)}
    ends = np.cumsum([np.prod(shape) for shape in shapes.values()])
    ids = [part + 1.0 for part in np.split(np.arange(ends[-1]), ends[:-1])]
    numbered = [tf.constant(part.reshape(shape)) for part, shape in zip(ids, shapes.values(), strict=True)]
    with tf.GradientTape() as tape:
        tape.watch(numbered)
        buffer = flat_weights(LayerWeights(*numbered))
    assert sorted(buffer.numpy()) == [0.0] * (4 * UNITS) + list(range(1, ends[-1] + 1))
    for gradient, part in zip(tape.gradient(buffer, numbered, buffer), numbered, strict=True):
        np.testing.assert_array_equal(gradient, part)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_middle_gates_are_those_that_the_other_kernel_has(steps: int) -> None:
    values = random_arguments(steps, LANES, INPUTS, UNITS)
    inputs, weights, seen = tf.constant(values["inputs"]), weights_of(values), {}
    carry = LayerCarry(tf.constant(values["hidden"]), tf.constant(values["cell"]))
    outputs, _ = lstm_layer(inputs, carry, weights, lambda name, tensor: seen.setdefault(name, tensor))
    found = middle_gates(inputs, carry, weights, outputs)
    np.testing.assert_allclose(found, seen["gates"][steps // 2], rtol=1e-13)


def model_on_cudnn(**parts: Any) -> LanguageModel:
    sizes = {"layers": 2, "hidden": 6, "embedding": 4}
    return LanguageModel(ModelConfig(**sizes, **parts), WORDS, seed=0, kernel="cudnn")


def test_a_step_on_cudnn_is_traced_whole_with_dropped_and_tied_weights_and_signals() -> None:
    """Every weight gets a gradient of its shape, through cuDNN's own gradient, and every signal has its place."""
    model = model_on_cudnn(tie_weights=True, recurrent_dropout=0.5, dropout=0.2, temporal_regularization=1.0)

    @tf.function(autograph=False)
    def step(inputs: Any, targets: Any, weights: Any, reset: Any) -> Any:
        control = Control(tf.constant(0), tf.constant(1.0), tf.constant(0.0), None)
        watch, masks = Watch(model, control.position, 1), Masks(tf.constant([1, 2]))
        batch, carry = Batch(inputs, targets, weights, reset), model.zero_carry(LANES)
        share = share_of_step(model, batch, carry, masks, control, tf.constant(0), watch.look(untouched))
        return share, watch.signals(share.carry, share.next_carry)

    ids, any_width = tf.TensorSpec([LANES, None], tf.int32), tf.TensorSpec([LANES, None], tf.float32)
    graph = step.get_concrete_function(ids, ids, any_width, tf.TensorSpec([LANES], tf.bool))
    share, signals = graph.structured_outputs
    assert [tuple(gradient.shape) for gradient in share.gradients] == [tuple(w.shape) for w in model.weights.values()]
    assert [tuple(part.shape) for part in tf.nest.flatten(share.next_carry)] == [(3, 6), (3, 6), (3, 4), (3, 4)]
    assert signals.shape == [len(signal_names(model))]
    operations = [operation.type for operation in graph.graph.get_operations()]
    assert operations.count("CudnnRNNV3") == operations.count("CudnnRNNBackpropV3") == 2
    assert "While" not in operations


FAILED = "outputs is off"


def test_a_model_that_was_trained_on_cudnn_computes_without_a_gpu() -> None:
    """What evaluates, generates, exports or looks into an incident chooses no kernel."""
    asked, plain = (LanguageModel(ModelConfig(hidden=4, kernel=kernel), WORDS, seed=0) for kernel in ("cudnn", "fused"))
    word, carry = tf.constant([3]), plain.zero_carry(1)
    np.testing.assert_array_equal(asked.next_logits(word, carry)[0], plain.next_logits(word, carry)[0])


@pytest.mark.parametrize(
    ("options", "gpu", "trial_says", "chosen"),
    [
        ({"kernel": "auto"}, False, None, Choice("fused", "TensorFlow sees no GPU")),
        ({"kernel": "auto"}, True, "", Choice("cudnn", "its trial agrees with the fused kernel")),
        ({"kernel": "auto"}, True, FAILED, Choice("fused", f"cuDNN's trial on this GPU fails: {FAILED}")),
        ({"kernel": "cudnn"}, True, "", Choice("cudnn", "its trial agrees with the fused kernel")),
        ({"kernel": "fused"}, True, None, Choice("fused")),
        ({"kernel": "loop"}, False, None, Choice("loop")),
        ({"peepholes": True}, True, None, Choice("fused", "cuDNN cannot be had with model.peepholes")),
        ({"precision": "float16"}, True, None, Choice("fused", "cuDNN cannot be had with model.precision float16")),
    ],
)
def test_the_kernel_follows_from_the_option_the_device_the_cell_and_the_trial(
    options: dict[str, Any], gpu: bool, trial_says: str | None, chosen: Choice
) -> None:
    def tried() -> str:
        assert trial_says is not None, "no trial is needed"
        return trial_says

    assert choose(RunConfig(model=ModelConfig(**options)), gpu, tried) == chosen
    assert bool(chosen.line) == (gpu and chosen.why != "")


@pytest.mark.parametrize(("gpu", "line"), [(False, "TensorFlow sees no GPU here"), (True, f"fails: {FAILED}; use")])
def test_cudnn_by_name_where_it_cannot_be_had_is_an_error_that_names_the_next_step(gpu: bool, line: str) -> None:
    with pytest.raises(UserError, match=line) as error:
        choose(RunConfig(model=ModelConfig(kernel="cudnn")), gpu, lambda: FAILED)
    assert str(error.value).endswith("use --model.kernel auto")


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ({"model": {"peepholes": True}}, "model.peepholes"),
        ({"model": {"projection": 3}}, "model.projection"),
        ({"model": {"mogrifier_rounds": 2}}, "model.mogrifier_rounds"),
        ({"model": {"jit": True}}, "model.jit"),
        ({"model": {"precision": "bfloat16"}}, "model.precision bfloat16"),
        ({"cluster": {"exact_elastic": True}}, "cluster.exact_elastic"),
    ],
)
def test_cudnn_by_name_is_refused_with_what_it_cannot_compute(part: dict[str, Any], named: str) -> None:
    assert RunConfig.model_validate(part).not_for_cudnn == named
    tree = {**part, "model": {**part.get("model", {}), "kernel": "cudnn"}}
    with pytest.raises(ValidationError, match=f"kernel cudnn cannot be had with {named}: leave one of them out"):
        RunConfig.model_validate(tree)


def test_a_trial_where_the_operation_fails_says_so() -> None:
    """On the processor, which cuDNN has no code for."""
    assert "CudnnRNNParamsSize" in trial(ModelConfig(hidden=3), "/CPU:0")


def test_a_trial_s_results_that_differ_are_named_with_how_much() -> None:
    values = random_arguments(STEPS, LANES, INPUTS, UNITS)
    upstream = random_upstream(values)
    wanted = results(lstm_layer, values, upstream)
    assert disagreement(wanted, wanted, 0.0) == ""

    def swapped(inputs: Any, carry: Any, weights: LayerWeights) -> Any:
        i, f, o, g = tf.split(weights.bias, 4)
        return lstm_layer(inputs, carry, weights._replace(bias=tf.concat([i, f, g, o], 0)))

    assert disagreement(results(swapped, values, upstream), wanted, 1e-2).startswith("outputs is off by 0.")
    lost = {**wanted, "gradient of cell": wanted["gradient of cell"] * np.nan}
    assert disagreement(lost, wanted, 1e-2) == "gradient of cell is off by nan of its largest number (0.01 allowed)"


def the_job() -> Any:
    place = importlib.util.spec_from_file_location("check_gpu", Path(__file__).parent.parent / "jobs" / "check_gpu.py")
    assert place is not None
    assert place.loader is not None
    job = importlib.util.module_from_spec(place)
    place.loader.exec_module(job)
    return job


def test_the_job_that_checks_a_gpu_checks_the_processor_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = the_job()
    monkeypatch.setattr("sys.argv", ["check_gpu.py", "--kernels", "fused", "cudnn", "--cells", "plain"])
    assert job.main() == 0
    shown = capsys.readouterr().out
    assert shown.count("  ok  ") >= 7
    assert "rows, 0 of them fail" in shown
    assert ("rows of a GPU are absent, cudnn's with them" in shown) == (not tf.config.list_logical_devices("GPU"))
    failing = job.compared("cudnn", "CPU", "float32", job.cases(["plain"])[0])
    assert not failing.passed
    assert "FAILS" in str(failing)


@pytest.mark.skipif(
    not tf.config.list_physical_devices("GPU"), reason="TensorFlow sees no GPU; CUDA_VISIBLE_DEVICES=0 shows it one"
)
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_on_a_gpu_cudnn_agrees_with_the_loop_masked_and_unmasked_and_passes_its_trial(precision: str) -> None:
    assert trial(ModelConfig(hidden=200, precision=precision)) == ""
    failing = [str(row) for row in the_job().rows(["cudnn"], ["plain"]) if not row.passed]
    assert not failing, "\n".join(failing)
