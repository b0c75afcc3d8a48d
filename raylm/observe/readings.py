"""What a printed loss may mean, as hypotheses held against what the loss of a language model does.

A fresh model knows nothing, so its cross-entropy is ln V nats a token; training takes it down, seldom by leaps, and a
loss above ln V is one of a model worse than guessing. Each reading turns the printed values into nats a token by a rule
of its own; the readings' probabilities follow (Bayes) from how far the result looks like that. Nothing here knows a
particular printout.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from raylm.observe.printout import BITS, PERPLEXITY, Point
from raylm.observe.relations import Relation

Unit = Literal["nats", "bits", "digits", "perplexity"]
Summed = Literal["mean", "time", "batch", "all", "unknown"]
Gathered = Literal["line", "since_line", "since_start"]

_NATS_PER = {"nats": 1.0, "bits": math.log(2), "digits": math.log(10)}
_SHOWN = 60  # points that readings are held against; more tell no more
_VOCABULARIES = [math.log(100 * 10 ** (exponent / 4)) for exponent in range(17)]  # 100 to a million, where V is unknown


@dataclass(frozen=True)
class Reading:
    """One meaning of a series.

    unit: of a value. summed: over what a step's loss is added up, `terms` summands. gathered: each line for itself (one
    step, or a mean), or a sum over the steps since the last line or since the start. divisor: what is divided by before
    it is printed, on the first line too.
    """

    unit: Unit = "nats"
    summed: Summed = "mean"
    terms: float = 1.0
    gathered: Gathered = "line"
    divisor: float = 1.0


@dataclass(frozen=True)
class Question:
    """A series, how those printed beside it are made of it, and what is known of the training.

    relations: for each other series, those it may have. failing: how likely the training diverges, before its numbers
    are looked at. in_epochs, since_epoch: as of the `Printout`.
    """

    name: str
    points: tuple[Point, ...]
    vocabulary: int | None = None
    window: int | None = None
    batch: int | None = None
    relations: tuple[tuple[tuple[Relation, float], ...], ...] = ()
    failing: float = 0.05
    in_epochs: bool = False
    since_epoch: bool = False

    @property
    def interval(self) -> int:
        """Steps from one line to the next, as a rule; 1 where there is one line, or where lines are epochs."""
        steps = [each.step for each in self.points]
        between = [later - sooner for sooner, later in itertools.pairwise(steps)]
        return 1 if self.in_epochs or not between else statistics.mode(between)

    @property
    def fresh(self) -> bool:
        """Whether the first value is one of a model that nothing, or one step, was learnt by."""
        return not self.in_epochs and self.points[0].step <= 1


@dataclass(frozen=True)
class Weighed:
    """A reading, its probability, and the printed values as nats a token by it."""

    reading: Reading
    probability: float
    nats: tuple[float, ...]


def weigh(question: Question) -> tuple[Weighed, ...]:
    """The readings of a series, the likeliest first; none where no value is finite and positive."""
    points = tuple(each for each in question.points if math.isfinite(each.value) and each.value > 0)
    if not points:
        return ()
    question = replace(question, points=points)
    floors = [math.log(question.vocabulary)] if question.vocabulary else _VOCABULARIES
    weights: dict[Reading, tuple[float, tuple[float, ...]]] = {}
    for reading, prior in readings(question, floors):
        nats = decode(reading, question)
        if min(nats) <= 0:
            continue
        fits = [prior + _fit(reading, question, nats, floor) - math.log(len(floors)) for floor in floors]
        weights[reading] = (_log_sum(fits), nats)
    total = _log_sum([weight for weight, _ in weights.values()]) if weights else 0.0
    found = [Weighed(reading, math.exp(weight - total), nats) for reading, (weight, nats) in weights.items()]
    return tuple(sorted(found, key=lambda each: -each.probability))


def readings(question: Question, floors: Sequence[float]) -> Iterator[tuple[Reading, float]]:
    """Every reading with the logarithm of its prior, relations to the other series included."""
    terms = _terms(question)
    gathering: list[tuple[Gathered, float, float]] = [("line", 1.0, 0.73)]
    if (k := question.interval) > 1:
        gathering += [("line", k, 0.02), ("since_line", 1.0, 0.08), ("since_line", k, 0.07), ("since_start", 1.0, 0.1)]
    for unit, share in _units(question.name).items():
        if unit == "perplexity":
            yield Reading(unit), math.log(share)
            continue
        for gathered, divisor, likely in gathering:
            for summed, count, usual in terms:
                reading = Reading(unit, summed, count, gathered, divisor)
                yield reading, math.log(share * likely * usual) + _log_relations(reading, question)
            if question.fresh:
                count = question.points[0].value * _NATS_PER[unit] * divisor / floors[len(floors) // 2]
                if not 0.55 < count < 1.9:  # a sum has two terms
                    reading = Reading(unit, "unknown", count, gathered, divisor)
                    rare = 0.02 if len(terms) == 4 or count < 1 else 0.15
                    yield reading, math.log(share * likely * rare) + _log_relations(reading, question)


def decode(reading: Reading, question: Question) -> tuple[float, ...]:
    """The nats a token of each value."""
    if reading.unit == "perplexity":
        return tuple(math.log(each.value) for each in question.points)
    scale = _NATS_PER[reading.unit] * reading.divisor / reading.terms
    values = [each.value * scale for each in question.points]
    steps = steps_of_lines(question)
    if reading.gathered == "since_line":
        return tuple(value / count for value, count in zip(values, steps, strict=True))
    if reading.gathered == "since_start":
        befores = [0.0, *values[:-1]]
        return tuple((value - before) / count for value, before, count in zip(values, befores, steps, strict=True))
    return tuple(values)


def steps_of_lines(question: Question) -> list[int]:
    """How many steps each line can tell of: those since the line before; the first line those since the start."""
    steps = [each.step for each in question.points]
    later = [after - before for before, after in itertools.pairwise(steps)]
    return [1 if question.fresh else steps[0] or question.interval, *later]


def _terms(question: Question) -> list[tuple[Summed, float, float]]:
    """Over what a step's loss may be added up, how many summands that is, and how usual it is."""
    terms: list[tuple[Summed, float, float]] = [("mean", 1.0, 0.7)]
    if question.window:
        terms.append(("time", question.window, 0.1))
    if question.batch:
        terms.append(("batch", question.batch, 0.1))
    if question.window and question.batch:
        terms.append(("all", question.window * question.batch, 0.1))
    return terms


