"""The answer to *is something wrong with my training?* from printed numbers alone: what they are, what the loss did,
what the learning rate means, what to print instead, and what to add where they do not tell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from raylm.observe.advice import Facts, Health, TruePoint, notes_on, numbers_to_add, print_instead, rate_answer
from raylm.observe.figures import nats, perplexity, perplexity_of
from raylm.observe.printout import AVERAGE, BITS, LOSS, PERPLEXITY, Point, Printout
from raylm.observe.rates import RateVerdict, judge_rate
from raylm.observe.readings import Question, Weighed, weigh
from raylm.observe.relations import relations
from raylm.observe.wording import compact6, how_related, in_short, meaning, uniform, what_is_printed

SURE = 0.9
"""The probability from which a reading, or what it says of the training, is stated as found."""


@dataclass(frozen=True)
class Alternative:
    """A reading of the main series in words, and its probability."""

    reading: str
    probability: float


@dataclass(frozen=True)
class Explanation:
    """The answer. `printed` is (series, what it is); `course` empty where the numbers cannot be told."""

    health: Health
    verdict: str
    printout: Literal["sound", "misleading", "cannot tell"]
    printed: tuple[tuple[str, str], ...]
    readings: tuple[Alternative, ...]
    course: tuple[TruePoint, ...]
    statements: tuple[str, ...]
    learning_rate: RateVerdict
    rate_answer: tuple[str, ...]
    print_instead: tuple[str, ...]
    notes: tuple[str, ...]
    add: tuple[str, ...]


def explain(printout: Printout, facts: Facts) -> Explanation:
    """The answer to one training's printout; at least one series has a point."""
    facts = replace(
        facts,
        vocabulary=facts.vocabulary or printout.vocabulary,
        learning_rate=printout.learning_rate if facts.learning_rate is None else facts.learning_rate,
    )
    question, others = _question(printout, facts)
    weighed = weigh(question)
    groups = _groups(weighed, question)
    best = groups[0][0] if groups else None
    sure = bool(groups) and groups[0][1] >= SURE
    course = _course(best, question) if best is not None else ()
    health, what = _health(weighed, question, facts)
    rate = judge_rate(facts.optimizer, facts.learning_rate, facts.loss_terms or _terms(best), facts.clip)
    printed = _printed(best, question, others) if sure else ()
    misleading = sure and any(_misleads(best, question, others))
    return Explanation(
        health=health,
        verdict=_verdict(health, what, sure, misleading),
        printout="cannot tell" if not sure else "misleading" if misleading else "sound",
        printed=printed,
        readings=tuple(Alternative(in_short(each.reading), share) for each, share in groups if share >= 0.02)[:5],
        course=course if sure else (),
        statements=_statements(course, question, others, what, facts) if sure else (),
        learning_rate=rate,
        rate_answer=rate_answer(rate, health, course, facts),
        print_instead=print_instead(facts) if misleading or not sure else (),
        notes=notes_on(course if sure else (), question, facts),
        add=numbers_to_add(groups, question, facts, sure),
    )


@dataclass(frozen=True)
class _Other:
    """A series beside the main one, and how it is made of it: no relation where it is read by itself."""

    name: str
    points: tuple[Point, ...]
    relations: tuple[Any, ...]


_NAMES = {LOSS: "loss", AVERAGE: "average", PERPLEXITY: "perplexity", BITS: "bits"}
_FAILING = {"low": 0.03, "usual": 0.03, "unknown": 0.05, "high": 0.15, "too high": 0.6}


def _question(printout: Printout, facts: Facts) -> tuple[Question, tuple[_Other, ...]]:
    """The series to be read, and those beside it."""
    main = next(name for name in (LOSS, AVERAGE, BITS, PERPLEXITY) if name in printout.series)
    failing = _FAILING[judge_rate(facts.optimizer, facts.learning_rate, facts.loss_terms or 1.0, facts.clip).level]
    question = Question(
        main,
        printout.series[main],
        facts.vocabulary,
        facts.window,
        facts.batch,
        failing=failing,
        in_epochs=printout.in_epochs,
        since_epoch=printout.since_epoch,
    )
    others = tuple(
        _Other(name, points, relations(question.points, points, question.interval))
        for name, points in printout.series.items()
        if name != main
    )
    return replace(question, relations=tuple(other.relations for other in others)), others


