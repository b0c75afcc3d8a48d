"""Readings of printed numbers in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raylm.observe.figures import compact
from raylm.observe.printout import Point
from raylm.observe.readings import Question, Reading
from raylm.observe.relations import Relation

_SUMS = {
    "time": "over the {} time steps of a window",
    "batch": "over the {} rows of a batch",
    "all": "over all {} tokens of a batch",
}
_UNITS = {
    "nats": "",
    "bits": " in bits (base-2 logarithms; × 0.693 is nats)",
    "digits": " in base-10 logarithms (× 2.303 is nats)",
}


def what_is_printed(reading: Reading, question: Question) -> str:
    """One sentence on what a series holds, with its own figures where that shows it."""
    if reading.unit == "perplexity":
        return "a perplexity: e to the mean loss a token"
    if reading.gathered == "line" and reading.divisor == 1:
        return _summed(reading) + (" (the mean since the epoch began lags behind)" if question.since_epoch else "")
    steps = [each.step for each in question.points]
    last, first = question.points[-1], question.points[0]
    if reading.gathered == "line":
        return f"{_summed(reading)}, divided by {compact(reading.divisor)} although each line shows one step"
    since = "the line before" if reading.gathered == "since_line" else "the start, never set back"
    text = f"a running sum over the steps since {since}, of {_summed(reading)}"
    if reading.divisor != 1:
        text += f", divided by {compact(reading.divisor)} on every line"
        return text + (
            f", the first too, where it is one step's loss / {compact(reading.divisor)}" if question.fresh else ""
        )
    if len(steps) < 2:
        return text
    count = last.step - steps[-2] if reading.gathered == "since_line" else last.step + (first.step == 0)
    mean = last.value / count
    shown = compact6(last.value)
    return f"{text}: {shown} at step {last.step} is {count} × {compact6(mean)}, not a loss of {shown}"


def how_related(
    name: str, relation: Relation, divisor: float, reading: Reading, question: Question, other: Sequence[Point]
) -> str:
    """One sentence on a series that is made of the one that was read."""
    if relation in ("exp", "exp2"):
        base = "e" if relation == "exp" else "2"
        fits = (reading.unit, reading.summed, reading.gathered) == ("nats" if base == "e" else "bits", "mean", "line")
        return f"{base} to the power of the {name}" + (
            ": the perplexity"
            if fits
            else f", which is no mean a token in {'nats' if base == 'e' else 'bits'}: no perplexity"
        )
    if relation in ("by_steps", "by_steps_since_line"):
        return f"the {name} divided by the number of steps it is summed over: a true mean"
    if divisor == 1:
        return f"the same as the {name}"
    text = f"the {name} divided by {compact(divisor)} on every line"
    if reading.gathered == "since_line" and question.fresh:
        first, of_other = question.points[0], other[0]
        return (
            f"{text}, from step {first.step} on, where only one step's loss had been added up: "
            f"{compact6(of_other.value)} is {compact6(first.value)} / {compact(divisor)}. Its first value is no average"
        )
    if reading.summed in _SUMS and divisor == reading.terms:
        return f"{text}: the mean a token"
    return text + ("" if reading.gathered == "since_line" else ", of which I know no reason")


def compact6(value: float) -> str:
    """Up to six significant digits."""
    return f"{value:.6g}"


def _summed(reading: Reading) -> str:
    unit = _UNITS[reading.unit]
    if reading.summed == "mean":
        return f"the mean loss a token{unit or ', in nats'}"
    if reading.summed == "unknown":
        if reading.terms < 1:
            return f"the mean loss a token{unit}, divided by about {1 / reading.terms:.3g}"
        return f"the loss{unit} added up over about {reading.terms:.3g} terms (time steps, or rows of the batch)"
    return f"the loss{unit} added up {_SUMS[reading.summed].format(compact(reading.terms))}"


def meaning(reading: Reading, question: Question) -> str:
    """What two readings have in common if they tell the same of the training."""
    if reading.gathered == "since_line" and reading.divisor == question.interval and not question.fresh:
        return f"{reading.unit} {reading.summed} line"  # a sum over all steps of a line divided by them is their mean
    unit = "" if reading.summed == "unknown" else reading.unit
    gathered = reading.gathered if reading.gathered == "line" or len(question.points) > 2 else "since the first line"
    return f"{unit} {reading.summed} {gathered} {'' if reading.divisor == 1 else 'divided'}".strip()


def in_short(reading: Reading) -> str:
    """A few words on a reading, for a list of them."""
    if reading.unit == "perplexity":
        return "a perplexity"
    parts = [
        "the mean a token"
        if reading.summed == "mean"
        else f"a sum over {reading.terms:.3g} terms"
        if reading.terms > 1
        else f"a mean over {1 / reading.terms:.3g}"
    ]
    if reading.unit != "nats":
        parts.append(f"in {'bits' if reading.unit == 'bits' else 'base-10 logarithms'}")
    if reading.gathered != "line":
        parts.append(f"added up since {'the last line' if reading.gathered == 'since_line' else 'the start'}")
    if reading.divisor != 1:
        parts.append(f"divided by {compact(reading.divisor)}")
    return " ".join(parts)


def uniform(vocabulary: int) -> str:
    """`ln 10,000 = 9.2103`."""
    return f"ln {vocabulary:,} = {math.log(vocabulary):.4f}"
