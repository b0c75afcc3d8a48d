"""Numbers that a training printed, whatever printed them: a log file, or pairs of step and value, become series.

Known are JSON lines (raylm's events.jsonl among them), CSV, and lines with names before numbers: `Step 0 Loss: 9.2027
Average loss 0.092027`, `step=0 loss=9.2`, Keras's progress lines, `| epoch 1 | 200/2323 batches | lr 20.00 | ...`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raylm.errors import UserError

LOSS, AVERAGE, PERPLEXITY, BITS = "loss", "average", "perplexity", "bits"
"""The series that are told apart by name; what is validated or tested on is none of them."""


@dataclass(frozen=True)
class Point:
    """A printed value: at which step, and half a unit of its last digit."""

    step: int
    value: float
    half_unit: float = 0.0


@dataclass(frozen=True)
class Printout:
    """All that was printed of a training. Steps count updates, or epochs where nothing finer was printed."""

    series: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    learning_rate: float | None = None
    """The highest that was printed."""
    vocabulary: int | None = None
    in_epochs: bool = False
    since_epoch: bool = False
    """Keras's progress lines: each value is the mean since the epoch began."""


def point(step: int, text: str) -> Point:
    """A value as it was printed. Raises ValueError: it is no number."""
    mantissa, _, exponent = text.lower().replace(",", "").partition("e")
    decimals = len(mantissa.partition(".")[2])
    value = float(text.replace(",", ""))
    return Point(step, value, 0.5 * 10.0 ** (int(exponent or 0) - decimals) if value - value == 0 else 0.0)


def read_printout(text: str, place: str) -> Printout:
    """The series in a log.

    Raises:
        UserError: no line holds both a step or an epoch and a loss or a perplexity.
    """
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x08", "", line) for line in re.split(r"[\r\n]+", text)]
    rows = list(_json_rows(lines) or _csv_rows(lines) or _text_rows(lines))
    found = _gathered(rows)
    if not found.series:
        raise UserError(
            f"{place}: no line has a step and a loss that I can read; name the numbers, as in --loss 0=9.2 100=6.1"
        )
    if any(re.match(r"\s*\d+/\d+ (\[|[━─]|\S*\s*\d+m?s)", line) for line in lines):
        return replace(found, since_epoch=True)
    return found


_STEPS = ("step", "global_step", "iteration", "iter", "update", "updates", "num_updates", "batch", "i", "it")
_EPOCHS = ("epoch", "ep")
_RATES = ("learning_rate", "lr", "learning rate")


def _name_of(label: str) -> str | None:
    """The series that a label means, None for another."""
    words = set(re.split(r"[^a-z]+", label.lower()))
    if words & {"val", "valid", "validation", "test", "eval", "dev", "scale"}:
        return None
    if words & {"ppl", "perplexity", "pplx"}:
        return PERPLEXITY
    if words & {"bpc", "bpw", "bits", "bpt"}:
        return BITS
    if words & {"loss", "nll", "xent", "xe", "cost", "entropy", "crossentropy", "ce"}:
        return AVERAGE if words & {"average", "avg", "mean"} else LOSS
    return AVERAGE if words & {"average", "avg"} else None


@dataclass(frozen=True)
class _Row:
    """What one line says: names as printed, values as text; `of` is the number of steps in an epoch."""

    values: Mapping[str, str]
    step: int | None = None
    epoch: int | None = None
    of: int | None = None
    rate: float | None = None
    vocabulary: int | None = None


def _json_rows(lines: Sequence[str]) -> list[_Row]:
    rows = []
    for line in lines:
        if line.lstrip().startswith("{"):
            try:
                content = json.loads(line, parse_float=str, parse_int=str)
            except (ValueError, RecursionError):
                continue  # a last line that is not written yet, or chatter
            if isinstance(content, dict) and content.get("kind", "step") in ("step", "start"):
                rows.append(_row({str(key): str(value) for key, value in content.items()}))
    return rows


def _csv_rows(lines: Sequence[str]) -> list[_Row]:
    filled = [line for line in lines if line.strip()]
    for delimiter in ",;\t":
        columns = [column.strip() for column in filled[0].split(delimiter)] if filled else []
        if len(columns) > 1 and any(map(_name_of, columns)) and not any(map(_PAIR.search, columns)):
            rows = (line.split(delimiter) for line in filled[1:])
            return [_row(dict(zip(columns, (cell.strip(' "') for cell in row), strict=False))) for row in rows]
    return []


