"""A dataset opened for reading, every part of it checked before it is used.

Opening checks the manifest, the size of every file, and the digests of the index and the vocabulary. A chunk
is checked when it is first touched: the CRC-32 of its bytes, then that every id is in the vocabulary. A fault
ends with a `UserError` that names the file, the chunk, the bytes, what was expected and what was found.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from bisect import bisect_right
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raylm.data.manifest import INDEX, MANIFEST, VOCABULARY, FileRecord, Manifest, load_manifest
from raylm.data.remote import open_storage
from raylm.data.shard import INDEX_SCHEMA, Chunk, chunk_schema, decode_chunk
from raylm.data.shardcache import ShardCache
from raylm.data.storage import Storage
from raylm.data.vocabulary import Vocabulary
from raylm.data.writer import shard_name
from raylm.errors import UserError


@dataclass(frozen=True)
class Index:
    """What is known of each chunk, one entry a chunk; the starts have one entry more, the total."""

    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    crc32: np.ndarray
    tokens: np.ndarray
    rows: np.ndarray
    min_id: np.ndarray
    max_id: np.ndarray
    unknowns: np.ndarray
    token_starts: np.ndarray
    row_starts: np.ndarray


class Dataset:
    """Token ids of one split: rows (sentences) in chunks, and the same as one stream of tokens.

    Safe to read from several threads.
    """

    def __init__(self, storage: Storage, manifest: Manifest, vocabulary: Vocabulary, index: Index) -> None:
        self.manifest = manifest
        self.dataset_id = manifest.dataset_id
        self.tokens = manifest.totals.tokens
        self.rows = manifest.totals.rows
        self.unknowns = manifest.totals.unknowns
        self.vocabulary = vocabulary
        self.index = index
        self.storage = storage
        self._schema = chunk_schema(vocabulary.id_type)
        self._starts: list[int] = index.token_starts.tolist()
        self._chunks: dict[int, Chunk] = {}
        self._lock = threading.Lock()

    @property
    def tokenizer(self) -> str:
        """What made tokens of its text."""
        return str(self.manifest.provenance.get("tokenizer", "whitespace"))

    def __repr__(self) -> str:
        return f"Dataset({self.storage.place('')!r}, {self.tokens:,} tokens, {self.rows:,} rows)"

    def read(self, start: int, stop: int) -> np.ndarray:
        """Ids [start, stop) of the token stream, uint16 or uint32, read-only where they lie in one chunk.

        Raises:
            UserError: a chunk is damaged or cannot be read.
            IndexError: the range is not within the stream.
        """
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens [{start}, {stop}) of {self.tokens}")
        number = self.locate(start)
        first = self._starts[number]
        if stop <= self._starts[number + 1]:
            return self.chunk(number).tokens[start - first : stop - first]
        parts = []
        while start < stop:
            first, end = self._starts[number], self._starts[number + 1]
            parts.append(self.chunk(number).tokens[start - first : min(stop, end) - first])
            start, number = min(stop, end), number + 1
        return np.concatenate(parts)

    def chunk(self, number: int) -> Chunk:
        """One chunk, checked if this is its first touch.

        Raises:
            UserError: it is damaged or cannot be read.
        """
        return self._chunks.get(number) or self._touch(number)

    def fetch(self, numbers: Iterable[int]) -> None:
        """Touch chunks several at once, where the storage answers several requests sooner than one by one.

        Raises:
            UserError: one is damaged or cannot be read.
        """
        missing = {number for number in numbers if number not in self._chunks}
        if self.storage.parallel > 1 and len(missing) > 1:
            with ThreadPoolExecutor(min(self.storage.parallel, len(missing))) as pool:
                list(pool.map(self.chunk, sorted(missing)))

    def locate(self, token: int) -> int:
        """The number of the chunk that holds a place of the token stream."""
        return bisect_right(self._starts, token, 0, len(self._starts) - 1) - 1

    def _touch(self, number: int) -> Chunk:
        index = self.index
        name = shard_name(int(index.shard[number]))
        offset, length = int(index.offset[number]), int(index.length[number])
        message = self.storage.read_range(name, offset, length)
        if zlib.crc32(message) != index.crc32[number]:
            fresh = self.storage.read_again(name, offset, length)
            if fresh is None or zlib.crc32(fresh) != index.crc32[number]:
                found = zlib.crc32(message if fresh is None else fresh)
                raise UserError(
                    f"{self._where(number)}: expected CRC-32 {index.crc32[number]:08x}, found {found:08x}: "
                    "the bytes are damaged; copy the file again, or prepare the dataset again"
                )
            message = fresh
        chunk = self._decode(number, message)
        self._check_ids(number, chunk)
        with self._lock:
            self._chunks[number] = chunk
            self._forget_the_oldest()
        return chunk

    def _forget_the_oldest(self) -> None:
        """Let go of chunks past the storage's limit; touched again, they are read and checked again."""
        limit = self.storage.memory_limit
        if limit is not None:
            held = sum(int(self.index.length[number]) for number in self._chunks)
            while held > limit and len(self._chunks) > 1:
                oldest = next(iter(self._chunks))
                held -= int(self.index.length[oldest])
                del self._chunks[oldest]

    def _decode(self, number: int, message: pa.Buffer) -> Chunk:
        tokens, rows = int(self.index.tokens[number]), int(self.index.rows[number])
        try:
            chunk = decode_chunk(message, self._schema)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{self._where(number)}: not a batch of sentences ({error}); prepare it again") from None
        if len(chunk.tokens) != tokens or len(chunk.row_offsets) != rows + 1:
            raise UserError(
                f"{self._where(number)}: expected {tokens:,} tokens in {rows:,} rows, found "
                f"{len(chunk.tokens):,} in {len(chunk.row_offsets) - 1:,}; prepare the dataset again"
            )
        return chunk

    def _check_ids(self, number: int, chunk: Chunk) -> None:
        limit = min(len(self.vocabulary) - 1, int(self.index.max_id[number]))
        if int(chunk.tokens.max()) > limit:
            at = int(np.argmax(chunk.tokens > limit))
            first = int.from_bytes(chunk.tokens[at : at + 1].tobytes(), "little")
            byte = int(self.index.offset[number]) + self._values_offset(number) + at * chunk.tokens.itemsize
            raise UserError(
                f"{self._where(number)}: expected ids up to {limit} (the vocabulary has "
                f"{len(self.vocabulary):,} words), found id {first} at token {self._starts[number] + at}, "
                f"byte {byte}; prepare the dataset again"
            )

    def _values_offset(self, number: int) -> int:
        """Where the ids begin in the bytes of a chunk: they are its last buffer, padded to 8 bytes."""
        size = int(self.index.tokens[number]) * self.vocabulary.id_type.itemsize
        return int(self.index.length[number]) - (size + 7) // 8 * 8

    def _where(self, number: int) -> str:
        offset, length = int(self.index.offset[number]), int(self.index.length[number])
        place = self.storage.place(shard_name(int(self.index.shard[number])))
        return f"{place}: chunk {number}, bytes {offset} to {offset + length}"


