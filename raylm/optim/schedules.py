"""Learning-rate schedules: pure functions of the number of updates applied, or of the epoch."""

from __future__ import annotations

import math

from raylm.config import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, step: int, epoch: int, total_steps: int) -> float:
    """The learning rate of the update that follows `step` updates, in `epoch` (0-based), of `total_steps`.

    A linear warm-up reaches the highest rate at update `warmup_steps`; what follows is `schedule.kind`.
    """
    peak = schedule.learning_rate
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    since = step - schedule.warmup_steps
    match schedule.kind:
        case "constant":
            return peak
        case "held":
            return peak * held(epoch, schedule.held_epochs, schedule.divisor)
        case "inverse_sqrt":
            return peak * inverse_sqrt(step, schedule.warmup_steps)
        case "exponential":
            return peak * exponential(since, schedule.decay_steps, schedule.decay_rate)
        case "staircase":
            return peak * staircase(since, schedule.decay_steps, schedule.decay_rate)
        case "cosine":
            return peak * cosine(since, total_steps - schedule.warmup_steps, schedule.final_fraction)
        case "linear":
            return peak * linear(since, total_steps - schedule.warmup_steps, schedule.final_fraction)


def held(epoch: int, held_epochs: int, divisor: float) -> float:
    """1 for `held_epochs` epochs; each later epoch divides once more (Zaremba et al. 2014, section 4.1)."""
    return float(divisor ** -max(0, epoch + 1 - held_epochs))


def inverse_sqrt(step: int, warmup_steps: int) -> float:
    """√(w / (step + 1)) with w = max(warmup_steps, 1), at most 1 (Vaswani et al. 2017, equation 3, scaled to 1)."""
    return min(1.0, math.sqrt(max(warmup_steps, 1) / (step + 1)))


def exponential(step: int, decay_steps: int, decay_rate: float) -> float:
    """decay_rate ^ (step / decay_steps)."""
    return float(decay_rate ** (step / decay_steps))


def staircase(step: int, decay_steps: int, decay_rate: float) -> float:
    """decay_rate ^ ⌊step / decay_steps⌋."""
    return float(decay_rate ** (step // decay_steps))


def cosine(step: int, decay_steps: int, final_fraction: float) -> float:
    """Half a cosine from 1 at step 0 to `final_fraction` at `decay_steps` and after (Loshchilov and Hutter 2017)."""
    share = min(step / max(decay_steps, 1), 1.0)
    return final_fraction + (1 - final_fraction) * (1 + math.cos(math.pi * share)) / 2


def linear(step: int, decay_steps: int, final_fraction: float) -> float:
    """A straight line from 1 at step 0 to `final_fraction` at `decay_steps` and after."""
    return 1 - (1 - final_fraction) * min(step / max(decay_steps, 1), 1.0)
