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
from collections.abc import Callable, Mapping, Sequence
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
            made.append(Case(kind, values, upstream, results(LOOP, values, upstream, dtype=tf.float64)))
    return made


def against_differences(case: Case) -> Row:
    """The reference's gradient along a random direction of all arguments, against its own central difference."""
    random, step = np.random.default_rng(2), 1e-6
    directions = {name: random.normal(size=value.shape) for name, value in case.values.items()}

    def loss(sign: int) -> float:
        moved = {name: value + sign * step * directions[name] for name, value in case.values.items()}
        found = results(LOOP, moved, case.upstream, dtype=tf.float64)
        return sum(float((u * found[name]).sum()) for u, name in zip(case.upstream, case.wanted, strict=False))

    along = sum(float((case.wanted[f"gradient of {name}"] * each).sum()) for name, each in directions.items())
    apart = distance(np.asarray((loss(1) - loss(-1)) / (2 * step)), np.asarray(along))
    return Row(f"reference, {case.name}", "finite differences along all arguments", apart, DIFFERENCES_ALLOWED)


def computed(layer: str, device: str, case: Case, dtype: tf.DType = tf.float32) -> dict[str, np.ndarray]:
    """A case by one kernel on one device, on a GPU in a compiled function as in a run."""
    traced = device == "GPU" or "XLA" in layer
    return results(LAYERS[layer], case.values, case.upstream, f"/{device}:0", dtype, traced)


def compared(layer: str, device: str, precision: str, case: Case) -> Row:
    """One kernel on one device, against the reference."""
    tf.config.experimental.enable_tensor_float_32_execution(precision == "tf32")
    dtype = tf.float64 if precision == "float64" else tf.float32
    what = f"{layer}, {device}, {precision}, {case.name}"
    return _row(what, ALLOWED[precision], lambda: _worst(computed(layer, device, case, dtype), case.wanted))


def repeated(layer: str, device: str, case: Case) -> Row:
    """One kernel on one device twice, bit for bit."""
    tf.config.experimental.enable_tensor_float_32_execution(False)
    what = f"{layer}, {device}, float32, {case.name}, again"
    return _row(what, 0.0, lambda: _worst(*(computed(layer, device, case) for _ in range(2))))


def _row(what: str, allowed: float, compare: Callable[[], tuple[str, float]]) -> Row:
    try:
        return Row(what, *compare(), allowed)
    except tf.errors.OpError as error:
        return Row(what, f"{type(error).__name__}: {error.message[:100]}", float("nan"), allowed)


def _worst(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> tuple[str, float]:
    """The result that lies furthest off, and how far."""
    apart = {name: distance(found[name], wanted[name]) for name in wanted}
    worst = max(apart, key=lambda name: np.nan_to_num(apart[name], nan=np.inf))
    return worst, apart[worst]


def rows(layers: Sequence[str], cells: Sequence[str]) -> list[Row]:
    """All that this machine can show, the reference first."""
    chosen = cases(cells)
    found = [against_differences(case) for case in chosen]
    precisions = {"CPU": ("float64", "float32"), "GPU": ("float64", "float32", "tf32")}
    for device in ("CPU", "GPU") if tf.config.list_logical_devices("GPU") else ("CPU",):
        for layer in layers:
            suited = [
                case for case in chosen if layer != "cudnn" or (device == "GPU" and case.name.startswith("plain"))
            ]
            found += [compared(layer, device, precision, case) for case in suited for precision in precisions[device]]
            found += [repeated(layer, device, case) for case in suited[:1]]
    return found


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
