"""Rules that tell a sick training from the signals measured beside its steps (`raylm.training.signals`), and from its
evaluations. As those of `symptoms`."""

from __future__ import annotations

import statistics

from raylm.observe.figures import compact, nats
from raylm.observe.findings import Evidence, Finding, first_step, smooth
from raylm.observe.story import Points

_FEWEST = 10
"""Points of a signal that a rule asks for."""


def carry_dropped(seen: Evidence) -> Finding | None:
    """Every window of a stream begins with a carry of zero, where only the first of an epoch should."""
    read = seen.signals.get("carry_read", [])
    if seen.sentences or len(read) < _FEWEST or any(value > 0 for _, value in read):
        return None
    return Finding(
        "carry dropped",
        "wrong",
        "Every window begins with a state of zero: what the lanes have read before is dropped.",
        (f"the carry was zero at the beginning of all {len(read)} windows looked at",),
        "Give each window the carry that the one before ended with; zero it where an epoch begins.",
        "truncated BPTT keeps it (Zaremba et al. 2014); only sentences begin anew",
        read[0][0],
        seen.loss,
    )


def weight_never_moves(seen: Evidence) -> Finding | None:
    """A weight that no update changed, while others were: it gets no gradient, or is not given to the optimizer."""
    ratios = _by_part(seen, "update_ratio/")
    still = [name for name, points in ratios.items() if len(points) >= _FEWEST and not any(y for _, y in points)]
    if not still or len(still) == len(ratios):
        return None
    return Finding(
        "weight never moves",
        "wrong",
        f"No update changes {still[0]}" + (f" and {len(still) - 1} other weights." if len(still) > 1 else "."),
        (f"never moved at {len(ratios[still[0]])} steps looked at: {', '.join(still)}",),
        "Look whether it was drawn as zero, is used by the loss (tied weights: the same variable), and is trained.",
        "every weight of an LSTM language model has a gradient",
        ratios[still[0]][0][0],
        seen.loss,
    )


