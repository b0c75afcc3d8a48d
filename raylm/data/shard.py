"""One shard: an Arrow file whose record batches are chunks of whole sentences.

A chunk is the unit that is read, checked and permuted. What the index records of it is the byte range of its
record batch, so a chunk can be fetched and checked alone, without the file's footer.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raylm.data.manifest import FileRecord


@dataclass(frozen=True)
class ChunkRecord:
    """One chunk: its byte range in its shard, the CRC-32 of those bytes, and what it holds."""

    offset: int
    length: int
    crc32: int
    tokens: int
    rows: int
    min_id: int
    max_id: int
    unknowns: int


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard file: its size and digest, and its chunks in order."""

    file: FileRecord
    chunks: tuple[ChunkRecord, ...]


@dataclass(frozen=True)
class Chunk:
    """The rows of one chunk: token ids, and `row_offsets` of rows + 1 places where rows begin and end."""

    tokens: np.ndarray
    row_offsets: np.ndarray


class ShardWriter:
    """Writes one shard file, chunk by chunk."""

    def __init__(self, path: Path, id_type: np.dtype[Any], unknown: int | None) -> None:
        self._unknown = unknown
        self._id_type = id_type
        self._schema = chunk_schema(id_type)
        self._file = HashedFile(path)
        self._writer = pa.ipc.new_file(pa.PythonFile(self._file, "w"), self._schema)
        self._chunks: list[ChunkRecord] = []
        self.tokens = 0

    def write(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append one chunk: concatenated ids, and the length of each row."""
        ids = np.ascontiguousarray(tokens, dtype=self._id_type)
        row_offsets = np.zeros(len(lengths) + 1, np.int32)
        np.cumsum(lengths, out=row_offsets[1:])
        rows = pa.ListArray.from_arrays(pa.array(row_offsets), pa.array(ids), type=self._schema.field(0).type)
        batch = pa.record_batch([rows], schema=self._schema)
        message = batch.serialize()
        self._writer.write_batch(batch)
        self._chunks.append(
            ChunkRecord(
                offset=self._file.position - message.size,
                length=message.size,
                crc32=zlib.crc32(message),
                tokens=len(ids),
                rows=len(lengths),
                min_id=int(ids.min()),
                max_id=int(ids.max()),
                unknowns=0 if self._unknown is None else int(np.count_nonzero(ids == self._unknown)),
            )
        )
        self.tokens += len(ids)

    def close(self) -> ShardRecord:
        """Finish the file, flushed to the disk."""
        self._writer.close()
        return ShardRecord(self._file.seal(), tuple(self._chunks))

    def abandon(self) -> None:
        """Close the file as it is; nothing more can be written."""
        self._file.close()


class HashedFile:
    """A new file that knows its size and SHA-256 as it is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._digest = hashlib.sha256()
        self.position = 0

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self._digest.update(data)
        self.position += len(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def seal(self) -> FileRecord:
        """Flush the file to the disk, close it and say what it is."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return FileRecord(self.position, self._digest.hexdigest())


def chunk_schema(id_type: np.dtype[Any]) -> pa.Schema:
    """The one column of a shard: a sentence is a list of ids, and none is null."""
    item = pa.field("item", pa.from_numpy_dtype(id_type), nullable=False)
    return pa.schema([pa.field("tokens", pa.list_(item), nullable=False)])


def decode_chunk(message: pa.Buffer, schema: pa.Schema) -> Chunk:
    """The chunk in the bytes of a record batch, without copying them."""
    rows = pa.ipc.read_record_batch(pa.ipc.read_message(message), schema).column(0)
    return Chunk(rows.values.to_numpy(zero_copy_only=True), rows.offsets.to_numpy(zero_copy_only=True))


def index_table(shards: Sequence[ShardRecord]) -> pa.Table:
    """The index: one row for each chunk, in order, with the number of its shard."""
    chunks = [(number, chunk) for number, shard in enumerate(shards) for chunk in shard.chunks]
    columns = {"shard": pa.array([number for number, _ in chunks], INDEX_SCHEMA.field("shard").type)}
    for field in INDEX_SCHEMA.names[1:]:
        values = [getattr(chunk, field) for _, chunk in chunks]
        columns[field] = pa.array(values, INDEX_SCHEMA.field(field).type)
    return pa.table(columns, schema=INDEX_SCHEMA)


INDEX_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("crc32", pa.uint32(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("min_id", pa.uint32(), nullable=False),
        pa.field("max_id", pa.uint32(), nullable=False),
        pa.field("unknowns", pa.int64(), nullable=False),
    ]
)
