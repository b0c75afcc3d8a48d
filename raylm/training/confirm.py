"""Whether what a diagnosis says mends a training: some updates on a copy of its state, as it was and changed.

Three trials from the same state: as configured, as the finding would have it, and on other windows. Where the second
is better, the finding is confirmed; where the third is as well, the windows were to blame.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raylm.checkpoint.snapshot import Snapshot
from raylm.config import RunConfig
from raylm.data.dataset import Dataset
from raylm.observe.figures import compact, nats
from raylm.training.trial import Trial, Update

MOST_UPDATES = 60
_FEWEST = 6
_BETTER = 0.1  # nats: the mean over twenty windows of 400 tokens scatters by less


@dataclass(frozen=True)
class Confirmation:
    """confirmed: None where the experiment could not tell. line: what was done and what came of it."""

    confirmed: bool | None
    line: str


def confirm(
    config: RunConfig, train: Dataset, snapshot: Snapshot | None, patch: Mapping[str, Any], seconds: float
) -> Confirmation:
    """Tries a finding's patch (dotted keys) on a copy, for about so many seconds in all.

    Raises:
        UserError: the snapshot does not fit the configuration or the data.
    """
    began = time.monotonic()
    until = began + seconds
    trial = Trial(config, train, snapshot)
    plain = _losses(trial.updates(), MOST_UPDATES, until, 1 / 4)
    other = _losses(trial.updates(later=trial.windows_per_epoch // 2), len(plain), until, 1 / 3)
    after = patched(config, patch)
    if all(key.startswith("schedule.") for key in patch):
        trial.schedule = after.schedule  # which needs no other graph
    elif time.monotonic() < until:
        trial = Trial(after, train, snapshot)
    changed = _losses(trial.updates(), len(plain), until, 1.0)
    place = "fresh weights" if snapshot is None else f"the checkpoint at step {snapshot.step:,}"
    told = " · ".join(
        f"{nats(_end(losses))} {what}"
        for what, losses in (("as it was", plain), (f"with {_words(patch)}", changed), ("on other windows", other))
        if len(losses) >= _FEWEST
    )
    verdict, confirmed = _judged(plain, changed, other)
    took = f"{time.monotonic() - began:.0f} s, of {seconds:g}"
    line = f"{verdict} {len(changed)} updates on a copy, from {place}, gave a loss of {told} ({took})."
    return Confirmation(confirmed, line)


def patched(config: RunConfig, patch: Mapping[str, Any]) -> RunConfig:
    """A configuration with the values of dotted keys changed."""
    tree = config.model_dump(mode="json")
    for key, value in patch.items():
        *sections, name = key.split(".")
        branch = tree
        for section in sections:
            branch = branch[section]
        branch[name] = value
    return RunConfig.model_validate(tree)


def _losses(updates: Iterator[Update], most: int, until: float, share: float) -> Sequence[float]:
    """Of as many updates as a share of the time allows that is left after the first, which compiles."""
    losses: list[float] = []
    stop = until
    while len(losses) < most and time.monotonic() < stop:
        losses.append(next(updates).loss)
        if len(losses) == 1:
            stop = time.monotonic() + share * (until - time.monotonic())
    return losses


def _judged(plain: Sequence[float], changed: Sequence[float], other: Sequence[float]) -> tuple[str, bool | None]:
    if len(changed) < _FEWEST:
        return "Not confirmed: the time was too short; give --confirm more.", None
    plain, other = plain[: len(changed)], other[: len(changed)]
    if _end(plain) - _end(changed) < _BETTER:
        return "Not confirmed: the change makes no difference so soon.", False
    if len(other) >= _FEWEST and _end(plain) - _end(other) > 0.5 * (_end(plain) - _end(changed)):
        return "Confirmed, but other windows help as much: look at the data too.", True
    return "Confirmed.", True


def _end(losses: Sequence[float]) -> float:
    """The mean of the last third; infinite where a loss there is no number."""
    last = losses[-max(2, len(losses) // 3) :]
    return statistics.fmean(last) if all(map(math.isfinite, last)) else math.inf


def _words(patch: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {compact(value)}" for key, value in patch.items())