def updates_too_long(seen: Evidence) -> Finding | None:
    """An update moves the weights by more than a tenth of their length, by the median of the second half."""
    ratio = seen.signals.get("update_ratio", [])
    late = [value for _, value in ratio[len(ratio) // 2 :]]
    if len(ratio) < _FEWEST or statistics.median(late) <= 0.1:
        return None
    return Finding(
        "updates too long",
        "suspect",
        "Each update moves the weights by a large part of their length.",
        (f"length of an update over that of the weights: {compact(statistics.median(late))} (median, second half)",),
        "Lower the learning rate.",
        "0.001 is usual (Karpathy, cs231n); Zaremba et al. 2014's longest step is 0.04 of their fresh weights",
        ratio[len(ratio) // 2][0],
        ratio,
        {} if seen.peak_rate is None else {"schedule.learning_rate": float(compact(seen.peak_rate / 10))},
    )


def gates_saturated(seen: Evidence) -> Finding | None:
    """Nine gates of ten of a layer are all but shut or open for good: hardly any gradient passes them."""
    for layer, points in _by_part(seen, "saturated/").items():
        since = first_step(smooth(points), 0.9)
        if len(points) >= _FEWEST and since is not None and since <= points[len(points) // 2][0]:
            return Finding(
                "gates saturated",
                "wrong" if seen.learnt_nothing else "suspect",
                f"The gates of {layer} are saturated since step {since}: it hardly learns any more.",
                (f"{points[-1][1]:.0%} of them are below 0.1 or above 0.9 at step {points[-1][0]}",),
                "Lower the learning rate and draw smaller first weights.",
                "Karpathy, Johnson and Fei-Fei 2015 (arXiv:1506.02078) count them so",
                since,
                points,
            )
    return None


def carry_grows(seen: Evidence) -> Finding | None:
    """Cells so far out that their tanh is 1: the state only says that it is full. No more than a note where the loss
    falls all the same: the recipe `bytes` learns well with cells in the thousands."""
    for layer, points in _by_part(seen, "cell/").items():
        since = first_step(smooth(points), 10.0)
        if len(points) >= _FEWEST and since is not None:
            (first, began), (step, now) = points[0], points[-1]
            return Finding(
                "carry grows",
                "note" if seen.falls else "suspect",
                f"The cells of {layer} are full: their root mean square is above 10 since step {since}.",
                (f"{compact(began)} at step {first}, {compact(now)} at step {step}; a few cells may be the cause",),
                "Nothing, while the loss falls as it does here; "
                "else clip the gradient, lower the learning rate, or begin anew more often."
                if seen.falls
                else "Clip the gradient, lower the learning rate, or begin anew more often.",
                "tanh(10) is 1 to eight digits: nothing of such a cell is seen any more",
                since,
                points,
            )
    return None


def rows_dead_or_exploding(seen: Evidence) -> Finding | None:
    """Words whose embedding has all but vanished, or is many times as long as the usual one."""
    dead, largest = (seen.signals.get(name, []) for name in ("row_dead", "row_largest"))
    if len(dead) < _FEWEST or len(largest) < _FEWEST:
        return None
    share = statistics.median(value for _, value in dead[-_FEWEST:])
    times = statistics.median(value for _, value in largest[-_FEWEST:])
    if share < 0.05 and times < 50:
        return None
    few = share >= 0.05
    return Finding(
        "embedding rows",
        "suspect",
        "Embeddings of many words are dead." if few else "Embeddings of some words explode.",
        (f"{share:.1%} of the rows are shorter than a hundredth of the mean, the longest is {times:.1f} times it",),
        "Take a smaller vocabulary: rare words hardly train." if few else "Clip the gradient or lower the rate.",
        "fresh rows are all of about one length",
        dead[-_FEWEST][0],
        dead if few else largest,
    )


def dropout_in_evaluation(seen: Evidence) -> Finding | None:
    """Two lanes of an evaluation find the same words unlike: something is still drawn at random there."""
    apart = [point for point in seen.signals.get("lanes_apart", []) if point[1] > 0.003]
    if not apart:
        return None
    step, nats_apart = apart[-1]
    return Finding(
        "dropout in evaluation",
        "wrong",
        "The evaluation drops units too: it does not find the same words equally likely twice.",
        (f"the same words in two lanes, read at step {step}: {nats(nats_apart)} nats a token apart",),
        "Leave dropout out where no gradient is taken; the perplexities of valid and test are too high until then.",
        "dropout is for training alone (Zaremba et al. 2014, section 3.2); rounding is below 0.0001",
        apart[0][0],
        seen.valid,
    )


def ranks_disagree(seen: Evidence) -> Finding | None:
    """Replicas whose weights are no longer the same bits at an evaluation."""
    agree = seen.signals.get("ranks_agree", [])
    apart = [step for step, same in agree if not same]
    if not apart:
        return None
    return Finding(
        "ranks disagree",
        "wrong",
        f"The replicas' weights differ since step {apart[0]}: each trains a model of its own.",
        (f"not the same bits at {len(apart)} of {len(agree)} evaluations",),
        "Resume from a checkpoint: all begin with the same weights then. If it comes again, look for a faulty device.",
        "all make the same update of the same weights",
        apart[0],
        seen.loss,
    )


def never_warm(seen: Evidence) -> Finding | None:
    """Past half of the run the learning rate has not reached half of its highest: a warm-up in the wrong unit."""
    if seen.peak_rate is None or not seen.rate or not seen.steps_total or seen.last_step < seen.steps_total / 2:
        return None
    (_, before), (step, rate) = seen.rate[len(seen.rate) // 2], seen.rate[-1]
    if max(value for _, value in seen.rate) >= seen.peak_rate / 2 or rate < 1.5 * before:
        return None
    return Finding(
        "never warm",
        "wrong",
        f"At step {step} of {seen.steps_total} the learning rate is still warming up.",
        (f"{compact(rate)} at step {step}; its highest is to be {compact(seen.peak_rate)}",),
        "The warm-up counts updates, not tokens: look at schedule.warmup_steps.",
        "raylm's quick warms up over a twentieth of the run",
        1,
        seen.rate,
        {"schedule.warmup_steps": seen.steps_total // 20},
    )


RULES = (
    ranks_disagree,
    weight_never_moves,
    carry_dropped,
    dropout_in_evaluation,
    never_warm,
    gates_saturated,
    updates_too_long,
)
"""Those before the rules of the loss in weight; the others are `LESSER_RULES`."""

LESSER_RULES = (carry_grows, rows_dead_or_exploding)


def _by_part(seen: Evidence, prefix: str) -> dict[str, Points]:
    return {name.removeprefix(prefix): points for name, points in seen.signals.items() if name.startswith(prefix)}
