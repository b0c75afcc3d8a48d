"""The guard's decision after each step: a pure function of the outcome, the ledger, the memory and the policy.

What it decides depends on outcomes and positions alone, never on when they were read or by which rank: every rank
reads the same all-reduced outcome, so every rank decides alike.

A fault is computed again once from the last snapshot, nothing left out: finite now, it was transient. Else its
window is left out. Where faults go on nearby, the guard goes back twice as far each time (1, 2, 4 … snapshots),
leaves out twice as many windows and slows the learning rate down. Where spikes go on, an update before them spoiled
the weights: then every window since the snapshot is left out, as Chowdhery et al. (2022, arXiv:2204.02311, section 5.1)
do. Past its budget it ends the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from raylm.config import GuardConfig
from raylm.guard.ledger import Ledger
from raylm.guard.memory import Incident, Memory

_SOUND_STEPS = 64
_FEWEST_STEPS = 16
_TOKEN_DEVIATION = 3.0  # nats: how much one token's loss scatters in natural text, so a mean over n by 3 / √n
_SMALLEST_SPIKE = 1.0  # nats
_SMALLEST_LEAP = 10.0  # a norm above the largest at which the literature clips


@dataclass(frozen=True)
class Outcome:
    """What one step yielded, the same on every rank.

    step: updates applied before it. position: its window. loss: nats a token. norm: global gradient norm before the
    clip. applied: whether the update was made (the gate was open). not_finite: the first weight, slot or carry that
    held a non-finite number after it, empty where none did or nobody looked. overflowed: the update
    was left out since float16's loss scale was too high, and it was lowered: no fault. clipped: whether the gradient
    was longer than the clip. signals: of the training's health, for the record alone; each rank has its own.
    """

    step: int
    position: int
    epoch: int
    loss: float
    tokens: int
    norm: float
    applied: bool
    learning_rate: float
    not_finite: str = ""
    overflowed: bool = False
    clipped: bool = False
    signals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Proceed:
    """The step was sound. `transient` is the incident whose place was computed again with it, and was sound."""

    memory: Memory
    transient: Incident | None = None


@dataclass(frozen=True)
class RollBack:
    """Go back to the snapshot at position `to` and on with this ledger and memory.

    left_out: the windows now left out, None for a replay. reason: one line for a person.
    """

    to: int
    left_out: tuple[int, int] | None
    ledger: Ledger
    memory: Memory
    reason: str


@dataclass(frozen=True)
class Abort:
    """The budget is spent; `reason` is the run's verdict."""

    reason: str


Decision = Proceed | RollBack | Abort


def judge(
    outcome: Outcome,
    ledger: Ledger,
    memory: Memory,
    policy: GuardConfig,
    snapshots: Sequence[int],
    uniform_nats: float = math.inf,
    clipped: bool = True,
) -> Decision:
    """What to do after a step.

    snapshots: positions that one can go back to, oldest first, none after the outcome's. uniform_nats: ln V.
    clipped: whether a large gradient is made small before the update, so that its norm is no fault.
    """
    found = _fault(outcome, memory, policy, uniform_nats, clipped)
    if found is None:
        return _proceed(outcome, memory)
    kind, reason = found
    incident = memory.incident
    if memory.rollbacks >= policy.max_rollbacks:
        return Abort(_spent(outcome, reason, f"{policy.max_rollbacks} rollbacks in a run (guard.max_rollbacks)"))
    if incident is not None and incident.rollbacks >= policy.max_rollbacks_per_incident:
        budget = f"{policy.max_rollbacks_per_incident} rollbacks for one incident (guard.max_rollbacks_per_incident)"
        return Abort(_spent(outcome, reason, budget))
    again = incident is not None and incident.replaying and outcome.position <= incident.position
    level = (incident.level if incident else 0) + (1 if again else 0)
    rollbacks = (incident.rollbacks if incident else 0) + 1
    left_out = None
    to = snapshots[-1]
    if again:
        width = 2 ** (level - 1)
        to = snapshots[-min(width, len(snapshots))]
        first = to if kind == "spike" and level > 1 else outcome.position
        left_out = (first, outcome.position + width)
        ledger = ledger.leave_out(*left_out)
        if level > 1 and policy.backoff < 1:
            ledger = ledger.slow_down(to, policy.backoff)
    over_at = outcome.position if left_out is None else left_out[1] + policy.snapshot_every
    if incident is not None:
        over_at = max(over_at, incident.over_at)
    opened = Incident(kind, outcome.step, outcome.position, rollbacks, level, not again, over_at)
    return RollBack(to, left_out, ledger, replace(memory, rollbacks=memory.rollbacks + 1, incident=opened), reason)


