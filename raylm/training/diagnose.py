"""Probes an incident: what made its step fail, and what makes the fault vanish."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median_low
from typing import Any

import numpy as np

from raylm.guard.diagnosis import Findings, Verdict, bisect_lanes, conclude
from raylm.model.types import Tensor
from raylm.optim.rows import dense
from raylm.training.incident import Incident, validate
from raylm.training.probe import Probe, Result

GATES = ("input", "forget", "output", "candidate")
_LEAP = 100.0  # times the usual norm
_SPIKE_SHARE = 0.9  # of a spike's loss that counts as the spike again

Trace = tuple[dict[str, Any], ...]


def diagnose(incident: Incident, out_of_time: Callable[[], bool] = lambda: False) -> tuple[Verdict, Findings, Trace]:
    """The verdict on an incident that failed twice, what was found, and statistics of every tensor of its step.

    out_of_time: asked before each probe; those that are left out are not known.
    """
    findings, trace = _findings(incident, out_of_time)
    return conclude(findings, incident.last.position, incident.config.schedule.learning_rate), findings, trace


def _findings(incident: Incident, out_of_time: Callable[[], bool]) -> tuple[Findings, Trace]:
    problems, place = validate(incident.last, incident.vocabulary)
    if problems:
        lane = None if place is None else place.lane
        return Findings(problems, lane=lane, lane_text=_where(incident, lane), first="the batch"), ()
    probe = Probe(incident)
    results: list[Result] = []
    if not _to_last_step(probe, out_of_time, results.append):
        return Findings(), ()
    trace = trace_step(probe)
    highest = _LEAP * median_low(result.norm for result in results) if results else math.inf
    if _is_sound(probe, highest):
        return Findings(reproduced=False), trace
    known: dict[str, Any] = {"reproduced": True, "first": first_non_finite(trace)}
    if incident.kind == "leap":
        results.append(probe.step(incident.last, update=False))
    known["leap"] = _leap(results)
    if incident.kind in ("non-finite", "leap"):
        lanes = np.flatnonzero(incident.last.weights.any(axis=1)).tolist()
        lane, passes = bisect_lanes(lanes, lambda some: not _is_sound(probe, highest, lanes=some))
        known |= {"lane": lane, "lane_text": _where(incident, lane), "passes": passes}
        if len(incident.steps) > 1:
            known["other_window_sound"] = probe.step(incident.steps[0], update=False).finite
    probe.to_fresh_weights()
    known["fresh_weights_sound"] = _is_sound(probe, highest)
    if known.get("lane") is not None and not known["fresh_weights_sound"]:
        return Findings(**known), trace
    clip = _lower_clip(incident)
    probe.vary(clip_norm=clip)
    clipped = _to_last_step(probe, out_of_time) and _is_sound(probe, highest)
    probe.vary(rate_factor=0.1)
    slower = not clipped and _to_last_step(probe, out_of_time) and _is_sound(probe, highest)
    return Findings(**known, clip=clip, clipped_sound=clipped, slower_sound=slower), trace


def trace_step(probe: Probe) -> Trace:
    """Statistics of every named tensor of the incident's last step, in the order in which they are computed: forward,
    then the gradients of each replica's share, from the softmax back."""
    incident, found = probe.incident, []
    for share in range(incident.shares):
        prefix = f"replica {share}: " if incident.shares > 1 else ""

        seen: dict[str, list[np.ndarray]] = {}

        def look(name: str, tensor: Tensor, seen: dict[str, list[np.ndarray]] = seen) -> Tensor:
            seen.setdefault(name, []).append(tensor.numpy())
            return tensor

        part = probe.share_traced(incident.last, share, look)
        for name, pieces in seen.items():  # logits may come in pieces of some words
            values = np.concatenate(pieces, -1) if len(pieces) > 1 else pieces[0]
            found.append(_statistics(prefix + name, values, name, share * probe.lanes_each, probe.lanes_each))
        for (name, weight), gradient in reversed(list(zip(probe.model.weights.items(), part.gradients, strict=True))):
            values = dense(gradient, weight).numpy()
            found.append(_statistics(f"{prefix}gradient of {name}", values, "", 0, 1))
    return tuple(found)


