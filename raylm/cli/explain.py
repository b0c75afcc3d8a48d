"""`raylm explain`: is something wrong with a training, told from the numbers that it printed; no run is needed."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from raylm.cli.options import parse_options
from raylm.cli.tables import print_json
from raylm.config import Section
from raylm.errors import UserError
from raylm.observe.advice import Facts
from raylm.observe.events import NAME as EVENTS
from raylm.observe.events import finite_json
from raylm.observe.explanation import Explanation, explain
from raylm.observe.figures import count, nats, perplexity, perplexity_of
from raylm.observe.printout import AVERAGE, BITS, LOSS, PERPLEXITY, Point, Printout, point, read_printout
from raylm.observe.run_folder import NAME as CONFIG
from raylm.observe.run_folder import read_record

SUMMARY = "Say what the numbers that a training printed mean, and whether something is wrong with it."
_ABOUT = f"""{SUMMARY} Of any program's training: no run of raylm is needed.

examples:
  raylm explain --vocab 10000 --optimizer sgd --lr 1.0 --loss 0=9.2027 100=496.782 --average 0=0.092027 100=4.96782
  raylm explain --vocab 33278 --optimizer sgd --log train.log
"""
_SHOWN = 8


class Explain(Section):
    loss: tuple[str, ...] = ()
    """Printed losses, STEP=VALUE each."""
    average: tuple[str, ...] = ()
    """What was printed beside them as average, STEP=VALUE each."""
    perplexity: tuple[str, ...] = ()
    """Printed perplexities, STEP=VALUE each."""
    bits: tuple[str, ...] = ()
    """Printed bits a token, STEP=VALUE each."""
    log: Path | None = None
    """A log file instead: JSON lines (events.jsonl too), CSV, Keras's progress lines, or lines of names and numbers."""
    vocab: int | None = Field(None, ge=2)
    """Words of the vocabulary."""
    optimizer: str | None = None
    """sgd, momentum, adam, adamw, rmsprop, adagrad."""
    lr: PositiveFloat | None = None
    """Learning rate."""
    clip: PositiveFloat | None = None
    """Norm at which the gradient is clipped."""
    batch: PositiveInt | None = None
    """Rows of a batch."""
    window: PositiveInt | None = None
    """Time steps of a row."""
    loss_scale: Literal["token_mean", "sequence_sum"] | None = None
    """What the gradient is of, where it is not of what is printed: a mean over tokens, or a sum over --window steps."""
    decay_steps: PositiveInt | None = None
    """The step at which the learning rate first falls."""
    one_hot: bool = False
    """The labels are one-hot vectors, not ids."""
    as_json: bool = Field(False, alias="json")
    """Print JSON."""


def main(arguments: Sequence[str], program: str = "raylm explain") -> int:
    """The exit code: 0 whatever the answer. Raises: UserError: a mistake of the user's."""
    options = parse_options(Explain, arguments, program=program, about=_ABOUT)
    given = {
        name: _points(f"--{option}", values)
        for name, option, values in (
            (LOSS, "loss", options.loss),
            (AVERAGE, "average", options.average),
            (PERPLEXITY, "perplexity", options.perplexity),
            (BITS, "bits", options.bits),
        )
        if values
    }
    printout = _read(options.log) if options.log is not None else Printout()
    printout = Printout(**{**vars(printout), "series": {**printout.series, **given}})
    if not printout.series:
        raise UserError("name the numbers, as in --loss 0=9.2 100=6.1, or a file that holds them with --log FILE")
    if options.loss_scale == "sequence_sum" and options.window is None:
        raise UserError("--loss-scale sequence_sum: over how many time steps? Add --window")
    found = explain(printout, _facts(options))
    if options.as_json:
        print_json(sys.stdout, finite_json(asdict(found)))
    else:
        print("\n".join(lines(found, shutil.get_terminal_size((100, 24)).columns)))
    return 0


