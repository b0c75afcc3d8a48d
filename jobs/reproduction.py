"""What `reproduce.py` found, as figures and as lines of Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from raylm.observe import figures
from raylm.observe.events import Event, number, validation_losses
from raylm.observe.summary import Summary


@dataclass(frozen=True)
class Proof:
    """Published perplexities on PTB, and the epochs that two cores can train in an hour; None: all."""

    valid: float
    test: float
    epochs: int | None


PROOFS = {
    "ptb-small": Proof(121.4, 115.9, None),
    "ptb-medium": Proof(86.2, 82.1, 3),
    "ptb-large": Proof(82.2, 78.3, 1),
    "ptb-awd": Proof(61.2, 58.8, 2),
}


@dataclass(frozen=True)
class Side:
    """What one program reached with one seed: nats a token on the valid text after each epoch, on the test text after
    the last; seconds of training and evaluation."""

    valid: tuple[float, ...]
    test: float | None
    seconds: float


@dataclass(frozen=True)
class Pair:
    """Both sides with one seed."""

    seed: int
    raylm: Side
    pytorch: Side | None


def row(recipe: str, proof: Proof, epochs: int, pairs: Sequence[Pair], command: str) -> str:
    """The table's head and the recipe's row, in Markdown. Several seeds: perplexities of their mean nats."""
    ours, theirs = [pair.raylm for pair in pairs], [pair.pytorch for pair in pairs if pair.pytorch]
    difference, seconds = "", f"{fmean(side.seconds for side in ours):,.0f}"
    if theirs:
        difference = f"{relative_difference(ours, theirs):+.2%}"
        seconds += f" / {fmean(side.seconds for side in theirs):,.0f}"
    if len(pairs) > 1:
        spreads = [f"{(max(last) - min(last)) / fmean(last):.2%}" for last in map(_last, (ours, theirs)) if last]
        difference += f" (among seeds: {', '.join(spreads)})"
    cells = (
        f"`{recipe}`, {epochs} epochs",
        f"{proof.valid} / {proof.test}",
        _perplexities(ours),
        _perplexities(theirs) if theirs else "",
        difference,
        seconds,
        f"`{command}`",
    )
    head = (
        "| recipe | published, trained to its end | raylm, valid / test | PyTorch | nats, valid | seconds | command |"
    )
    return f"{head}\n|{7 * '---|'}\n| {' | '.join(cells)} |\n"


def relative_difference(ours: Sequence[Side], theirs: Sequence[Side]) -> float:
    """How much higher raylm's mean validation loss is after the last epoch, as a share of PyTorch's."""
    return fmean(_last(ours)) / fmean(_last(theirs)) - 1


def curves(pairs: Sequence[Pair]) -> list[str]:
    """A line for each seed and epoch: the valid nats of both sides."""
    lines = []
    for pair in pairs:
        others = pair.pytorch.valid if pair.pytorch else ()
        for epoch, nats in enumerate(pair.raylm.valid):
            beside = f", PyTorch {others[epoch]:.4f} ({nats / others[epoch] - 1:+.2%})" if epoch < len(others) else ""
            lines.append(f"seed {pair.seed}, epoch {epoch + 1}: raylm {nats:.4f} nats{beside}")
    return lines


def bytes_row(summary: Summary, pair: Pair, command: str) -> str:
    """What a run of `bytes` reached on the valid text, beside the floor of pairs, in bits a byte."""
    reached, floor = pair.raylm.valid[-1], summary.bigram_nats or math.nan
    verdict = "below" if below_floor(summary, pair) else "NOT below"
    found, least = (f"{nats / math.log(2):.2f} bits a byte ({math.exp(nats):.2f})" for nats in (reached, floor))
    return f"valid {found}, {verdict} the bigram floor of {least}, in {pair.raylm.seconds:,.0f} s: {command}"


def below_floor(summary: Summary, pair: Pair) -> bool:
    """Whether raylm's side ended below what pairs of bytes tell."""
    return pair.raylm.valid[-1] < (summary.bigram_nats or -math.inf)


def side_of(events: Sequence[Event]) -> Side:
    """raylm's side by its log; time passes between events, but not before a start or a resume."""
    spans = ((before["time"], after) for before, after in pairwise(events))
    seconds = sum(after["time"] - before for before, after in spans if after["kind"] not in ("start", "resume"))
    test = [number(event["nats"]) for event in events if event["kind"] == "eval" and event["split"] == "test"]
    return Side(tuple(validation_losses(events).values()), test[-1] if test else None, seconds)


def _last(sides: Sequence[Side]) -> list[float]:
    return [side.valid[-1] for side in sides]


def _perplexities(sides: Sequence[Side]) -> str:
    tests = [side.test for side in sides if side.test is not None]
    values = (fmean(_last(sides)), fmean(tests) if tests else math.nan)
    return " / ".join(figures.perplexity(math.exp(nats)) for nats in values)
