"""Which text it is: rows by their number, and what each lane reads at a position, with shard, chunk, row and words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from raylm.data.cursor import Cursor
from raylm.data.dataset import Dataset
from raylm.data.order import Purpose, draws
from raylm.data.streams import Place
from raylm.data.writer import shard_name
from raylm.errors import UserError


@dataclass(frozen=True)
class Row:
    """One row: its number in the dataset, where it lies, and its words."""

    number: int
    shard: str
    chunk: int
    text: str


@dataclass(frozen=True)
class Reading:
    """What one lane reads in one window: the row its first target is in, and the words, the first an input only."""

    lane: int
    dataset_id: str
    first_token: int
    targets: int
    shard: str
    chunk: int
    row: int
    text: str


class Positioned(Protocol):
    """A reader that can say where a position is: `Streams`, `Sentences` or `MixedStreams`."""

    def at(self, position: int) -> Cursor: ...
    def places(self, cursor: Cursor) -> tuple[Place, ...]: ...


def sample_rows(dataset: Dataset, count: int, seed: int) -> tuple[Row, ...]:
    """Rows drawn at random, each at most once, in their order in the dataset.

    Raises:
        UserError: a chunk is damaged.
    """
    drawn: set[int] = set()
    count, part = min(count, dataset.rows), 0
    while len(drawn) < count:
        for bits in draws(seed, Purpose.SAMPLE, 0, count, part).tolist():
            if len(drawn) < count:
                drawn.add(bits % dataset.rows)
        part += 1
    return tuple(_row(dataset, number) for number in sorted(drawn))


def where(reader: Positioned, position: int) -> tuple[Reading, ...]:
    """What every lane of the global batch reads at a position; lanes without targets are left out.

    Raises:
        UserError: the position is negative, or a chunk is damaged.
    """
    if position < 0:
        raise UserError(f"position {position}: positions count from 0")
    return readings(reader, reader.at(position))


def readings(reader: Positioned, cursor: Cursor) -> tuple[Reading, ...]:
    """What every lane of the global batch reads at a settled cursor; lanes without targets are left out.

    Raises:
        UserError: a chunk is damaged.
    """
    return tuple(_reading(place) for place in reader.places(cursor) if place.targets)


def locate(dataset: Dataset, token: int) -> tuple[str, int, int]:
    """The shard, the chunk and the row of a place of the token stream.

    Raises:
        UserError: the chunk is damaged.
    """
    chunk = dataset.locate(token)
    within = token - int(dataset.index.token_starts[chunk])
    row = int(np.searchsorted(dataset.chunk(chunk).row_offsets, within, side="right")) - 1
    return shard_name(int(dataset.index.shard[chunk])), chunk, int(dataset.index.row_starts[chunk]) + row


def _reading(place: Place) -> Reading:
    dataset = place.dataset
    shard, chunk, row = locate(dataset, place.first + 1)
    return Reading(
        lane=place.lane,
        dataset_id=dataset.dataset_id,
        first_token=place.first,
        targets=place.targets,
        shard=shard,
        chunk=chunk,
        row=row,
        text=dataset.vocabulary.decode(dataset.read(place.first, place.first + place.targets + 1)),
    )


def _row(dataset: Dataset, number: int) -> Row:
    chunk = int(np.searchsorted(dataset.index.row_starts, number, side="right")) - 1
    rows = dataset.chunk(chunk)
    begin, end = rows.row_offsets[number - int(dataset.index.row_starts[chunk]) :][:2]
    text = dataset.vocabulary.decode(rows.tokens[begin:end])
    return Row(number, shard_name(int(dataset.index.shard[chunk])), chunk, text)
