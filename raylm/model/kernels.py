"""Which kernel computes the LSTM layers, and the trial that lets cuDNN do so.

The buffer that cuDNN takes is laid out from knowledge of the library, not by asking it where each matrix goes, and
which library there is differs from machine to machine. So it is not trusted: before anything is trained, a small batch
is computed with it, with the fused kernel, and with it again, on the same device, for every size of layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import tensorflow as tf

from raylm.config import ModelConfig, RunConfig
from raylm.errors import UserError
from raylm.model.cudnn import cudnn_layer
from raylm.model.lstm import LayerCarry, LayerWeights, lstm_layer
from raylm.model.types import Tensor

KernelName = Literal["loop", "fused", "cudnn"]
Layer = Callable[[Tensor, LayerCarry, LayerWeights], tuple[Tensor, LayerCarry]]

TOLERANCE = {"float32": 1e-4, "tf32": 1e-2}
"""By precision: how far cuDNN's results may lie from the fused kernel's, as a share of the largest of their kind.
A wrong layout makes differences of about 1; a product rounds off 1e-7 of its terms, TensorFloat-32 5e-4."""

_STEPS, _LANES = 5, 3


_NO_GPU = "TensorFlow sees no GPU"


class Choice(NamedTuple):
    """A kernel, and why it is this one; empty where the configuration names it."""

    kernel: KernelName
    why: str = ""

    @property
    def line(self) -> str:
        """For a person; empty where there was nothing to choose from."""
        return "" if self.why in ("", _NO_GPU) else f"kernel {self.kernel}: {self.why}"


def choose(config: RunConfig, gpu: bool, trial: Callable[[], str]) -> Choice:
    """The kernel of a run where TensorFlow sees a GPU, or sees none. trial: asked only where cuDNN could be chosen;
    empty where its results agree, else what is wrong with them.

    Raises:
        UserError: cuDNN was asked for by name, and there is no GPU or the trial failed.
    """
    asked = config.model.kernel
    if asked in ("loop", "fused"):
        return Choice(asked)
    if not gpu:
        if asked == "cudnn":
            raise UserError(f"model.kernel cudnn: {_NO_GPU} here, see `raylm doctor`; use --model.kernel auto")
        return Choice("fused", _NO_GPU)
    if config.not_for_cudnn:
        return Choice("fused", f"cuDNN cannot be had with {config.not_for_cudnn}")
    problem = trial()
    if not problem:
        return Choice("cudnn", "its trial agrees with the fused kernel")
    if asked == "cudnn":
        raise UserError(f"model.kernel cudnn: its trial on this GPU fails: {problem}; use --model.kernel auto")
    return Choice("fused", f"cuDNN's trial on this GPU fails: {problem}")


def trial(config: ModelConfig, device: str = "/GPU:0") -> str:
    """Computes a batch of random numbers with cuDNN and with the fused kernel on a device, for each size of layer of a
    network; says what differs by more than `TOLERANCE`, or at all when it is computed again, or which error came;
    nothing where all is well."""
    tf.config.experimental.enable_tensor_float_32_execution(config.precision == "tf32")
    for inputs, units in dict.fromkeys(zip(config.widths, config.units, strict=False)):
        values = random_arguments(_STEPS, _LANES, inputs, units)
        upstream = random_upstream(values)
        try:
            _check_size(inputs, units, device)
            layers = (cudnn_layer, lstm_layer, cudnn_layer)
            found, wanted, again = (results(layer, values, upstream, device) for layer in layers)
        except tf.errors.OpError as error:
            return f"{type(error).__name__}: {(error.message.splitlines() or [''])[0]}"
        problem = disagreement(found, wanted, TOLERANCE[config.precision])
        repeated = disagreement(again, found, 0.0)  # a resumed run, and a step that is computed again, rely on it
        if problem or repeated:
            return f"in a layer of {units} units that reads {inputs}, {problem or f'computed again, {repeated}'}"
    return ""


def _check_size(inputs: int, units: int, device: str) -> None:
    """cuDNN reads and writes as many numbers as it has use for, beyond the end of a buffer that is too small."""
    sizes = {"num_layers": 1, "num_units": units, "input_size": inputs}
    with tf.device(device):
        asked = tf.raw_ops.CudnnRNNParamsSize(**sizes, T=tf.float32, S=tf.int64)
    theirs, ours = int(asked[0]), 4 * units * (inputs + units + 2)
    if theirs != ours:
        line = f"cuDNN wants {theirs:,} numbers for a layer's weights, they are {ours:,}"
        raise tf.errors.InvalidArgumentError(None, None, line)


def random_arguments(
    steps: int, lanes: int, inputs: int, units: int, peepholes: bool = False, projection: int | None = None
) -> dict[str, np.ndarray]:
    """Inputs, hidden, cell and weights of a layer by name, float64, of sizes at which no gate saturates."""
    outputs = projection or units
    sizes: dict[str, tuple[tuple[int, ...], float]] = {
        "inputs": ((steps, lanes, inputs), 1.0),
        "hidden": ((lanes, outputs), 0.5),
        "cell": ((lanes, units), 0.5),
        "kernel": ((inputs, 4 * units), inputs**-0.5),
        "recurrent": ((outputs, 4 * units), outputs**-0.5),
        "bias": ((4 * units,), 0.5),
    }
    sizes |= {"peepholes": ((3, units), 0.5)} if peepholes else {}
    sizes |= {"projection": ((units, outputs), units**-0.5)} if projection else {}
    random = np.random.default_rng(0)
    return {name: random.normal(scale=scale, size=shape) for name, (shape, scale) in sizes.items()}


def random_upstream(values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Gradients of outputs, last hidden and last cell."""
    random = np.random.default_rng(1)
    hidden, cell = values["hidden"].shape, values["cell"].shape
    return [random.normal(size=shape) for shape in ((len(values["inputs"]), *hidden), hidden, cell)]


