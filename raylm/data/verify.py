"""Is a dataset whole: every byte of it, against its manifest and its index."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raylm.data.dataset import Dataset, check_size, dataset_of, read_manifest
from raylm.data.manifest import INDEX, MANIFEST, REJECTS, VOCABULARY, FileRecord, load_manifest
from raylm.data.remote import open_storage
from raylm.data.storage import Storage
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