def _groups(weighed: Sequence[Weighed], question: Question) -> list[tuple[Weighed, float]]:
    """Readings that tell the same of the training as one, with the simplest of them; the likeliest first."""
    groups: dict[str, list[Weighed]] = {}
    for each in weighed:
        groups.setdefault(meaning(each.reading, question), []).append(each)
    found = []
    for members in groups.values():
        simplest = max(members, key=lambda each: (each.reading.gathered == "since_line", each.probability))
        plain = members[0] if members[0].reading.gathered == "line" else simplest
        found.append((plain, sum(each.probability for each in members)))
    return sorted(found, key=lambda group: -group[1])


def _course(best: Weighed, question: Question) -> tuple[TruePoint, ...]:
    finite = [each for each in question.points if math.isfinite(each.value) and each.value > 0]
    steps = [each.step for each in finite]
    counts = [1] * len(steps)
    if best.reading.gathered != "line":
        counts = [1 if question.fresh else steps[0], *(b - a for a, b in itertools.pairwise(steps))]
    return tuple(TruePoint(*each) for each in zip(steps, best.nats, counts, strict=True))


def _terms(best: Weighed | None) -> float | None:
    if best is None or best.reading.summed == "unknown":
        return None
    return best.reading.terms


_WHAT: dict[str, Health] = {
    "is not finite": "wrong",
    "is above ln V, worse than guessing": "wrong",
    "has stayed at ln V, that of guessing": "suspect",
    "rises again": "suspect",
    "falls": "healthy",
    "has hardly moved": "cannot tell",
    "is known at one step only": "cannot tell",
}