def results(
    layer: Layer,
    values: Mapping[str, np.ndarray],
    upstream: Sequence[np.ndarray],
    device: str = "/CPU:0",
    dtype: tf.DType = tf.float32,
    traced: bool = False,
) -> dict[str, np.ndarray]:
    """What a layer makes of `random_arguments`: outputs, last hidden, last cell, and the gradient of every argument.
    traced: computed in a compiled function, which XLA wants."""

    def compute(given: dict[str, Tensor], of_results: list[Tensor]) -> dict[str, Tensor]:
        with tf.device(device):  # here: what a compiled function holds is placed by its own devices, not its caller's
            with tf.GradientTape() as tape:
                tape.watch(given)
                weights = LayerWeights(**{name: given[name] for name in LayerWeights._fields if name in given})
                outputs, carry = layer(given["inputs"], LayerCarry(given["hidden"], given["cell"]), weights)
            gradients = tape.gradient([outputs, *carry], given, of_results)
        forward = {"outputs": outputs, "last hidden": carry.hidden, "last cell": carry.cell}
        return forward | {f"gradient of {name}": gradient for name, gradient in gradients.items()}

    given = {name: tf.constant(value, dtype) for name, value in values.items()}
    run = tf.function(compute, autograph=False) if traced else compute
    found = run(given, [tf.constant(value, dtype) for value in upstream])
    return {name: value.numpy() for name, value in found.items()}


def disagreement(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], tolerance: float) -> str:
    """The first of the results that lie apart by more than a share of the largest number wanted; empty where none."""
    for name, value in wanted.items():
        apart = distance(found[name], value)
        if not apart <= tolerance:
            return f"{name} is off by {apart:.2g} of its largest number ({tolerance:g} allowed)"
    return ""


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, as a share of the largest number wanted; NaN where there is one."""
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), np.finfo(np.float32).tiny))