def open_dataset(path: str | Path, cache: ShardCache | None = None) -> Dataset:
    """Open the dataset at a path or a URI (`s3://`, `gs://`), whose shards are kept in a cache.

    Raises:
        UserError: there is no dataset, it is of a newer version, a file is missing or of another size, or the
            index or the vocabulary is damaged or of another dataset.
    """
    storage = open_storage(path, cache)
    manifest = load_manifest(read_manifest(storage), storage.place(MANIFEST))
    for name, record in manifest.files.items():
        check_size(storage, name, record)
    return dataset_of(storage, manifest)


def read_manifest(storage: Storage) -> bytes:
    """The bytes of the manifest, not looked at. Raises UserError where there is no dataset."""
    try:
        return storage.read(MANIFEST)
    except UserError as error:
        raise UserError(f"{storage.place('').rstrip('/')}: no dataset can be opened here: {error}") from None


def dataset_of(storage: Storage, manifest: Manifest) -> Dataset:
    """The dataset of a manifest; its shards are not looked at before they are read.

    Raises:
        UserError: the index or the vocabulary is missing, damaged or of another dataset.
    """
    storage.expect(manifest.files)
    vocabulary = _read_vocabulary(storage, manifest)
    return Dataset(storage, manifest, vocabulary, _read_index(storage, manifest))


def check_size(storage: Storage, name: str, record: FileRecord) -> None:
    """Check that a file has the size that the manifest says.

    Raises:
        UserError: it is missing, or shorter or longer.
    """
    found = storage.size(name)
    if found != record.bytes:
        raise UserError(
            f"{storage.place(name)}: expected {record.bytes:,} bytes, found {found:,}: it is "
            f"{'truncated' if found < record.bytes else 'longer'} or of another dataset; copy it again"
        )


def _read_vocabulary(storage: Storage, manifest: Manifest) -> Vocabulary:
    table = _read_table(storage, manifest, VOCABULARY, "vocabulary")
    vocabulary = Vocabulary(tuple(table.column("word").to_pylist()))
    if vocabulary.sha256 != manifest.vocabulary_sha256 or vocabulary.id_type.name != manifest.id_type:
        raise UserError(
            f"{storage.place(VOCABULARY)}: expected the vocabulary {manifest.vocabulary_sha256} "
            f"({manifest.id_type} ids), found {vocabulary.sha256} ({vocabulary.id_type.name}); "
            "copy the dataset again"
        )
    return vocabulary


def _read_index(storage: Storage, manifest: Manifest) -> Index:
    table = _read_table(storage, manifest, INDEX, "index")
    if table.schema != INDEX_SCHEMA:
        raise UserError(f"{storage.place(INDEX)}: expected columns {INDEX_SCHEMA.names}, found {table.schema.names}")
    columns: dict[str, Any] = {name: table.column(name).to_numpy() for name in INDEX_SCHEMA.names}
    token_starts = np.concatenate([[0], np.cumsum(columns["tokens"])])
    row_starts = np.concatenate([[0], np.cumsum(columns["rows"])])
    totals = manifest.totals
    found = (table.num_rows, int(token_starts[-1]), int(row_starts[-1]))
    if found != (totals.chunks, totals.tokens, totals.rows):
        raise UserError(
            f"{storage.place(INDEX)}: expected {totals.chunks} chunks, {totals.tokens} tokens and "
            f"{totals.rows} rows, found {found[0]}, {found[1]} and {found[2]}: it is of another dataset; "
            "copy the dataset again"
        )
    return Index(**columns, token_starts=token_starts, row_starts=row_starts)


def _read_table(storage: Storage, manifest: Manifest, name: str, what: str) -> pa.Table:
    data, expected = storage.read(name), manifest.files[name].sha256
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise UserError(
            f"{storage.place(name)}: expected SHA-256 {expected}, found {found} over bytes 0 to {len(data)}: "
            f"the {what} is damaged or of another dataset; copy the dataset again"
        )
    return pa.ipc.open_file(data).read_all()