def first_non_finite(trace: Trace) -> str:
    """Where the first non-finite number is, in words; empty where there is none."""
    return next((str(each["first"]) for each in trace if each["first"]), "")


def _statistics(title: str, values: np.ndarray, name: str, first_lane: int, lanes: int) -> dict[str, Any]:
    finite = np.isfinite(values)
    sound = values[finite]
    statistics: dict[str, Any] = {
        "tensor": title,
        "shape": list(values.shape),
        "non_finite": int(values.size - sound.size),
        "smallest": float(sound.min()) if sound.size else None,
        "largest": float(sound.max()) if sound.size else None,
        "mean_size": float(np.abs(sound).mean(dtype=np.float64)) if sound.size else None,
        "first": "",
    }
    if sound.size < values.size:
        index = np.argwhere(~finite)[0].tolist()
        statistics["first"] = title + _place(name, index, values.shape, first_lane, lanes)
    return statistics


def _place(name: str, index: list[int], shape: tuple[int, ...], first_lane: int, lanes: int) -> str:
    if name.endswith("/gates"):
        time, lane, unit = index
        gate = GATES[unit // (shape[-1] // len(GATES))]
        return f": the {gate} gate at time {time}, lane {first_lane + lane}"
    if name in ("logits", "candidate logits"):  # rows stand time step by time step
        column = "word" if name == "logits" else "candidate"
        return f" at time {index[0] // lanes}, lane {first_lane + index[0] % lanes}, {column} {index[1]}"
    if len(index) == 3:
        return f" at time {index[0]}, lane {first_lane + index[1]}"
    return f" at {index}" if index else ""


def _to_last_step(
    probe: Probe, out_of_time: Callable[[], bool], tell: Callable[[Result], None] = lambda result: None
) -> bool:
    """Computes all steps but the last; False where there was no time, or one of them failed."""
    probe.to_snapshot()
    for recorded in probe.incident.steps[:-1]:
        if out_of_time():
            return False
        result = probe.step(recorded)
        tell(result)
        if not result.finite:
            return False
    return True


def _leap(results: Sequence[Result]) -> str:
    """The first step whose gradient was far larger than the others', in words; empty where there is none."""
    if not results:
        return ""
    usual = median_low(result.norm for result in results)
    leapt = next((result for result in results if result.norm > _LEAP * usual), None)
    if leapt is None:
        return ""
    return (
        f"the gradient's norm leapt from {usual:.2g} to {leapt.norm:.2g} at step {leapt.step}, window {leapt.position}"
    )


def _is_sound(probe: Probe, highest: float, lanes: Sequence[int] | None = None) -> bool:
    """Whether the last step is sound from where the probe stands; it is made only where the state is in question.

    highest: the largest norm with which a gradient that leapt may reach the optimizer, clipped or not.
    """
    incident = probe.incident
    result = probe.step(incident.last, lanes=lanes, update=incident.kind == "state")
    if incident.kind == "spike":
        return result.loss < _SPIKE_SHARE * incident.loss
    if incident.kind == "leap":
        return result.finite and min(result.norm, probe.clip_norm or math.inf) <= highest
    return result.finite and (incident.kind != "state" or probe.state_is_finite)


def _lower_clip(incident: Incident) -> float:
    """What to clip at: the literature's value where there is no clip, else a tenth of it."""
    optimizer = incident.config.optimizer
    if optimizer.clip_norm is not None:
        return optimizer.clip_norm / 10
    return 5.0 if optimizer.loss_scale == "sequence_sum" else 0.25


def _where(incident: Incident, lane: int | None) -> str:
    return incident.where[lane] if lane is not None and lane < len(incident.where) else ""
