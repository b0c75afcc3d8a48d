"""Writes a dataset: whole or not at all.

All is written in a hidden folder beside the destination, flushed to the disk, and renamed as the last act.

Where many processes prepare one dataset, each writes shards of its own with `ChunkedShards`, and one of them
calls `seal` with the records of all.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from raylm.data.caching import storing
from raylm.data.manifest import (
    INDEX,
    MANIFEST,
    REJECTS,
    SHARDS,
    VOCABULARY,
    FileRecord,
    Manifest,
    Totals,
    dump_manifest,
    load_manifest,
)
from raylm.data.packing import ChunkedShards
from raylm.data.shard import HashedFile, ShardRecord, index_table
from raylm.data.vocabulary import Vocabulary
from raylm.errors import UserError


class DatasetWriter:
    """Writes rows of token ids as the dataset `destination`.

    A chunk holds whole rows, up to `chunk_tokens` ids (a longer row is a chunk of its own); a shard holds
    whole chunks, up to `shard_tokens`. `provenance` (plain JSON) is kept in the manifest and does not change
    the `dataset_id`. Leave the context without `commit` and nothing remains.

    Raises:
        UserError: the destination is there already, or cannot be written.
    """

    def __init__(
        self,
        destination: str | Path,
        vocabulary: Vocabulary,
        *,
        chunk_tokens: int = 1 << 16,
        shard_tokens: int = 1 << 24,
        provenance: Mapping[str, object] | None = None,
    ) -> None:
        if chunk_tokens < 1 or shard_tokens < chunk_tokens:
            raise UserError(
                f"chunk_tokens {chunk_tokens}, shard_tokens {shard_tokens}: a chunk holds at least one token "
                "and a shard at least one chunk"
            )
        self._destination = Path(destination)
        self._vocabulary = vocabulary
        self._provenance = dict(provenance or {})
        self._rejects: HashedFile | None = None
        self._rejected = 0
        refuse_existing(self._destination)
        self._partial = partial_folder(self._destination)
        self._shards = ChunkedShards(
            lambda number: self._partial / shard_name(number),
            vocabulary,
            chunk_tokens=chunk_tokens,
            shard_tokens=shard_tokens,
        )

    def append(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Add rows: their ids concatenated, and the length of each.

        Raises:
            ValueError: lengths do not add up to the ids, a row is empty, or an id is outside the vocabulary.
            UserError: the disk is full or cannot be written.
        """
        tokens, lengths = np.asarray(tokens), np.asarray(lengths, np.int64)
        if int(lengths.sum()) != len(tokens) or (len(lengths) and int(lengths.min()) < 1):
            raise ValueError(f"rows of {int(lengths.sum())} ids in all, none empty, cannot hold {len(tokens)} ids")
        if not len(tokens):
            return
        if int(tokens.min()) < 0 or int(tokens.max()) >= len(self._vocabulary):
            raise ValueError(f"ids {tokens.min()} to {tokens.max()}: the vocabulary has {len(self._vocabulary)}")
        self._shards.append(tokens, lengths)

    def reject(self, source: str, line: int, reason: str) -> None:
        """Record a line (1-based) of a source that was left out, and why."""
        with storing(self._partial):
            if self._rejects is None:
                path = self._partial / REJECTS
                path.parent.mkdir()
                self._rejects = HashedFile(path)
            entry = {"source": source, "line": line, "reason": reason}
            self._rejects.write((json.dumps(entry, ensure_ascii=False) + "\n").encode())
            self._rejected += 1

    def commit(self) -> str:
        """Finish the dataset and put it in its place; returns its `dataset_id`.

        Raises:
            UserError: there is no row, the disk is full, or something else is at the destination by now.
        """
        shards = self._shards.finish()
        with storing(self._partial):
            rejects = self._rejects.seal() if self._rejects else None
        return seal(
            self._partial,
            self._destination,
            self._vocabulary,
            shards,
            rejected=self._rejected,
            rejects=rejects,
            provenance=self._provenance,
        )

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shards.abandon()
        if self._rejects is not None:
            self._rejects.close()
        shutil.rmtree(self._partial, ignore_errors=True)


def shard_name(number: int) -> str:
    """The name of a shard relative to its dataset."""
    return f"{SHARDS}/{number:05d}.arrow"


def partial_folder(destination: Path) -> Path:
    """A new hidden folder beside the destination, with room for shards.

    Raises:
        UserError: it cannot be made.
    """
    partial = destination.parent / f".{destination.name}.{secrets.token_hex(6)}.partial"
    with storing(destination):
        (partial / SHARDS).mkdir(parents=True)
    return partial


def seal(
    partial: Path,
    destination: Path,
    vocabulary: Vocabulary,
    shards: Sequence[ShardRecord],
    *,
    rejected: int = 0,
    rejects: FileRecord | None = None,
    provenance: Mapping[str, object] | None = None,
) -> str:
    """Make a dataset of a folder of finished shards: add index, vocabulary and manifest, then rename it.

    Returns the `dataset_id`. Where the same dataset is at the destination already, that one stays.

    Raises:
        UserError: there is no row, the disk is full, or something else is at the destination.
    """
    chunks = [chunk for shard in shards for chunk in shard.chunks]
    if not chunks:
        raise UserError(f"{destination}: there is not one row to write; look at the input text")
    with storing(destination):
        files = {shard_name(number): shard.file for number, shard in enumerate(shards)}
        files[INDEX] = _write_table(partial / INDEX, index_table(shards))
        files[VOCABULARY] = _write_table(
            partial / VOCABULARY, pa.table({"word": pa.array(vocabulary.words, pa.utf8())})
        )
        manifest = Manifest(
            id_type=vocabulary.id_type.name,
            totals=Totals(
                tokens=sum(chunk.tokens for chunk in chunks),
                rows=sum(chunk.rows for chunk in chunks),
                chunks=len(chunks),
                unknowns=sum(chunk.unknowns for chunk in chunks),
                words=len(vocabulary),
            ),
            vocabulary_sha256=vocabulary.sha256,
            files=files,
            rejected=rejected,
            rejects=rejects,
            provenance=dict(provenance or {}),
        )
        temporary = HashedFile(partial / f".{MANIFEST}")
        temporary.write(dump_manifest(manifest))
        temporary.seal()
        (partial / f".{MANIFEST}").rename(partial / MANIFEST)
        for folder in (partial / SHARDS, partial):
            sync_folder(folder)
        _publish(partial, destination, manifest.dataset_id)
    return manifest.dataset_id


def _publish(partial: Path, destination: Path, dataset_id: str) -> None:
    try:
        partial.rename(destination)
    except OSError:
        there = destination / MANIFEST
        if not there.is_file() or load_manifest(there.read_bytes(), str(there)).dataset_id != dataset_id:
            raise
        shutil.rmtree(partial, ignore_errors=True)
    sync_folder(destination.parent)


def _write_table(path: Path, table: pa.Table) -> FileRecord:
    file = HashedFile(path)
    with pa.ipc.new_file(pa.PythonFile(file, "w"), table.schema) as writer:
        writer.write_table(table)
    return file.seal()


def refuse_existing(destination: Path) -> None:
    """Raises UserError where there is something at a path, an empty folder aside."""
    with storing(destination):
        if destination.is_dir() and not any(destination.iterdir()):
            return
        if destination.exists():
            raise UserError(f"{destination}: there is something already; remove it, or choose another place")


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
