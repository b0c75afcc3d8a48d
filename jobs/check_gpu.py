"""Whether every way to compute an LSTM layer computes the same on every device of this machine: cuDNN and XLA on a GPU
above all, which no machine of this project has shown yet.

    python jobs/check_gpu.py        half a minute on two cores; exit code 1 where a row fails

Each row is one kernel on one device: how far outputs, carry and every gradient lie from those of the loop with
TensorFlow's own gradient, in double precision on the processor, as a share of the largest number of their kind. That
reference is held against finite differences first. `masked` rows have no gradient from beyond each lane's end, like
padded sentences. Without a GPU the rows of the processor are printed, and it says which are absent. It wants
tensorflow, numpy and pydantic, no more, and PYTHONPATH where raylm is not installed: a borrowed machine will do.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:2")  # as in a run, where layers must give the same bits again
import tensorflow as tf

from raylm.model.cudnn import cudnn_layer
from raylm.model.kernels import TOLERANCE, Layer, distance, random_arguments, random_upstream, results
from raylm.model.lstm import Kernel, lstm_layer

CELLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "peepholes": {"peepholes": True},
    "projection": {"projection": 24},
    "both": {"peepholes": True, "projection": 24},
}
LOOP = partial(lstm_layer, kernel=Kernel(differentiated=True))
LAYERS: dict[str, Layer] = {
    "loop": LOOP,
    "fused": lstm_layer,
    "fused XLA": partial(lstm_layer, kernel=Kernel(jit=True)),
    "cudnn": cudnn_layer,
}
ALLOWED = TOLERANCE | {"float64": 1e-9}
DIFFERENCES_ALLOWED = 1e-6
STEPS, LANES, INPUTS, UNITS = 12, 5, 20, 32


class Case(NamedTuple):
    """A cell's arguments, the gradients from above, and what should come of them."""

    name: str
    values: Mapping[str, np.ndarray]
    upstream: Sequence[np.ndarray]
    wanted: Mapping[str, np.ndarray]


class Row(NamedTuple):
    """What was compared, the worst of its results, its distance, and what is allowed; an error in its place."""

    what: str
    worst: str
    apart: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.apart <= self.allowed

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "FAILS"
        return f"{self.what:48} {self.apart:9.1e} of {self.allowed:7.0e}  {verdict:5}  {self.worst}"


def cases(cells: Sequence[str]) -> list[Case]:
    """Each cell, as it is and masked, computed by the loop in double precision on the processor."""
    made = []
    for name in cells:
        values = random_arguments(STEPS, LANES, INPUTS, UNITS, **CELLS[name])
        outputs, *carry = random_upstream(values)
        lengths = np.linspace(1, STEPS, LANES).astype(int)
        mask = np.arange(STEPS)[:, None, None] < lengths[:, None]
        masked = [outputs * mask, *(0 * part for part in carry)]
        for kind, upstream in ((name, [outputs, *carry]), (f"{name}, masked", masked)):
            with tf.device("/CPU:0"):
                made.append(Case(kind, values, upstream, results(LOOP, values, upstream, tf.float64)))
    return made


def against_differences(case: Case) -> Row:
    """The reference's gradient along a random direction of all arguments, against its own central difference."""
    random, step = np.random.default_rng(2), 1e-6
    directions = {name: random.normal(size=value.shape) for name, value in case.values.items()}

    def loss(sign: int) -> float:
        moved = {name: value + sign * step * directions[name] for name, value in case.values.items()}
        found = results(LOOP, moved, case.upstream, tf.float64)
        return sum(float((u * found[name]).sum()) for u, name in zip(case.upstream, case.wanted, strict=False))

    along = sum(float((case.wanted[f"gradient of {name}"] * each).sum()) for name, each in directions.items())
    apart = distance(np.asarray((loss(1) - loss(-1)) / (2 * step)), np.asarray(along))
    return Row(f"reference, {case.name}", "finite differences along all arguments", apart, DIFFERENCES_ALLOWED)


def compared(layer: str, device: str, precision: str, case: Case) -> Row:
    """One kernel on one device."""
    what = f"{layer}, {device}, {precision}, {case.name}"
    tf.config.experimental.enable_tensor_float_32_execution(precision == "tf32")
    dtype = tf.float64 if precision == "float64" else tf.float32
    try:
        with tf.device(f"/{device}:0"):
            found = results(LAYERS[layer], case.values, case.upstream, dtype, traced=_is_traced(layer, device))
    except tf.errors.OpError as error:
        return Row(what, f"{type(error).__name__}: {error.message.splitlines()[0]}", float("nan"), ALLOWED[precision])
    worst = max(case.wanted, key=lambda name: np.nan_to_num(distance(found[name], case.wanted[name]), nan=np.inf))
    return Row(what, worst, distance(found[worst], case.wanted[worst]), ALLOWED[precision])


def repeated(layer: str, device: str, case: Case) -> Row:
    """One kernel on one device twice, bit for bit."""
    what = f"{layer}, {device}, float32, {case.name}, again"
    with tf.device(f"/{device}:0"):
        once, again = (
            results(LAYERS[layer], case.values, case.upstream, traced=_is_traced(layer, device)) for _ in "12"
        )
    worst = max(once, key=lambda name: distance(again[name], once[name]))
    return Row(what, "the same bits", distance(again[worst], once[worst]), 0.0)


def rows(layers: Sequence[str], cells: Sequence[str]) -> list[Row]:
    """All that this machine can show, the reference first."""
    chosen = cases(cells)
    found = [against_differences(case) for case in chosen]
    precisions = {"CPU": ("float64", "float32"), "GPU": ("float64", "float32", "tf32")}
    for device in ("CPU", "GPU") if tf.config.list_logical_devices("GPU") else ("CPU",):
        for layer in layers:
            if layer == "cudnn" and device == "CPU":
                continue
            found += [
                compared(layer, device, precision, case)
                for case in chosen
                if layer != "cudnn" or case.name.startswith("plain")
                for precision in precisions[device]
            ]
            found.append(repeated(layer, device, chosen[0]))
    return found


def _is_traced(layer: str, device: str) -> bool:
    return device == "GPU" or "XLA" in layer


def main() -> int:
    """Prints the table; 1 where a row fails."""
    parser = argparse.ArgumentParser(description="Whether all kernels compute the same on all devices here.")
    parser.add_argument("--kernels", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    options = parser.parse_args()
    found = rows(options.kernels, options.cells)
    print(f"TensorFlow {tf.__version__}; worst distance of each row, what is allowed, and where")
    print(*found, sep="\n")
    if not tf.config.list_logical_devices("GPU"):
        print("rows of a GPU are absent, cudnn's with them: TensorFlow sees none here")
    failed = sum(not row.passed for row in found)
    print(f"{len(found)} rows, {failed} of them fail")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
