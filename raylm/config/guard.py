"""What happens when a step goes wrong."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

from raylm.config.section import Section


def _is_range(text: str) -> str:
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise ValueError("expected FIRST:LAST, whole numbers with FIRST below LAST, as in 120:121")
    return text


def _is_slow_down(text: str) -> str:
    place, _, factor = text.partition(":")
    if not (place.isdecimal() and re.fullmatch(r"0?\.\d+", factor) and float(factor) > 0):
        raise ValueError("expected POSITION:FACTOR, a whole number and a factor between 0 and 1, as in 100:0.5")
    return text


class GuardConfig(Section):
    snapshot_every: PositiveInt = 50
    """Updates between snapshots of the whole state in host memory: the most that a rollback computes again, twice and
    four times as many where faults go on."""
    ring: PositiveInt = 4
    """Snapshots kept in host memory on every worker, each as large as weights, optimizer slots and carry."""
    max_rollbacks: NonNegativeInt = 32
    """Rollbacks in the whole run, through resumes too, before it ends with its verdict."""
    max_rollbacks_per_incident: NonNegativeInt = 8
    """Rollbacks for one incident, before the run ends with its verdict."""
    backoff: float = Field(0.5, gt=0.0, le=1.0)
    """Where faults go on after windows were left out, the learning rate is multiplied by this; 1 leaves it."""
    recovery: PositiveInt = 500
    """Windows over which a slowed learning rate comes back, geometrically."""
    spike_warmup: NonNegativeInt = 100
    """Updates before which no loss counts as a spike."""
    spike_margin: PositiveFloat = 1.0
    """A loss this far above ln V, in nats, is a spike: the model is worse than guessing."""
    spike_deviations: PositiveFloat = 10.0
    """A loss this many robust deviations above the median of the last sound ones is a spike."""
    leap_factor: PositiveFloat = 1000.0
    """Where the gradient is not clipped, a norm this many times the median of the last sound ones is a fault."""
    probe_seconds: PositiveFloat = 60.0
    """Time to find out why a step fails that failed twice; `raylm replay` goes on later without a limit."""
    keep_incidents: PositiveInt = 50
    """Incidents whose folders are kept, those written last; each holds the whole state."""
    step_timeout: PositiveFloat = 600.0
    """Seconds without progress after which a worker ends itself, and all start anew from the newest checkpoint."""
    leave_out: tuple[Annotated[str, AfterValidator(_is_range)], ...] = ()
    """Windows to leave out from the start, FIRST:LAST each, LAST not included: what a rollback did to another run."""
    slow_down: tuple[Annotated[str, AfterValidator(_is_slow_down)], ...] = ()
    """Slow-downs from the start, POSITION:FACTOR each: what a rollback did to another run."""
