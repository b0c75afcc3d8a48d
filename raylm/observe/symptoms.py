"""Rules that tell a sick training from its loss, each with its threshold and where that is from.

A rule takes the evidence and returns what it found, or None. They stand in the order of their weight: where two find
something of the same severity, the first is shown first, since it is likelier the cause of the other.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from raylm.observe.data_symptoms import DataEvidence, data_findings
from raylm.observe.figures import compact, nats, perplexity, perplexity_of
from raylm.observe.findings import Diagnosis, Evidence, Finding, Severity, conclude, first_step, smooth
from raylm.observe.guard_symptoms import bad_batches, ended_failed, explodes_again, went_through_faults
from raylm.observe.rates import judge_rate
from raylm.observe.signal_symptoms import LESSER_RULES
from raylm.observe.signal_symptoms import RULES as SIGNAL_RULES
from raylm.observe.update_symptoms import (
    always_clipped,
    decayed_too_soon,
    gradients_leap,
    rate_for_the_optimizer,
    rate_patch,
    slowed_down,
    slower,
)


def diagnose(seen: Evidence, data: DataEvidence | None = None) -> Diagnosis:
    """All rules, those of the data where that was looked at, and the verdict over what they find."""
    found = [found for rule in RULES if (found := rule(seen)) is not None]
    return conclude([*found, *(() if data is None else data_findings(data))])


def worse_than_guessing(seen: Evidence) -> Finding | None:
    """Above ln V from some step past the first ten on, by the median of the last values: no model that learns is."""
    if seen.uniform is None:
        return None
    later = smooth([point for point in seen.loss if point[0] > 10], 3)
    since = first_step(later, 1.03 * seen.uniform)
    if since is None or sum(step >= since for step, _ in later) < 2:
        return None
    evidence = [
        f"loss {nats(later[-1][1])} at step {later[-1][0]} (median of 3); guessing costs ln V = {nats(seen.uniform)}"
    ]
    patch, advice = slower(seen)
    evidence += [judge_rate(seen.optimizer, seen.peak_rate, seen.terms, seen.clip).why]
    if moved := [value for step, value in seen.signals.get("update_ratio", []) if step <= since]:
        evidence.append(f"an update moved the weights by up to {max(moved):.3g} of their length; 0.001 is usual")
    return Finding(
        "worse than guessing",
        "wrong",
        f"The loss is above that of guessing since step {since}: the training diverged.",
        tuple(evidence),
        advice,
        "ln V is the loss of a model that knows nothing",
        since,
        seen.loss,
        patch,
    )


def diverged_again(seen: Evidence) -> Finding | None:
    """It had learnt, and lost 0.7 nats (twice the perplexity) of that for good: more than a batch's noise."""
    course = smooth(seen.loss)
    if len(course) < 10:
        return None
    best_step, best = min(course, key=lambda point: point[1])
    since = first_step(course, best + 0.7)
    if since is None or since <= best_step or (seen.uniform is not None and course[-1][1] > 1.03 * seen.uniform):
        return None
    evidence = (f"loss {nats(best)} by step {best_step}, {nats(course[-1][1])} at step {course[-1][0]} (medians of 5)",)
    patch, advice = slower(seen)
    return Finding(
        "diverged",
        "wrong",
        f"What was learnt is lost since step {since}.",
        evidence,
        advice,
        "0.7 nats is twice the perplexity; one window's noise is below 0.5",
        since,
        seen.loss,
        patch,
    )


def too_good(seen: Evidence) -> Finding | None:
    """Below half of what word pairs cost within a million tokens and three epochs: such a model is shown what it is to
    tell. In more epochs it can learn a small text by heart."""
    if seen.bigram is None:
        return None
    course = smooth(seen.loss)
    low = [step for step, loss in course if loss < 0.5 * seen.bigram]
    if not low or seen.tokens_by(low[0]) > 1e6 or sum(step <= low[0] for step, _ in seen.valid) >= 3:
        return None
    return Finding(
        "too good",
        "wrong",
        f"The loss is lower than any language model's since step {low[0]}: the targets are in the input.",
        (f"loss {nats(dict(course)[low[0]])} at step {low[0]}; a table of word pairs reaches {nats(seen.bigram)}",),
        "Look whether the targets are the words after the inputs (raylm data where), and whether lines repeat.",
        "the best published LSTMs end at 0.74 of PTB's bigram floor (Merity et al. 2017), after 500 epochs",
        low[0],
        seen.loss,
    )


def loss_is_a_sum(seen: Evidence) -> Finding | None:
    """The first loss is ln V times the lanes, the time steps or both: a sum that is told as a mean."""
    if seen.uniform is None or not seen.loss or seen.loss[0][0] > 1:
        return None
    first, window, lanes = seen.loss[0][1], seen.window or 0, seen.lanes or 0
    sums = {"the batch's lanes and time": window * lanes, "the window's time": window, "the batch's lanes": lanes}
    near = [name for name, terms in sums.items() if terms > 1 and 0.95 < first / (terms * seen.uniform) < 1.05]
    if not near:
        return None
    evidence = (f"loss {nats(first)} at step 1 is {sums[near[0]]:.0f} times ln V = {nats(seen.uniform)}",)
    return Finding(
        "loss is a sum",
        "wrong",
        f"The loss is a sum over {near[0]}, told as a mean.",
        evidence,
        "Divide it by the number of targets; learning rate and clip stand for that of which the gradient is taken.",
        "ln V, times what it is summed over",
        1,
        seen.loss,
    )


