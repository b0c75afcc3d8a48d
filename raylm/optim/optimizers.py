"""Updates: stochastic gradient descent, Adam and Adagrad, over plain variables, and the mean of the weights after them.

An optimizer owns its slots as variables created before the first step, in the weights' order on every rank. `apply`
takes gradients that are already summed over all replicas, each row once: it scales them and moves the weights, in
one pass over a weight's memory and without a copy of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import tensorflow as tf

from raylm.config import OptimizerConfig
from raylm.model.types import Tensor
from raylm.optim.averaging import COUNT, PREFIX, of_layer
from raylm.optim.rows import Gradient, RowGradient, dense


class Optimizer(Protocol):
    """Anything with named slots and an update."""

    slots: Mapping[str, tf.Variable]

    def apply(self, gradients: Sequence[Gradient], factors: Sequence[Tensor], learning_rate: Tensor) -> None:
        """Moves each weight by one step along its factor · its gradient (both in the weights' order)."""


class SGD:
    """w ← w − lr · (g + decay · w). No slots."""

    def __init__(self, weights: Mapping[str, tf.Variable], weight_decay: float = 0.0) -> None:
        self.weights, self.weight_decay = weights, weight_decay
        self.slots: Mapping[str, tf.Variable] = {}

    def apply(self, gradients: Sequence[Gradient], factors: Sequence[Tensor], learning_rate: Tensor) -> None:
        _decay(self.weights, self.weight_decay, learning_rate)
        for weight, gradient, factor in zip(self.weights.values(), gradients, factors, strict=True):
            scale = factor * learning_rate
            if isinstance(gradient, RowGradient):
                tf.raw_ops.ResourceScatterSub(
                    resource=weight.handle, indices=gradient.ids, updates=scale * gradient.rows
                )
            else:
                tf.raw_ops.ResourceApplyGradientDescent(var=weight.handle, alpha=scale, delta=gradient)


class Adam:
    """Adam with bias correction (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1).

    Every row's moments decay at every step, whether it was read or not. TensorFlow's update is the paper's faster form,
    whose epsilon is not divided by the bias correction as algorithm 1's is: so it is multiplied by it. Weights decay
    apart from the moments (Loshchilov and Hutter 2019, arXiv:1711.05101).
    """

    def __init__(
        self, weights: Mapping[str, tf.Variable], beta1: float, beta2: float, epsilon: float, weight_decay: float = 0.0
    ) -> None:
        self.weights, self.weight_decay = weights, weight_decay
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.slots: Mapping[str, tf.Variable] = {
            f"{name}/{moment}": tf.Variable(tf.zeros_like(weight), trainable=False)
            for name, weight in weights.items()
            for moment in ("first", "second")
        } | {"updates": tf.Variable(0.0, trainable=False)}

    def apply(self, gradients: Sequence[Gradient], factors: Sequence[Tensor], learning_rate: Tensor) -> None:
        _decay(self.weights, self.weight_decay, learning_rate)
        updates = self.slots["updates"]
        updates.assign_add(1.0)
        count = updates.read_value()
        beta1_power, beta2_power = self.beta1**count, self.beta2**count
        for (name, weight), gradient, factor in zip(self.weights.items(), gradients, factors, strict=True):
            tf.raw_ops.ResourceApplyAdam(
                var=weight.handle,
                m=self.slots[f"{name}/first"].handle,
                v=self.slots[f"{name}/second"].handle,
                beta1_power=beta1_power,
                beta2_power=beta2_power,
                lr=learning_rate,
                beta1=self.beta1,
                beta2=self.beta2,
                epsilon=self.epsilon * tf.sqrt(1 - beta2_power),
                grad=factor * dense(gradient, weight),
            )


class Adagrad:
    """w ← w − lr · g / √(sum of g² so far) (Duchi, Hazan and Singer 2011). A row that is not read stays as it is."""

    def __init__(self, weights: Mapping[str, tf.Variable], accumulator: float, weight_decay: float = 0.0) -> None:
        self.weights, self.weight_decay = weights, weight_decay
        self.slots: Mapping[str, tf.Variable] = {
            f"{name}/squares": tf.Variable(tf.fill(weight.shape, accumulator), trainable=False)
            for name, weight in weights.items()
        }

    def apply(self, gradients: Sequence[Gradient], factors: Sequence[Tensor], learning_rate: Tensor) -> None:
        _decay(self.weights, self.weight_decay, learning_rate)
        for (name, weight), gradient, factor in zip(self.weights.items(), gradients, factors, strict=True):
            variables = {"var": weight.handle, "accum": self.slots[f"{name}/squares"].handle, "lr": learning_rate}
            if isinstance(gradient, RowGradient):
                tf.raw_ops.ResourceSparseApplyAdagrad(
                    **variables, grad=factor * gradient.rows, indices=gradient.ids, update_slots=True
                )
            else:
                tf.raw_ops.ResourceApplyAdagrad(**variables, grad=factor * gradient)


class Averaged:
    """Another optimizer's updates, and the mean of the weights after those that `average` follows
    (`raylm.optim.averaging`). least: the smallest share that the newest weights have in it."""

    def __init__(self, optimizer: Optimizer, weights: Mapping[str, tf.Variable], least: float = 0.0) -> None:
        self.weights, self.least = weights, least
        self.apply = optimizer.apply
        self.means = {name: tf.Variable(tf.zeros_like(weight), trainable=False) for name, weight in weights.items()}
        self.count = tf.Variable(0.0, trainable=False)
        means = {PREFIX + name: mean for name, mean in self.means.items()}
        self.slots: Mapping[str, tf.Variable] = {**optimizer.slots, **means, COUNT: self.count}

    def average(self) -> None:
        """Takes the weights as they are into their mean."""
        self.count.assign_add(1.0)
        share = tf.maximum(1 / self.count.read_value(), self.least)
        for name, weight in self.weights.items():
            self.means[name].assign_add(share * (weight - self.means[name]))


def _decay(weights: Mapping[str, tf.Variable], decay: float, learning_rate: Tensor) -> None:
    if decay:
        for weight in weights.values():
            tf.raw_ops.ResourceApplyGradientDescent(var=weight.handle, alpha=decay * learning_rate, delta=weight)


def make_optimizer(config: OptimizerConfig, weights: Mapping[str, tf.Variable]) -> Optimizer:
    """The optimizer that the config names."""
    optimizer: Optimizer = SGD(weights, config.weight_decay)
    if config.name == "adam":
        optimizer = Adam(weights, config.beta1, config.beta2, config.epsilon, config.weight_decay)
    elif config.name == "adagrad":
        optimizer = Adagrad(weights, config.accumulator, config.weight_decay)
    if config.averaging == "exponential":
        layers = {name: weight for name, weight in weights.items() if of_layer(name)}
        return Averaged(optimizer, layers, 1 - config.averaging_decay)
    return optimizer if config.averaging == "off" else Averaged(optimizer, weights)
