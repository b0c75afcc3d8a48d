"""A bounded folder of whole shards fetched from a store, each named by its SHA-256.

A file appears there only whole and with the right digest, so several processes and several datasets share it.
Past the limit, those that were not used for longest go; a map that somebody still holds stays readable.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

from raylm.data.manifest import FileRecord

STALE_SECONDS = 3600.0
"""Age at which an unfinished file is taken for the remains of a process that died."""


class ShardCache:
    """Whole shards in `folder`, at most `limit` bytes of them."""

    def __init__(self, folder: Path, limit: int = 20 << 30) -> None:
        self._folder = folder
        self._limit = limit

    def find(self, record: FileRecord) -> Path | None:
        """The file with this content, if it is here; it counts as used now."""
        path = self._folder / record.sha256
        try:
            os.utime(path)
        except OSError:
            return None
        return path

    def holds(self, record: FileRecord) -> bool:
        """Whether a file of this size fits at all."""
        return record.bytes <= self._limit

    def drop(self, record: FileRecord) -> None:
        """Forget a file."""
        (self._folder / record.sha256).unlink(missing_ok=True)

    def add(self, record: FileRecord, pieces: Iterable[bytes | memoryview]) -> bool:
        """Keep a file; false, and nothing kept, where the pieces are not what the record says.

        Raises:
            OSError: the folder cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._make_room(record.bytes)
        partial = self._folder / f".{record.sha256}.{secrets.token_hex(6)}.partial"
        digest = hashlib.sha256()
        try:
            with partial.open("xb") as file:
                for piece in pieces:
                    file.write(piece)
                    digest.update(piece)
                file.flush()
                os.fsync(file.fileno())
            if digest.hexdigest() != record.sha256:
                return False
            partial.rename(self._folder / record.sha256)
        finally:
            partial.unlink(missing_ok=True)
        return True

    def _make_room(self, needed: int) -> None:
        files = []
        for path in self._folder.iterdir():
            try:
                facts = path.stat()
            except FileNotFoundError:
                continue
            if path.suffix == ".partial" and time.time() - facts.st_mtime > STALE_SECONDS:
                path.unlink(missing_ok=True)
            else:
                files.append((facts.st_mtime, facts.st_size, path))
        held = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if held + needed <= self._limit:
                return
            if path.suffix != ".partial":
                path.unlink(missing_ok=True)
                held -= size
