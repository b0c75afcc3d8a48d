"""What a run adds up between its events: the loss of an epoch, and the pace since the last step event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from raylm.guard.judge import Outcome
from raylm.training.datasets import Source


class EpochLoss(NamedTuple):
    """Summed loss in nats over the tokens that an epoch was trained on so far."""

    epoch: int
    loss_sum: float
    tokens: int

    def plus(self, loss_sum: float, tokens: int) -> EpochLoss:
        return EpochLoss(self.epoch, self.loss_sum + loss_sum, self.tokens + tokens)


@dataclass
class Interval:
    """The updates since a step event. began, in seconds of `clock`; waited: seconds that the run had waited for data
    until then; apart: seconds since that were no training; clipped: of each gradient that was used, whether it was
    longer than the clip."""

    clock: Callable[[], float]
    began: float
    waited: float
    apart: float = 0.0
    tokens: int = 0
    steps: int = 0
    clipped: list[bool] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """One more update, applied or left out."""
        self.tokens += outcome.tokens
        self.steps += 1
        if not outcome.overflowed:
            self.clipped.append(outcome.clipped)

    def pause(self, seconds: float) -> None:
        """So many seconds were no training."""
        self.began += seconds
        self.apart += seconds

    @property
    def seconds(self) -> float:
        """Of training, so far."""
        return max(self.clock() - self.began, 1e-9)

    @property
    def share_clipped(self) -> float | None:
        """Of the gradients; None where there is none."""
        return sum(self.clipped) / len(self.clipped) if self.clipped else None


def tokens_of(source: Source, windows: int) -> int:
    """About: so many windows' share of the first epoch."""
    return max(0, windows) * source.targets_per_epoch // source.windows_per_epoch(0)