def _units(name: str) -> dict[Unit, float]:
    if name == PERPLEXITY:
        return {"perplexity": 0.93, "nats": 0.05, "bits": 0.02}
    if name == BITS:
        return {"bits": 0.95, "nats": 0.05}
    return {"nats": 0.86, "perplexity": 0.04, "bits": 0.06, "digits": 0.04}


def _log_relations(reading: Reading, question: Question) -> float:
    """How well the series beside this one goes with the reading."""
    return sum(
        math.log(max(_goes_with(reading, question, *relation) for relation in other))
        for other in question.relations
        if other
    )


def _goes_with(reading: Reading, question: Question, relation: Relation, divisor: float) -> float:
    plain = reading.divisor == 1
    if relation == "by_steps":
        return 0.95 if plain and reading.gathered == "since_start" else 0.02
    if relation == "by_steps_since_line":
        return 0.9 if plain and reading.gathered == "since_line" else 0.02
    if relation in ("exp", "exp2"):
        unit = "nats" if relation == "exp" else "bits"
        right = plain and (reading.unit, reading.summed, reading.gathered) == (unit, "mean", "line")
        return 0.9 if right else 0.05
    if reading.summed not in ("mean", "unknown") and divisor == reading.terms:
        return 0.8
    if divisor == question.interval and divisor > 1:
        return {"line": 0.01, "since_line": 0.9, "since_start": 0.05}[reading.gathered] if plain else 0.005
    return 0.02


def _fit(reading: Reading, question: Question, nats: Sequence[float], floor: float) -> float:
    """Log density of the printed values' logarithms, if the loss is `nats` and ln V is `floor`."""
    scale = _NATS_PER.get(reading.unit, 1.0) * reading.divisor / reading.terms
    steps = steps_of_lines(question)
    stride = max(1, len(nats) // _SHOWN)
    fit, before = 0.0, 0.0
    for index in range(0, len(nats), stride):
        each, at = question.points[index], math.log(nats[index] / floor)
        if index == 0:
            loose = each.half_unit / each.value
            fit += _LOG_ANYTHING if reading.summed == "unknown" else _first(at, question, loose)
        else:
            fit += _next(at, before, question.failing)
        if reading.unit == "perplexity":
            fit -= math.log(nats[index])
        elif reading.gathered == "since_start":
            fit += math.log(each.value * scale / (steps[index] * nats[index]))
        before = at
    return fit


_LOG_ANYTHING = -math.log(math.log(1e10))  # a factor that is not known: anything from 1e-5 to 1e5


def _first(at: float, question: Question, loose: float) -> float:
    """Log density of ln(first loss / ln V). A fresh model's is near 0: of small weights, within 1 %."""
    if question.fresh:
        worse = question.failing * math.exp(-at / 0.5) / 0.5 if at > 0 else 0.0
        close, wide = _normal(at, 0.01 + loose), _normal(at, 0.06 + loose)
        trained = 0.03 / math.log(20) if -math.log(20) < at < 0 else 0.0
        return math.log(0.9 * close + 0.05 * wide + trained + 0.4 * worse + 1e-6)
    worse = question.failing / math.log(1000) if 0 < at < math.log(1000) else 0.0
    within = 0.95 / math.log(10.2) if -math.log(10) < at < math.log(1.02) else 0.0
    return math.log(within + worse + 1e-4)


def _next(at: float, before: float, failing: float) -> float:
    """Log density of ln(loss / ln V) after the one before: it falls by some share, or moves by a batch's noise; seldom
    it leaps above ln V, or falls below an eighth of that, where only a text learnt by heart is."""
    guessing, by_heart = 0.03, math.log(1 / 8)
    change = at - before
    if at <= guessing and before <= guessing:
        learning = math.exp(change / 0.35 if change < 0 else -change / 0.05) / 0.4
        noise = math.exp(-abs(change) / 0.03) / 0.06
        rare = 0.1 if at < by_heart <= before else 1.0
        return math.log((1 - failing) * rare * (0.5 * learning + 0.5 * noise) + 2e-4)
    if before > guessing:
        return math.log(math.exp(-abs(change) / 0.5) + 2e-4)
    return math.log(failing / math.log(1e4) + 2e-5)


def _normal(at: float, deviation: float) -> float:
    return math.exp(-0.5 * (at / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))


def _log_sum(logarithms: Sequence[float]) -> float:
    most = max(logarithms)
    return most + math.log(sum(math.exp(each - most) for each in logarithms))
