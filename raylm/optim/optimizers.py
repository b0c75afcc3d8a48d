"""Updates: stochastic gradient descent and Adam, over plain variables.

An optimizer owns its slots as variables created before the first step, in the weights' order on every rank. `apply`
takes gradients that are already reduced over all replicas, averaged and clipped: it only moves the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import tensorflow as tf

from raylm.config import OptimizerConfig
from raylm.model.types import Tensor


class Optimizer(Protocol):
    """Anything with named slots and an update."""

    slots: Mapping[str, tf.Variable]

    def apply(self, gradients: Sequence[Tensor], factor: Tensor, learning_rate: Tensor) -> None:
        """Moves the weights by one step along `factor` · gradients (in the weights' order)."""


class SGD:
    """w ← w − lr · g. No slots."""

    def __init__(self, weights: Mapping[str, tf.Variable]) -> None:
        self.weights = weights
        self.slots: Mapping[str, tf.Variable] = {}

    def apply(self, gradients: Sequence[Tensor], factor: Tensor, learning_rate: Tensor) -> None:
        scale = factor * learning_rate
        for weight, gradient in zip(self.weights.values(), gradients, strict=True):
            weight.assign_sub(scale * gradient)


class Adam:
    """Adam with bias correction (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1)."""

    def __init__(self, weights: Mapping[str, tf.Variable], beta1: float, beta2: float, epsilon: float) -> None:
        self.weights = weights
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.slots: Mapping[str, tf.Variable] = {
            f"{name}/{moment}": tf.Variable(tf.zeros_like(weight), trainable=False)
            for name, weight in weights.items()
            for moment in ("first", "second")
        } | {"updates": tf.Variable(0.0, trainable=False)}

    def apply(self, gradients: Sequence[Tensor], factor: Tensor, learning_rate: Tensor) -> None:
        updates = self.slots["updates"]
        updates.assign_add(1.0)
        count = updates.read_value()
        correction = tf.sqrt(1 - self.beta2**count) / (1 - self.beta1**count)
        rate, epsilon = learning_rate * correction, self.epsilon * tf.sqrt(1 - self.beta2**count)
        for (name, weight), gradient in zip(self.weights.items(), gradients, strict=True):
            clipped = factor * gradient
            first, second = self.slots[f"{name}/first"], self.slots[f"{name}/second"]
            first.assign_sub((1 - self.beta1) * (first - clipped))
            second.assign_sub((1 - self.beta2) * (second - tf.square(clipped)))
            weight.assign_sub(rate * first / (tf.sqrt(second) + epsilon))


def make_optimizer(config: OptimizerConfig, weights: Mapping[str, tf.Variable]) -> Optimizer:
    """The optimizer that the config names."""
    if config.name == "adam":
        return Adam(weights, config.beta1, config.beta2, config.epsilon)
    return SGD(weights)
