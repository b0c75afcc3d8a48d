"""Signals of a training's health, computed in the graph beside every step: what `raylm diagnose` looks at.

Taken at one window in `report.log_every`, in a branch of the step's own graph, and of samples: of each weight every
31st row, another 31st each time; of the gates one time step. At every window their some two hundred small operations
cost 5 % of a step of `ptb-small`, for figures of which one in `log_every` is told. Each rank has those of its own first
replica, and nothing that trains depends on them.

    update_ratio, update_ratio/WEIGHT   length of an update over that of the weights it moves
    saturated/layerN                    share of the input, forget and output gates below 0.1 or above 0.9 (Karpathy,
                                        Johnson and Fei-Fei 2015, arXiv:1506.02078, section 4.2)
    cell/layerN                         root mean square of the cells after the window
    carry_read                          root mean square of the carry that the window began with
    row_dead, row_largest               of the embedding's rows: the share shorter than a hundredth of their mean
                                        length, and the longest over the mean
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from raylm.model.language_model import Carry, LanguageModel
from raylm.model.types import Tensor, Touch

_ROWS_APART = 31
_FEWEST_ROWS = 8


class Watch:
    """The signals of one step; made before its update, in the graph that is being traced."""

    def __init__(self, model: LanguageModel, position: Tensor, every: int) -> None:
        """every: windows from one that is looked at to the next; the first of a run is one."""
        self._model, self._position = model, position
        self._due = position % every == 0
        shapes = {name: [0, *weight.shape[1:]] for name, weight in model.weights.items()}
        self._before = tf.cond(self._due, self._rows, lambda: {name: tf.zeros(shape) for name, shape in shapes.items()})
        self._gates: list[Callable[[], Tensor]] = []

    def look(self, touch: Touch) -> Touch:
        """A touch that looks at the gates after `touch`."""

        def looking(name: str, tensor: Tensor) -> Tensor:
            tensor = touch(name, tensor)
            if name.endswith("/gates"):
                self._gates.append(lambda: tensor[tf.shape(tensor)[0] // 2])
            elif name.endswith("/middle gates"):
                self._gates.append(tensor)
            return tensor

        return looking

    def signals(self, before: Carry, after: Carry) -> Tensor:
        """float32 [`signal_names`], after the update; NaN where they are not due. before, after: the carry that the
        window began and ended with."""
        names = signal_names(self._model)
        return tf.cond(self._due, lambda: self._measured(before, after), lambda: tf.fill([len(names)], float("nan")))

    def _measured(self, before: Carry, after: Carry) -> Tensor:
        rows = self._rows()
        moved = [_square(rows[name] - self._before[name]) for name in rows]
        held = [_square(self._before[name]) for name in rows]
        lengths = tf.norm(rows["embedding"], axis=1)
        mean = tf.reduce_mean(lengths)
        return tf.stack(
            [
                _ratio(_total(moved), _total(held)),
                *map(_ratio, moved, held),
                *(_saturation(gates()) for gates in self._gates),
                *(_root_mean_square([layer.cell]) for layer in after),
                _root_mean_square(tf.nest.flatten(before)),
                tf.reduce_mean(tf.cast(lengths < 0.01 * mean, tf.float32)),
                tf.math.divide_no_nan(tf.reduce_max(lengths), mean),
            ]
        )

    def _rows(self) -> dict[str, Tensor]:
        sampled = {}
        for name, weight in self._model.weights.items():
            apart = max(1, min(_ROWS_APART, weight.shape[0] // _FEWEST_ROWS))
            ids = tf.range(self._position % apart, weight.shape[0], apart)
            sampled[name] = self._model.lookup(name, ids)
        return sampled


def signal_names(model: LanguageModel) -> Sequence[str]:
    """What the signals of a step are called, in their order."""
    layers = range(model.config.layers)
    return (
        "update_ratio",
        *(f"update_ratio/{name}" for name in model.weights),
        *(f"saturated/layer{layer}" for layer in layers),
        *(f"cell/layer{layer}" for layer in layers),
        *("carry_read", "row_dead", "row_largest"),
    )


def named(model: LanguageModel, signals: Any) -> dict[str, float]:
    """The signals of a step by name; none where they are off, or were not due."""
    values = np.asarray(signals).tolist()
    return {} if not values or math.isnan(values[0]) else dict(zip(signal_names(model), values, strict=True))


def _saturation(gates_BG: Tensor) -> Tensor:
    """Of one time step, in the middle of the window, where sentences are seldom padded."""
    sigmoids = gates_BG[:, : 3 * (gates_BG.shape[-1] // 4)]
    return tf.reduce_mean(tf.cast((sigmoids < 0.1) | (sigmoids > 0.9), tf.float32))


def _square(values: Tensor) -> Tensor:
    return tf.reduce_sum(tf.square(tf.cast(values, tf.float32)))


def _ratio(moved: Tensor, held: Tensor) -> Tensor:
    return tf.sqrt(tf.math.divide_no_nan(moved, held))


def _root_mean_square(parts: Sequence[Tensor]) -> Tensor:
    count = tf.add_n([tf.size(part, tf.int64) for part in parts])
    return tf.sqrt(_total([_square(part) for part in parts]) / tf.cast(count, tf.float32))


def _total(scalars: Sequence[Tensor]) -> Tensor:
    """In one order: `add_n` takes them as they come."""
    return tf.reduce_sum(tf.stack(scalars))