def starts_wrong(seen: Evidence) -> Finding | None:
    """The first loss is within a tenth of ln V, where the weights are fresh and small; far above, and it stays there,
    that is the cause."""
    if seen.uniform is None or not seen.loss or seen.loss[0][0] > 1:
        return None
    first, ratio = seen.loss[0][1], seen.loss[0][1] / seen.uniform
    if 0.9 <= ratio <= 1.1:
        return None
    title = (
        "The first loss is above ln V: the first weights are too large."
        if ratio > 1
        else ("The first loss is below ln V: the weights are not fresh, or the targets are in the input.")
    )
    evidence = (f"loss {nats(first)} at step 1; ln V = {nats(seen.uniform)}",)
    patch = {"model.init_scale": 0.1} if ratio > 1 else {}
    advice = "Draw the weights from ± 0.1 or less." if ratio > 1 else "Look at what the run started from."
    severity: Severity = "wrong" if ratio > 1.5 and seen.loss[-1][1] > 1.03 * seen.uniform else "suspect"
    return Finding("first loss", severity, title, evidence, advice, "ln V", 1, seen.loss, patch)


def learns_nothing(seen: Evidence) -> Finding | None:
    """Still within 2 % of ln V after 40,000 tokens and a hundred updates."""
    course = smooth(seen.loss)
    if seen.uniform is None or not course or course[-1][0] < 100 or seen.tokens_by(course[-1][0]) < 40_000:
        return None
    step, loss = course[-1]
    if not seen.learnt_nothing:
        return None
    verdict = judge_rate(seen.optimizer, seen.peak_rate, seen.terms, seen.clip)
    norm = statistics.median(value for _, value in seen.norm[-5:]) if seen.norm else None
    evidence = [f"loss {nats(loss)} at step {step}; guessing costs {nats(seen.uniform)}"]
    if norm is not None:
        evidence.append(f"gradient norm {compact(norm)} (median of the last 5)")
    patch = rate_patch(seen) if verdict.level == "low" else {}
    dead = norm is not None and norm < 1e-6
    return Finding(
        "learns nothing",
        "wrong",
        f"After {step} updates the model knows no more than at the start.",
        (*evidence, verdict.why),
        "No gradient arrives: look for weights that are zero." if dead else "Raise the learning rate.",
        "raylm's quick is at 0.78 ln V by then, on PTB",
        1,
        seen.loss,
        {} if dead else patch,
    )


def stuck_at_unigram(seen: Evidence) -> Finding | None:
    """About the unigram floor from 200,000 tokens to 800,000 or more, and no better in their second half: the context
    is not used."""
    if seen.unigram is None or seen.tokens is None or seen.tokens_by(seen.last_step) < 800_000:
        return None
    tail = [point for point in seen.loss if seen.tokens_by(point[0]) >= 200_000]
    if len(tail) < 10:
        return None
    before, after = (
        statistics.mean(loss for _, loss in half) / seen.unigram
        for half in (tail[: len(tail) // 2], tail[len(tail) // 2 :])
    )
    if not 0.97 < after < 1.05 or before - after > 0.015:
        return None
    step = tail[-1][0]
    return Finding(
        "context ignored",
        "wrong",
        f"The loss stays at the words' own frequencies since step {tail[0][0]}: the context is not used.",
        (f"loss {nats(after * seen.unigram)} up to step {step}; unigram floor {nats(seen.unigram)}",),
        "Look whether the targets follow the inputs (raylm data where), and whether the words' order was lost.",
        "a model that ignores the words before reaches the unigram entropy, no less",
        tail[0][0],
        seen.loss,
    )


def overfits(seen: Evidence) -> Finding | None:
    """Two evaluations or more past the best one, valid is 0.05 nats (5 % perplexity) above it, and train is not."""
    if len(seen.valid) < 3:
        return None
    place = min(range(len(seen.valid)), key=lambda index: seen.valid[index][1])
    (best_step, best), (step, now) = seen.valid[place], seen.valid[-1]
    if len(seen.valid) - place <= 2 or now < best + 0.05:
        return None
    course = [loss for at, loss in seen.loss if at >= best_step]
    third = len(course) // 3
    if third and statistics.mean(course[-third:]) > statistics.mean(course[:third]) + 0.05:
        return None
    return Finding(
        "overfit",
        "suspect",
        f"The model learns the train text by heart since step {best_step}.",
        (
            f"valid perplexity {perplexity(perplexity_of(best))} at step {best_step}, "
            f"{perplexity(perplexity_of(now))} at step {step}, while the train loss did not rise",
        ),
        "Use the checkpoint of the best evaluation; then more dropout, or a smaller model.",
        "Zaremba et al. 2014 drop 0.5 at 650 units, 0.65 at 1500",
        best_step,
        seen.valid,
        {"model.dropout": min(0.65, max(0.5, seen.dropout + 0.15))},
    )


RULES: Sequence[Callable[[Evidence], Finding | None]] = (
    loss_is_a_sum,
    bad_batches,
    starts_wrong,
    *SIGNAL_RULES,
    worse_than_guessing,
    explodes_again,
    ended_failed,
    too_good,
    diverged_again,
    learns_nothing,
    stuck_at_unigram,
    rate_for_the_optimizer,
    decayed_too_soon,
    gradients_leap,
    overfits,
    *LESSER_RULES,
    always_clipped,
    went_through_faults,
    slowed_down,
)
