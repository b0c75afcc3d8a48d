"""Which checkpoints go, decided from their steps and what the model scored there."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

FEWEST = 2
"""Checkpoints always kept: where the newest is damaged, there is one before."""


@dataclass(frozen=True)
class Retention:
    """What is kept: the `last` newest, never fewer than two; those whose step is a multiple of `every`; the `best` with
    the lowest validation loss."""

    last: int
    every: int | None = None
    best: int = 0


def superfluous(steps: Iterable[int], validation: Mapping[int, float], keep: Retention) -> set[int]:
    """The steps whose checkpoints may go, of those that have a complete one.

    validation: nats a token by step; steps that it lacks, and losses that are not finite, are never the best. Of equal
    losses the later step is the better one.
    """
    ordered = sorted(set(steps))
    kept = set(ordered[-max(keep.last, FEWEST) :])
    if keep.every:
        kept |= {step for step in ordered if step % keep.every == 0}
    judged = [step for step in ordered if math.isfinite(validation.get(step, math.nan))]
    kept |= set(sorted(judged, key=lambda step: (validation[step], -step))[: keep.best])
    return set(ordered) - kept
