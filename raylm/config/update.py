"""The update, and its learning rate over time."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from raylm.config.section import Section


class OptimizerConfig(Section):
    name: Literal["sgd", "adam", "adagrad"] = "sgd"
    """The update."""
    clip_norm: PositiveFloat | None = 5.0
    """Largest global norm of the gradient, after the all-reduce; none to leave it as it is."""
    clip_of: Literal["all", "layers"] = "all"
    """What is clipped, and by whose norm: all weights, or those of the LSTM layers alone."""
    loss_scale: Literal["token_mean", "sequence_sum"] = "sequence_sum"
    """What the gradient is of: the mean over tokens, or the sum over time averaged over lanes (T times as large, so
    learning rate and clip mean something else)."""
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    """Adam's decay of the first moment."""
    beta2: float = Field(0.999, ge=0.0, lt=1.0)
    """Adam's decay of the second moment."""
    epsilon: PositiveFloat = 1e-8
    """Adam's smallest denominator."""
    accumulator: PositiveFloat = 1.0
    """Where Adagrad's sums of squares begin."""
    weight_decay: NonNegativeFloat = 0.0
    """An update first takes this share, times the learning rate, of every weight from it."""
    averaging: Literal["off", "triggered", "always", "exponential"] = "off"
    """Evaluate and use the mean of the weights after each update. always: from the first. triggered: from the end of
    the first epoch whose validation loss is above the lowest of all but the last `patience` before it (NT-ASGD).
    exponential: of the LSTM layers' weights alone, the older the less."""
    averaging_decay: float = Field(0.999, gt=0.0, lt=1.0)
    """exponential: what an update leaves of the mean before it."""
    patience: PositiveInt = 5
    """Epochs that the validation loss may go without falling, before averaging or `stop_early`."""


class ScheduleConfig(Section):
    kind: Literal["constant", "held", "cosine", "inverse_sqrt", "linear", "exponential", "staircase"] = "held"
    """How the learning rate goes on after the warm-up. held: constant for some epochs, then divided every epoch."""
    learning_rate: PositiveFloat = 1.0
    """The highest learning rate."""
    warmup_steps: NonNegativeInt = 0
    """Updates over which the learning rate rises linearly to its highest."""
    held_epochs: PositiveInt = 4
    """held: epochs at the highest learning rate."""
    divisor: float = Field(2.0, ge=1.0)
    """held: each later epoch divides the learning rate by this."""
    decay_steps: PositiveInt = 5_000
    """exponential, staircase: updates in which the learning rate is multiplied by decay_rate."""
    decay_rate: float = Field(0.1, gt=0.0, le=1.0)
    """exponential, staircase: the factor."""
    final_fraction: float = Field(0.0, ge=0.0, le=1.0)
    """cosine, linear: where the decay ends, right after the last update, as a share of the highest learning rate."""
