"""Looking into a dataset: is it whole, what is in it, and what does each lane read where."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from raylm.data.cursor import Cursor
from raylm.data.dataset import Dataset, check_size, dataset_of, read_manifest
from raylm.data.manifest import INDEX, MANIFEST, REJECTS, VOCABULARY, FileRecord, load_manifest
from raylm.data.order import Purpose, draws
from raylm.data.remote import open_storage
from raylm.data.storage import Storage
from raylm.data.streams import Place
from raylm.data.writer import shard_name
from raylm.errors import UserError

PIECE = 1 << 23
"""Bytes of a file that are read and hashed at a time."""


@dataclass(frozen=True)
class Verification:
    """What a full check found: one line for each fault, none where the dataset is whole.

    `dataset_id` is None where the manifest cannot tell it.
    """

    dataset_id: str | None
    files: int
    bytes: int
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Bin:
    """How many rows have first to last tokens."""

    first: int
    last: int
    rows: int


@dataclass(frozen=True)
class Frequency:
    """How often a word occurs, and its share of all tokens."""

    word: str
    count: int
    share: float


@dataclass(frozen=True)
class Description:
    """What is in a dataset. Lengths are in tokens, `<eos>` counted; entropy is in nats a token.

    `unigram_perplexity` is the exponential of the entropy: what the best model without context reaches here.
    """

    dataset: Dataset
    bytes: int
    shards: int
    unknown_rate: float
    shortest_row: int
    mean_row: float
    longest_row: int
    row_lengths: tuple[Bin, ...]
    rows_without_target: int
    distinct_words: int
    most_frequent: tuple[Frequency, ...]
    entropy: float
    unigram_perplexity: float


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


def verify_dataset(path: str | Path, say: Callable[[int, int], None] = lambda done, total: None) -> Verification:
    """Read every byte of a dataset: SHA-256 of each file, CRC-32 of each chunk, and its ids against the index.

    `say` is told the bytes done and the bytes in all. Every fault is listed, not only the first.

    Raises:
        UserError: there is no dataset.
    """
    storage = open_storage(path)
    data = read_manifest(storage)
    try:
        manifest = load_manifest(data, storage.place(MANIFEST))
    except UserError as error:
        return Verification(None, 1, len(data), (str(error),))
    records = dict(manifest.files)
    if manifest.rejects is not None:
        records[REJECTS] = manifest.rejects
    faults: dict[str, list[str]] = {name: [] for name in records}
    dataset: Dataset | None = None
    try:
        dataset = dataset_of(storage, manifest)
    except UserError as error:
        faults[MANIFEST] = [str(error)]
    total, done = sum(record.bytes for record in records.values()), 0
    for name, record in records.items():
        try:
            check_size(storage, name, record)
            digest = hashlib.sha256()
            for piece in _pieces(storage, name, record.bytes):
                digest.update(piece)
                say(done := done + len(piece), total)
        except UserError as error:
            faults[name] = [str(error)]
            continue
        faults[name] = list(_chunk_faults(dataset, name)) if dataset else []
        if digest.hexdigest() != record.sha256 and not faults[name]:
            faults[name] = [_digest_fault(storage, dataset, name, record, digest.hexdigest())]
    if faults[INDEX] or faults[VOCABULARY]:
        faults.pop(MANIFEST, None)  # that no dataset can be made of them is the same fault
    listed = tuple(line for lines in faults.values() for line in lines)
    return Verification(manifest.dataset_id, len(records), total, listed)


def describe(dataset: Dataset, most_frequent: int = 20) -> Description:
    """Count everything in a dataset; reads all of it.

    Raises:
        UserError: a chunk is damaged.
    """
    counts = np.zeros(len(dataset.vocabulary), np.int64)
    lengths: dict[int, int] = {}
    for number in range(dataset.manifest.totals.chunks):
        chunk = dataset.chunk(number)
        counts += np.bincount(chunk.tokens, minlength=len(counts))
        for length, rows in zip(*np.unique(np.diff(chunk.row_offsets), return_counts=True), strict=True):
            lengths[int(length)] = lengths.get(int(length), 0) + int(rows)
    shares = counts[counts > 0] / dataset.tokens
    entropy = float(-(shares * np.log(shares)).sum())
    top = np.argsort(-counts, kind="stable")[:most_frequent]
    return Description(
        dataset=dataset,
        bytes=sum(record.bytes for record in dataset.manifest.files.values()),
        shards=int(dataset.index.shard[-1]) + 1,
        unknown_rate=dataset.unknowns / dataset.tokens,
        shortest_row=min(lengths),
        mean_row=dataset.tokens / dataset.rows,
        longest_row=max(lengths),
        row_lengths=_histogram(lengths),
        rows_without_target=lengths.get(1, 0),
        distinct_words=int(np.count_nonzero(counts)),
        most_frequent=tuple(
            Frequency(dataset.vocabulary.words[word], int(counts[word]), float(counts[word] / dataset.tokens))
            for word in top
            if counts[word]
        ),
        entropy=entropy,
        unigram_perplexity=math.exp(entropy),
    )


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


def _chunk_faults(dataset: Dataset, shard: str) -> Iterator[str]:
    index, unknown = dataset.index, dataset.vocabulary.unknown
    for number in _chunks_of(dataset, shard):
        try:
            tokens = dataset.chunk(number).tokens
        except UserError as error:
            yield str(error)
            continue
        unknowns = 0 if unknown is None else int(np.count_nonzero(tokens == unknown))
        found = (int(tokens.min()), int(tokens.max()), unknowns)
        expected = (int(index.min_id[number]), int(index.max_id[number]), int(index.unknowns[number]))
        if found != expected:
            yield (
                f"{dataset.storage.place(shard)}: chunk {number}: expected smallest and largest id and unknowns "
                f"{expected}, found {found}"
            )


def _chunks_of(dataset: Dataset, shard: str) -> list[int]:
    shards = dataset.index.shard
    numbers = [number for number in range(int(shards[-1]) + 1) if shard_name(number) == shard]
    return [int(chunk) for chunk in np.flatnonzero(np.isin(shards, numbers))]


def _digest_fault(storage: Storage, dataset: Dataset | None, name: str, record: FileRecord, found: str) -> str:
    chunks = _chunks_of(dataset, name) if dataset else []
    where_it_is = f"somewhere in bytes 0 to {record.bytes}"
    if dataset and chunks:
        first = int(dataset.index.offset[chunks[0]])
        last = int(dataset.index.offset[chunks[-1]] + dataset.index.length[chunks[-1]])
        where_it_is = f"outside its chunks, in bytes 0 to {first} or {last} to {record.bytes}"
    return (
        f"{storage.place(name)}: expected SHA-256 {record.sha256}, found {found}: damaged {where_it_is}; "
        "copy the file again"
    )


def _pieces(storage: Storage, name: str, size: int) -> Iterator[memoryview]:
    for offset in range(0, size, PIECE):
        length = min(PIECE, size - offset)
        origin = storage.read_again(name, offset, length)  # a copy that is kept here would hide what has become of it
        yield memoryview(storage.read_range(name, offset, length) if origin is None else origin)


def _histogram(lengths: dict[int, int]) -> tuple[Bin, ...]:
    """Bins that double: 1, 2, 3-4, 5-8, ..."""
    bins: dict[int, int] = {}
    for length, rows in lengths.items():
        power = (length - 1).bit_length()
        bins[power] = bins.get(power, 0) + rows
    return tuple(Bin((1 << power - 1) + 1 if power else 1, 1 << power, bins[power]) for power in sorted(bins))
