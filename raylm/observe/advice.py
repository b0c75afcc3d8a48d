"""What to do about a training whose numbers were read: the learning rate, what to print, what to tell more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from raylm.observe.figures import nats
from raylm.observe.rates import RateVerdict, contrast
from raylm.observe.readings import Question, Weighed

Health = Literal["healthy", "suspect", "wrong", "cannot tell"]


@dataclass(frozen=True)
class Facts:
    """What is known beside the printed numbers; a learning rate given here is taken before a printed one."""

    vocabulary: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    clip: float | None = None
    batch: int | None = None
    window: int | None = None
    decay_steps: int | None = None
    one_hot: bool = False
    loss_terms: float | None = None
    """How many times the mean over tokens the loss is whose gradient is used; as printed, where that is not known."""


@dataclass(frozen=True)
class TruePoint:
    """What the loss was, in nats a token: of one step, or the mean since the line before."""

    step: int
    nats: float
    steps: int


def rate_answer(rate: RateVerdict, health: Health, course: Sequence[TruePoint], facts: Facts) -> tuple[str, ...]:
    """Whether the learning rate is too high, for the optimizer and the loss scale, and whether the loss shows it."""
    if facts.learning_rate is None or not facts.optimizer or rate.level == "unknown":
        return (rate.why,)
    wrong = health == "wrong"
    head = {
        "low": "No: it is low.",
        "usual": "Not by itself: look at the clip, the data and the loss scale."
        if wrong
        else "No: nothing here says so.",
        "high": "Probably: it is high." if wrong else "It is high; these numbers do not show harm.",
        "too high": "Yes." if wrong else "Yes, for this optimizer, although these numbers do not show harm yet.",
    }[rate.level]
    return (head, rate.why, contrast(facts.optimizer, facts.learning_rate))


def print_instead(facts: Facts) -> tuple[str, ...]:
    """Lines of Python that print what the lines seemed to be."""
    guess = math.log(facts.vocabulary) if facts.vocabulary else None
    return (
        "loss_sum, tokens = loss_sum + loss * n, tokens + n  # each step; loss is the mean over its n tokens",
        'print(f"step {step} loss {loss_sum / tokens:.3f} perplexity {math.exp(loss_sum / tokens):.1f}")',
        "loss_sum = tokens = 0                               # after each line",
        *(() if guess is None else (f"# the first line then says {guess:.3f} and {facts.vocabulary:,}: ln V and V",)),
    )


def notes_on(course: Sequence[TruePoint], question: Question, facts: Facts) -> tuple[str, ...]:
    """What else the numbers and the facts say: the decay, a fall too quick, the causes of a NaN, one-hot labels."""
    notes = []
    last = question.points[-1].step
    if facts.decay_steps and not question.in_epochs:
        begun = last >= facts.decay_steps
        notes.append(
            f"The decay has {'begun' if begun else 'not begun'}: its first step down is at step {facts.decay_steps:,}, "
            f"these numbers end at {last:,}."
        )
    quick = [each for each in course[1:] if each.step <= 200 and each.nats < 0.6 * math.log(facts.vocabulary or 1)]
    if quick and question.fresh:
        notes.append(
            f"{nats(quick[0].nats)} nats by step {quick[0].step} is quick (raylm's ptb-small is at 6.1 after 400 "
            "updates): if batches are padded, look whether padding counts as tokens."
        )
    if any(not math.isfinite(each.value) for each in question.points):
        notes += _NAN_CAUSES
    if facts.one_hot:
        size = f": {4 * facts.vocabulary:,} bytes a target instead of 4" if facts.vocabulary else ""
        notes.append(f"One-hot labels cost V times the memory of ids{size}, and change nothing else.")
    return tuple(notes)


_NAN_CAUSES = (
    "Exploding gradients are one cause: the same step is then finite with the gradient clipped, or at a tenth of the "
    "rate.",
    "A batch without any target is another: the mean over nothing is 0/0. Rows of one word have none; they are rare in "
    "small data, likelier together where batches are made by length.",
    "An id outside the vocabulary is a third: a CPU raises, a GPU returns NaN. Look at the smallest and the largest.",
)


def numbers_to_add(
    groups: Sequence[tuple[Weighed, float]], question: Question, facts: Facts, sure: bool
) -> tuple[str, ...]:
    """Which numbers would tell more, the most useful first."""
    add = []
    if facts.vocabulary is None:
        add.append("--vocab: the size of the vocabulary; ln V is what a fresh model's loss is")
    kinds = {each.reading.gathered for each, _ in groups[:2]}
    if not sure and not question.fresh:
        add.append("--loss 0=…: what the very first step printed, which must be ln V by the right reading")
    if not sure and len(kinds) > 1:
        add.append("the values at the next steps (1, 2, 3): a running sum grows by as much each step, a mean does not")
    if sure and groups[0][0].reading.gathered != "line" and len(question.points) == 2:
        add.append("a third line: it tells a sum since the line before from one since the start")
    if groups and groups[0][0].reading.summed == "unknown":
        add.append("--window and --batch: the time steps and the rows that a sum could be over")
    if len(question.points) < 2:
        add.append("a second value, some hundred steps later")
    if facts.learning_rate is None:
        add.append("--lr: the learning rate")
    if not facts.optimizer:
        add.append("--optimizer: what the learning rate means depends on it")
    return tuple(add)
