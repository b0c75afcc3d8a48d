"""Rules that tell a sick training from its updates: learning rate, gradient, pace. As those of `symptoms`."""

from __future__ import annotations

import statistics

from raylm.observe.figures import compact
from raylm.observe.findings import Evidence, Finding
from raylm.observe.rates import judge_rate

SOUND_RATES = {"sgd": 1.0, "adam": 0.001, "adagrad": 0.2}
"""What a patch sets: Zaremba et al. 2014 for SGD on a sum over time, and low enough on a mean; Adam's own default;
Jozefowicz et al. 2016 for Adagrad."""

_RATE = "schedule.learning_rate"


def rate_for_the_optimizer(seen: Evidence) -> Finding | None:
    """A rate far from what the optimizer is used with, on this loss scale; only a note where the loss falls well."""
    verdict = judge_rate(seen.optimizer, seen.peak_rate, seen.terms, seen.clip)
    if verdict.level not in ("too high", "high") or (verdict.level == "high" and seen.falls):
        return None
    untried = verdict.level == "high" and not seen.loss
    patch, advice = slower(seen)
    return Finding(
        "learning rate",
        "note" if untried else "suspect",
        f"The learning rate {compact(seen.peak_rate)} is {verdict.level} for {seen.optimizer}.",
        (verdict.why,),
        advice,
        "raylm/observe/rates.py names the papers",
        None,
        seen.rate,
        patch,
    )


def decayed_too_soon(seen: Evidence) -> Finding | None:
    """More than half of the updates at less than a two-hundredth of the highest rate: a unit was mistaken."""
    if len(seen.rate) < 10:
        return None
    top = max(value for _, value in seen.rate)
    peak = next(step for step, value in seen.rate if value == top)
    slow = [step for step, value in seen.rate if value < top / 200 and step > peak]
    if len(slow) <= len(seen.rate) / 2:
        return None
    return Finding(
        "decayed too soon",
        "suspect",
        f"The learning rate has all but ended by step {slow[0]} of {seen.steps_total or seen.last_step}.",
        (f"below {compact(top / 200)} for {len(slow) / len(seen.rate):.0%} of the run, from {compact(top)} at {peak}",),
        "The decay counts updates, not epochs or tokens: look at schedule.decay_steps and schedule.held_epochs.",
        "no recipe spends a quarter of its updates there",
        slow[0],
        seen.rate,
    )


def gradients_leap(seen: Evidence) -> Finding | None:
    """Without a clip, a gradient 20 times the usual one: LSTMs have those (Pascanu et al. 2013)."""
    if seen.clip is not None or len(seen.norm) < 10:
        return None
    usual = statistics.median(value for _, value in seen.norm)
    step, most = max(seen.norm, key=lambda point: point[1])
    if most < 20 * usual:
        return None
    clip = float(compact(2 * usual))
    return Finding(
        "no clip",
        "suspect",
        f"Gradients leap, the largest at step {step}, and nothing clips them.",
        (f"gradient norm {compact(most)} at step {step}, {compact(usual)} usually",),
        f"Clip the gradient's norm, at about {compact(clip)} here.",
        "Pascanu, Mikolov and Bengio 2013 (arXiv:1211.5063)",
        step,
        seen.norm,
        {"optimizer.clip_norm": clip},
    )


def always_clipped(seen: Evidence) -> Finding | None:
    """Nearly every gradient is clipped to less than a tenth: the clip, not the rate, sets the pace."""
    tail = [value for _, value in seen.norm[len(seen.norm) // 2 :]]
    if seen.clip is None or len(tail) < 5:
        return None
    told = [value for _, value in seen.clipped[len(seen.clipped) // 2 :]]
    share = statistics.mean(told) if told else sum(value > seen.clip for value in tail) / len(tail)
    usual = statistics.median(tail)
    if share < 0.95 or usual < 10 * seen.clip:
        return None
    return Finding(
        "always clipped",
        "note",
        f"{share:.0%} of the gradients are clipped, usually to {seen.clip / usual:.1%} of their length.",
        (f"clip {compact(seen.clip)}, gradient norm {compact(usual)} (median of the second half)",),
        "Every update is then as long as learning rate x clip allows: judge those two together.",
        "a tenth, by definition of this note",
        None,
        seen.norm,
    )


def slowed_down(seen: Evidence) -> Finding | None:
    """The last quarter ran at less than half the pace of the quarter before the middle."""
    quarter = len(seen.speed) // 4
    if quarter < 5:
        return None
    before = statistics.median(value for _, value in seen.speed[quarter : 2 * quarter])
    now = statistics.median(value for _, value in seen.speed[-quarter:])
    if now >= 0.5 * before:
        return None
    return Finding(
        "slower",
        "note",
        f"The run has slowed down to {now / before:.0%} of its pace.",
        (f"{before:,.0f} tokens/s before, {now:,.0f} in the last quarter",),
        "Something else uses the machine, or it is throttled.",
        "half, by definition of this note",
        seen.speed[-quarter][0],
        seen.speed,
    )


def slower(seen: Evidence) -> tuple[dict[str, float], str]:
    """A patch to a rate that the optimizer is used with, or to a tenth of one that is usual already."""
    verdict = judge_rate(seen.optimizer, seen.peak_rate, seen.terms, seen.clip)
    if verdict.level in ("high", "too high"):
        patch, advice = rate_patch(seen), f"Set the learning rate to {compact(rate_patch(seen).get(_RATE))}"
    else:
        patch = {} if seen.peak_rate is None else {_RATE: float(compact(seen.peak_rate / 10))}
        advice = "Try a tenth of the learning rate; look at the data where it began"
    if seen.clip is None:
        clip = {"optimizer.clip_norm": 5.0 if (seen.terms or 1) > 1 else 0.25}
        return patch | clip, f"{advice}; clip the gradient's norm."
    return patch, f"{advice}."


def rate_patch(seen: Evidence) -> dict[str, float]:
    """The rate that the optimizer is used with; nothing for one that is not known."""
    return {_RATE: SOUND_RATES[seen.optimizer]} if seen.optimizer in SOUND_RATES else {}