def _facts(options: Explain) -> Facts:
    """What the options say; of a run of raylm's, what its config.json says where they do not."""
    facts = Facts(
        options.vocab,
        options.optimizer,
        options.lr,
        options.clip,
        options.batch,
        options.window,
        options.decay_steps,
        options.one_hot,
        options.window if options.loss_scale == "sequence_sum" else 1.0 if options.loss_scale else None,
    )
    if options.log is None or options.log.name != EVENTS or not options.log.with_name(CONFIG).exists():
        return facts
    config = read_record(options.log.parent).config
    return Facts(
        facts.vocabulary,
        facts.optimizer or config.optimizer.name,
        facts.learning_rate or config.schedule.learning_rate,
        facts.clip or config.optimizer.clip_norm,
        facts.batch or config.data.lanes,
        facts.window or config.data.window,
        facts.decay_steps,
        facts.one_hot,
        facts.loss_terms or (config.data.window if config.optimizer.loss_scale == "sequence_sum" else 1.0),
    )


def lines(found: Explanation, width: int) -> list[str]:
    """The answer as text that fits a width, the verdict first."""
    told = [*_wrapped(found.verdict, "", width)]
    if found.printed:
        told += ["", "What is printed", *_pairs(found.printed, width)]
    else:
        shares = [(f"{each.probability:.0%}", each.reading) for each in found.readings]
        told += ["", "What may be printed", *_pairs(shares, width)]
    if found.course or found.statements:
        told += ["", "What the loss did"]
        told += _course(found)
        for line in found.statements:
            told += _wrapped(line, "  ", width)
    told += ["", "Is the learning rate too high?"]
    for line in found.rate_answer:
        told += _wrapped(line, "  ", width)
    for title, texts in (("Also", found.notes), ("Add, to know more", found.add)):
        if texts:
            told += ["", title, *(line for text in texts for line in _wrapped(text, "  ", width))]
    if found.print_instead:
        told += ["", "Print instead", *(f"  {line}" for line in found.print_instead)]
    return told


def _course(found: Explanation) -> list[str]:
    points = list(found.course)
    if len(points) > _SHOWN:
        points = [points[index * (len(points) - 1) // (_SHOWN - 1)] for index in range(_SHOWN)]
    steps = max((len(count(each.step)) for each in points), default=0)
    return [
        f"  step {count(each.step):>{steps}}  {nats(each.nats):>7} nats  perplexity "
        f"{perplexity(perplexity_of(each.nats)):>8}" + (f"  mean of {each.steps:,} steps" if each.steps > 1 else "")
        for each in points
    ]


def _pairs(pairs: Sequence[tuple[str, str]], width: int) -> list[str]:
    names = max((len(name) for name, _ in pairs), default=0)
    return [line for name, text in pairs for line in _wrapped(text, f"  {name:<{names}}  ", width)]


def _wrapped(text: str, first: str, width: int) -> list[str]:
    return textwrap.wrap(
        text, max(40, min(width, 100)), initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False
    )


def _points(option: str, values: Sequence[str]) -> tuple[Point, ...]:
    """Raises: UserError: a value is not STEP=VALUE, or a step is named twice."""
    points: dict[int, Point] = {}
    for value in values:
        step, equals, text = value.partition("=")
        try:
            each = point(int(step), text)
        except (ValueError, OverflowError):
            raise UserError(f"{option} {value}: expected STEP=VALUE, as in {option} 100=6.12") from None
        if not equals or each.step < 0:
            raise UserError(f"{option} {value}: expected STEP=VALUE with a step from 0, as in {option} 100=6.12")
        if each.step in points:
            raise UserError(f"{option} {value}: step {step} has a value already")
        points[each.step] = each
    return tuple(points[step] for step in sorted(points))


def _read(path: Path) -> Printout:
    try:
        return read_printout(path.read_text(encoding="utf-8", errors="replace"), str(path))
    except OSError as error:
        raise UserError(f"--log {path} cannot be read: {error.strerror}") from None
