"""The guard's decision after each step: a pure function of the outcome, the ledger and the policy.

What it decides depends on outcomes and positions alone, never on when they were read or by which rank: every rank
reads the same all-reduced outcome, so every rank decides alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from raylm.config import GuardConfig
from raylm.errors import UserError


@dataclass(frozen=True)
class Outcome:
    """What one step yielded, the same on every rank.

    step: updates applied before it. position: its window. loss: nats a token. norm: global gradient norm before the
    clip. applied: whether the update was made (the gate was open).
    """

    step: int
    position: int
    epoch: int
    loss: float
    tokens: int
    norm: float
    applied: bool
    learning_rate: float


@dataclass(frozen=True)
class Ledger:
    """What the guard remembers. It is part of every checkpoint, so a kill does not reset the budget.

    learning_rate_factor: product of all back-offs so far.
    """

    rollbacks: int = 0
    learning_rate_factor: float = 1.0

    def to_json(self) -> dict[str, Any]:
        return {"rollbacks": self.rollbacks, "learning_rate_factor": self.learning_rate_factor}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Ledger:
        """Raises: UserError: the fields are not a ledger's."""
        try:
            return cls(int(fields["rollbacks"]), float(fields["learning_rate_factor"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the guard's ledger in the checkpoint is malformed ({error!r}): use another one") from None


@dataclass(frozen=True)
class Proceed:
    """The step was sound."""


@dataclass(frozen=True)
class RollBack:
    """Go back to the last checkpoint and leave the window at `position` out; `reason` is one line for a person."""

    position: int
    reason: str
    ledger: Ledger


@dataclass(frozen=True)
class Abort:
    """The budget is spent; `reason` is the run's verdict."""

    reason: str


def judge(outcome: Outcome, ledger: Ledger, policy: GuardConfig) -> Proceed | RollBack | Abort:
    """What to do after a step."""
    if outcome.applied:
        return Proceed()
    what = "loss" if not math.isfinite(outcome.loss) else "gradient norm"
    value = outcome.loss if what == "loss" else outcome.norm
    reason = f"the {what} is {value} on window {outcome.position}, in epoch {outcome.epoch}"
    if ledger.rollbacks >= policy.max_rollbacks:
        return Abort(
            f"step {outcome.step}: {reason}; the budget of {policy.max_rollbacks} rollbacks (guard.max_rollbacks) is "
            "spent: lower "
            "schedule.learning_rate or optimizer.clip_norm, and look at the windows that events.jsonl names"
        )
    after = replace(
        ledger,
        rollbacks=ledger.rollbacks + 1,
        learning_rate_factor=ledger.learning_rate_factor * policy.backoff,
    )
    return RollBack(outcome.position, reason, after)