def _what(loss: Sequence[float], question: Question) -> str:
    """What the loss does, in the words of `_WHAT`."""
    guessing = math.log(question.vocabulary) if question.vocabulary else math.inf
    late = loss[-max(1, len(loss) // 5) :]
    now = sum(late) / len(late)
    if now > 1.03 * guessing:
        return "is above ln V, worse than guessing"
    if len(loss) < 2:
        return "is known at one step only"
    if question.vocabulary and now > 0.98 * guessing and question.points[-1].step >= 200:
        return "has stayed at ln V, that of guessing"
    if min(loss[-2:]) > min(loss) + max(0.3, 0.05 * min(loss)):
        return "rises again"
    return "falls" if now < 0.98 * loss[0] else "has hardly moved"


def _health(weighed: Sequence[Weighed], question: Question, facts: Facts) -> tuple[Health, str]:
    """What all readings together say of the training; what the loss does, empty where they differ."""
    if any(not math.isfinite(each.value) for each in question.points):
        return "wrong", "is not finite"
    shares: dict[str, float] = {}
    for each in weighed:
        what = _what(each.nats, question)
        shares[what] = shares.get(what, 0.0) + each.probability
    what, share = max(shares.items(), key=lambda pair: pair[1], default=("", 0.0))
    if share < SURE:
        return "cannot tell", ""
    health = _WHAT[what]
    level = judge_rate(facts.optimizer, facts.learning_rate, facts.loss_terms or 1.0, facts.clip).level
    return ("suspect" if health == "healthy" and level == "too high" else health), what


def _misleads(best: Weighed | None, question: Question, others: Sequence[_Other]) -> list[bool]:
    """Of each series, whether a reader who takes it by its name is misled."""
    if best is None:
        return []
    reading, plain, mean = best.reading, best.reading.gathered == "line", False
    flags = []
    for other in others:
        if not other.relations:
            continue
        relation, divisor = other.relations[0]
        right = reading.divisor == 1 and (
            relation in ("by_steps", "by_steps_since_line")
            or (relation == "divided" and divisor == reading.terms and plain)
            or (relation == "divided" and divisor == question.interval and not plain and not question.fresh)
        )
        mean = mean or right
        flags.append(not right and not (relation in ("exp", "exp2") and plain and reading.summed == "mean"))
    flags.append(not mean and not (plain and reading.summed == "mean" and reading.divisor == 1))
    return flags


def _printed(best: Weighed | None, question: Question, others: Sequence[_Other]) -> tuple[tuple[str, str], ...]:
    if best is None:
        return ()
    name = _NAMES[question.name]
    found = [(name, what_is_printed(best.reading, question))]
    for other in others:
        if other.relations:
            relation, divisor = other.relations[0]
            text = how_related(name, relation, divisor, best.reading, question, other.points)
            found.append((_NAMES[other.name], text))
        elif alone := weigh(replace(question, name=other.name, points=other.points, relations=())):
            found.append((_NAMES[other.name], f"not made of the {name}; probably {in_short(alone[0].reading)}"))
    return tuple(found)


def _verdict(health: Health, what: str, sure: bool, misleading: bool) -> str:
    if what == "is not finite":
        return "The training is wrong: a loss that is not finite makes every weight that it updates non-finite."
    if not what:
        return "These numbers can be read in more than one way, and the ways differ: add what is named below."
    words = f"the loss {what}"
    if health == "wrong":
        also = ", and the printout misleads as well" if misleading else ""
        return f"The training is wrong: {words}{also}."
    if health == "suspect" and what == "falls":
        return f"Suspect: {words} by these numbers, but the learning rate is far too high for the optimizer."
    if health == "suspect":
        return f"Suspect: {words}{', and the printout misleads' if misleading else ''}."
    if health == "healthy" and misleading:
        return f"The printout is wrong, not (yet) the training: {words}."
    if health == "healthy":
        return f"Nothing is wrong by these numbers: {words}{'' if sure else ', in whichever way they are read'}."
    return f"These numbers cannot tell: the loss {what}."


def _statements(
    course: Sequence[TruePoint], question: Question, others: Sequence[_Other], what: str, facts: Facts
) -> tuple[str, ...]:
    lines = []
    first, last = course[0], course[-1]
    if question.fresh and facts.vocabulary:
        lines.append(_start(first, facts.vocabulary))
    broken = next((each for each in question.points if not math.isfinite(each.value)), None)
    if broken is not None:
        lines.append(
            f"At step {broken.step} it is {broken.value}. Every step after that is lost: go back to before it."
        )
    elif what == "falls":
        printed = [question.points, *(other.points for other in others)]
        rising = [each for each in printed if each[-1].value > each[0].value]
        ends = [f"from {compact6(each[0].value)} to {compact6(each[-1].value)}" for each in rising]
        not_so = f"did not rise {' or '.join(ends)}: it " if rising else ""
        mean = "a mean of " if last.steps > 1 else ""
        lines.append(
            f"The loss {not_so}fell from {nats(first.nats)} to {mean}{nats(last.nats)} nats a token, "
            f"from perplexity {perplexity(perplexity_of(first.nats))} to {perplexity(perplexity_of(last.nats))}."
        )
    elif what == "is above ln V, worse than guessing" and facts.vocabulary:
        lines.append(
            f"At step {last.step} it is {nats(last.nats)} nats a token; guessing among {facts.vocabulary:,} words "
            f"costs {uniform(facts.vocabulary)}."
        )
    return tuple(lines)


def _start(first: TruePoint, vocabulary: int) -> str:
    ratio = first.nats / math.log(vocabulary)
    text = f"At step {first.step} it is {compact6(first.nats)} nats a token; {uniform(vocabulary)}"
    if ratio > 1.05:
        return f"{text}: worse than guessing from the start; the first weights are too large, or V is another."
    if ratio < 0.95:
        return f"{text}: this model was trained before, or V is another."
    return f"{text}: a fresh model that knows nothing: healthy."