def _row(content: Mapping[str, str]) -> _Row:
    keys = {key.lower().rpartition("/")[2].strip(): value.strip() for key, value in content.items()}
    return _Row(
        {key: value for key, value in content.items() if _name_of(key)},
        next((number for name in _STEPS if (number := _whole(keys.get(name))) is not None), None),
        next((number for name in _EPOCHS if (number := _whole(keys.get(name))) is not None), None),
        rate=next((rate for name in _RATES if (rate := _number(keys.get(name))) is not None), None),
        vocabulary=_whole(keys.get("vocabulary")) or _whole(keys.get("vocab_size")),
    )


_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|-?inf(?:inity)?", re.IGNORECASE)
_PAIR = re.compile(rf"([A-Za-z][A-Za-z_ /()-]*?)\s*[:=]?\s*(?<![\w.])({_NUMBER.pattern})(?![\w.]*\w)", re.IGNORECASE)
_STEP = re.compile(rf"(?<![\w/])(?:{'|'.join(_STEPS)})s?\b\s*[:=#]?\s*\[?\s*(\d[\d,]*)", re.IGNORECASE)
_EPOCH = re.compile(r"\b(?:epoch|ep)\b\s*[:=#]?\s*\[?\s*(\d+)", re.IGNORECASE)
_SHARE = re.compile(r"(?<![\d.])(\d+)\s*/\s*(\d+)(?![\d.])")
_RATE = re.compile(rf"\b(?:lr|learning[ _]rate)\b\s*[:=]?\s*({_NUMBER.pattern})", re.IGNORECASE)


_TOLD = re.compile(r"\s*(incident|rollback|verdict|evaluation|sample)\b.*:", re.IGNORECASE)  # raylm's other lines
_LONGEST_LINE = 2000


def _text_rows(lines: Iterable[str]) -> Iterator[_Row]:
    epoch: int | None = None
    for line in lines:
        line = line[:_LONGEST_LINE]
        if _TOLD.match(line):
            continue
        named = _EPOCH.search(line)
        epoch = _whole(named[1]) if named else epoch
        values = {label: text for label, text in _PAIR.findall(line) if _name_of(label)}
        if not values:
            continue
        step = _STEP.search(line)
        rest = _EPOCH.sub("", line) if named is None else line[: named.start()] + _rest(line[named.end() :])
        share = _SHARE.search(rest)
        rate = _RATE.search(line)
        yield _Row(
            values,
            _whole(step[1]) if step else _whole(share[1]) if share else None,
            epoch,
            _whole(share[2]) if share else None,
            _number(rate[1]) if rate else None,
        )


def _rest(after_epoch: str) -> str:
    """Without the `/10` of `Epoch 1/10`."""
    return re.sub(r"^\s*/\s*\d+", "", after_epoch)


def _gathered(rows: Sequence[_Row]) -> Printout:
    """Rows in one count of steps: where it begins anew with an epoch, it goes on instead. Where steps were done again,
    as after a rollback, the last time counts."""
    in_epochs = all(row.step is None for row in rows if row.values)
    series: dict[str, dict[int, Point]] = {}
    first_epoch = next((row.epoch for row in rows if row.epoch is not None), 0)
    offset, last, interval, epoch = 0, -1, 1, first_epoch
    for row in rows:
        count = row.epoch if in_epochs else row.step
        if not row.values or count is None:
            continue
        if row.of is not None and row.epoch is not None and not in_epochs:
            offset = (row.epoch - first_epoch) * row.of
        elif offset + count < last and row.epoch is None:
            offset = last + interval - count
        elif offset + count < last and row.epoch != epoch:
            offset = last
        interval = offset + count - last if last >= 0 and offset + count > last else interval
        last, epoch = max(last, offset + count), row.epoch or 0
        for label, text in row.values.items():
            try:
                each = point(offset + count, text)
            except (ValueError, OverflowError):
                continue
            series.setdefault(_name_of(label) or LOSS, {})[each.step] = each
    return Printout(
        {name: tuple(sorted(points.values(), key=lambda each: each.step)) for name, points in series.items()},
        max((row.rate for row in rows if row.rate is not None), default=None),
        next((row.vocabulary for row in rows if row.vocabulary), None),
        in_epochs,
    )


def _number(text: Any) -> float | None:
    try:
        return None if text is None else float(str(text).replace(",", ""))
    except ValueError:
        return None


def _whole(text: Any) -> int | None:
    value = _number(text)
    return int(value) if value is not None and abs(value) < 1e15 and value == int(value) else None
