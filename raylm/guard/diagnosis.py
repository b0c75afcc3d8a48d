"""From what the probes of an incident found to its verdict: a pure function, and bisection over lanes.

DATA          the window itself is bad: an id that is none, no target, or a lane of it fails with fresh weights too
OPTIMISATION  the weights exploded: clipped, or at a tenth of the learning rate, the same step is sound
INTERACTION   only this window with these weights
TRANSIENT     computed again, it was sound
DEVICE        computed in one process on another device, it is sound
UNKNOWN       none of these could be shown
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Name = Literal["OPEN", "DATA", "OPTIMISATION", "INTERACTION", "TRANSIENT", "DEVICE", "UNKNOWN"]


@dataclass(frozen=True)
class Findings:
    """What the probes of a step found; None for a probe that was not made.

    problems: what validation says against the batch. reproduced: the step fails in one process too. lane: the one
    without which it is sound. lane_text: what it reads and where that lies. passes: made to find it. first: the first
    non-finite tensor, and where in it. leap: the step before it whose gradient was far too large. The others: whether
    the step is sound with fresh weights, with another window, clipped at `clip`, or with a tenth of the learning rate
    since the snapshot.
    """

    problems: tuple[str, ...] = ()
    reproduced: bool | None = None
    lane: int | None = None
    lane_text: str = ""
    passes: int = 0
    first: str = ""
    leap: str = ""
    fresh_weights_sound: bool | None = None
    other_window_sound: bool | None = None
    clip: float | None = None
    clipped_sound: bool | None = None
    slower_sound: bool | None = None


@dataclass(frozen=True)
class Verdict:
    """The answer to a person: the verdict, why in one line, the probe that made the fault vanish, what to do.

    patch: lines of TOML that `--config` reads, empty where nothing is to be changed.
    """

    name: Name
    why: str
    vanished: str = ""
    advice: str = ""
    patch: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The short answer."""
        parts = [f"{self.name}: {self.why}"]
        parts += [f"sound {self.vanished}"] if self.vanished else []
        parts += [self.advice] if self.advice else []
        return "; ".join(parts)


OPEN = Verdict("OPEN", "not computed again yet")

TRANSIENT = Verdict(
    "TRANSIENT",
    "computed again from the snapshot, the step is sound: a fault of memory, device or network",
    "the second time",
    "nothing was left out; where it comes again on one machine, have that machine's memory tested",
)


def conclude(findings: Findings, position: int, learning_rate: float) -> Verdict:
    """The verdict on a step that failed twice. `position`: its window."""
    without = ("[guard]", f'leave_out = ["{position}:{position + 1}"]')
    if findings.problems:
        more = f" (and {len(findings.problems) - 1} more)" if len(findings.problems) > 1 else ""
        where = f"; the lane reads {findings.lane_text}" if findings.lane_text else ""
        return Verdict(
            "DATA",
            f"{findings.problems[0]}{more}{where}",
            "without the window",
            "the window is left out; prepare the data again, and `raylm data verify` it",
            without,
        )
    if findings.reproduced is False:
        return Verdict(
            "DEVICE",
            "failed twice where it ran, and is sound with the same numbers in one process",
            "on another device",
            "the window is left out; run `raylm replay` on the machine that failed, and test its memory",
        )
    lane = f"lane {findings.lane} is to blame" if findings.lane is not None else ""
    lane += f", which reads {findings.lane_text}" if lane and findings.lane_text else ""
    first = f"the first non-finite tensor is {findings.first}" if findings.first else "no tensor is non-finite"
    if findings.lane is not None and findings.fresh_weights_sound is False:
        return Verdict(
            "DATA",
            f"{lane}, with fresh weights too; {first}",
            "without that lane",
            "the window is left out; look at that text",
            without,
        )
    exploded = f"the weights exploded; {findings.leap or first}"
    if findings.clipped_sound:
        return Verdict(
            "OPTIMISATION",
            exploded,
            f"with the gradient clipped at {findings.clip:g} since the snapshot",
            "clip as suggested.toml says",
            ("[optimizer]", f"clip_norm = {findings.clip:g}"),
        )
    if findings.slower_sound:
        return Verdict(
            "OPTIMISATION",
            exploded,
            "at a tenth of the learning rate since the snapshot",
            "lower the learning rate as suggested.toml says",
            ("[schedule]", f"learning_rate = {learning_rate / 10:g}"),
        )
    if findings.fresh_weights_sound and findings.other_window_sound:
        which = lane or "no single lane is to blame"
        return Verdict(
            "INTERACTION",
            f"only this window with these weights: {which}; {first}",
            "with fresh weights, and with another window",
            "the window is left out",
            without,
        )
    return Verdict(
        "UNKNOWN",
        f"no probe made the fault vanish; {first}",
        "",
        "the window is left out; `raylm replay` shows every tensor",
        without,
    )


def bisect_lanes(lanes: Sequence[int], fails: Callable[[Sequence[int]], bool]) -> tuple[int | None, int]:
    """The lane without which a step is sound, and the passes it took: at most ⌈log₂ lanes⌉ + 1.

    fails: whether a pass over these lanes alone fails; it is known to over all of them. None where the step fails
    without that lane too, so that several lanes are to blame, or none.
    """
    suspects, passes = lanes, 0
    while len(suspects) > 1:
        half = suspects[: (len(suspects) + 1) // 2]
        passes += 1
        suspects = half if fails(half) else suspects[len(half) :]
    others = [lane for lane in lanes if lane != suspects[0]]
    return (None if others and fails(others) else suspects[0]), passes + bool(others)