def _proceed(outcome: Outcome, memory: Memory) -> Proceed:
    if not outcome.overflowed:
        losses, norms = (*memory.losses, outcome.loss), (*memory.norms, outcome.norm)
        memory = replace(memory, losses=losses[-_SOUND_STEPS:], norms=norms[-_SOUND_STEPS:])
    incident = memory.incident
    if incident is None or outcome.position < incident.position:
        return Proceed(memory)
    transient = incident if incident.replaying else None
    # Where windows were left out nearby, the incident stays open.
    after = None if outcome.position >= incident.over_at else replace(incident, replaying=False)
    return Proceed(replace(memory, incident=after), transient)


def _fault(
    outcome: Outcome, memory: Memory, policy: GuardConfig, uniform_nats: float, clipped: bool
) -> tuple[str, str] | None:
    """What is wrong with a step, as (kind, one line), or None."""
    where = f"on window {outcome.position}, in epoch {outcome.epoch}"
    if outcome.overflowed:
        return None
    if not outcome.applied:
        what, value = ("loss", outcome.loss) if not math.isfinite(outcome.loss) else ("gradient norm", outcome.norm)
        return "non-finite", f"the {what} is {value} {where}"
    if outcome.not_finite:
        return "state", f"{outcome.not_finite} is not finite after window {outcome.position}"
    if not clipped and outcome.step >= policy.spike_warmup and len(memory.norms) >= _FEWEST_STEPS:
        usual = median(memory.norms)
        if outcome.norm > max(policy.leap_factor * usual, _SMALLEST_LEAP):
            last = f"the median of the last {len(memory.norms)} is {usual:.3g}"
            return "leap", f"the gradient's norm is {outcome.norm:.3g} {where}: {last}, and nothing clips it"
    limit, why = _highest_sound_loss(outcome, memory, policy, uniform_nats)
    if outcome.loss > limit:
        return "spike", f"the loss is {outcome.loss:.2f} nats {where}: {why}"
    return None


def _highest_sound_loss(
    outcome: Outcome, memory: Memory, policy: GuardConfig, uniform_nats: float
) -> tuple[float, str]:
    """The loss above which a step is a spike, and why.

    After the warm-up no sound model is worse than guessing; and no loss lies further above the median of the last
    ones than `spike_deviations` of what they scatter (1.4826 × the median absolute deviation, or the scatter that so
    few tokens must show).
    """
    if outcome.step < policy.spike_warmup:
        return math.inf, ""
    limit = uniform_nats + policy.spike_margin
    why = f"worse than guessing ({uniform_nats:.2f}) by more than {policy.spike_margin:g}"
    if len(memory.losses) >= _FEWEST_STEPS:
        middle = median(memory.losses)
        scatter = 1.4826 * median(abs(loss - middle) for loss in memory.losses)
        scatter = max(scatter, _TOKEN_DEVIATION / math.sqrt(max(outcome.tokens, 1)))
        relative = middle + max(_SMALLEST_SPIKE, policy.spike_deviations * scatter)
        if relative < limit:
            return relative, f"the median of the last {len(memory.losses)} is {middle:.2f}, their scatter {scatter:.2f}"
    return limit, why


def _spent(outcome: Outcome, reason: str, budget: str) -> str:
    return (
        f"step {outcome.step}: {reason}; the budget of {budget} is spent: lower schedule.learning_rate or "
        "optimizer.clip_norm, and look at the verdicts in the run's incidents folder"
    )
