"""Where the files of a dataset lie: a folder that is memory-mapped, or an object store with a cache before it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from raylm.data.manifest import FileRecord
from raylm.errors import UserError


class Storage(Protocol):
    """Read access to the files below one folder, by name relative to it.

    `memory_limit` is how many bytes of chunks a reader may hold on to, None where they are mapped and cost
    nothing. `parallel` is how many ranges are worth asking for at once.
    """

    memory_limit: int | None
    parallel: int

    def place(self, name: str) -> str:
        """The full path or URI of a file, for messages."""

    def size(self, name: str) -> int:
        """Bytes in a file. Raises UserError where it is missing or cannot be read."""

    def read(self, name: str) -> bytes:
        """The whole of a small file. Raises UserError where it is missing or cannot be read."""

    def expect(self, files: Mapping[str, FileRecord]) -> None:
        """Learn from the manifest what the files are."""

    def read_range(self, name: str, offset: int, length: int) -> pa.Buffer:
        """`length` bytes from `offset`, fewer at the file's end. Raises UserError where they cannot be read."""

    def read_again(self, name: str, offset: int, length: int) -> pa.Buffer | None:
        """The same bytes from their origin, past any copy kept here; None where there is no other copy."""


class LocalStorage:
    """A folder on this machine, its files memory-mapped."""

    memory_limit: int | None = None
    parallel = 1

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: dict[str, pa.MemoryMappedFile] = {}

    def place(self, name: str) -> str:
        return str(self._folder / name)

    def size(self, name: str) -> int:
        try:
            return (self._folder / name).stat().st_size
        except OSError as error:
            raise unreadable(self.place(name), error) from None

    def read(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise unreadable(self.place(name), error) from None

    def expect(self, files: Mapping[str, FileRecord]) -> None:
        """Nothing to learn: the files are at hand."""

    def read_range(self, name: str, offset: int, length: int) -> pa.Buffer:
        mapped = self._maps.get(name)
        try:
            if mapped is None:
                mapped = self._maps[name] = pa.memory_map(self.place(name))
            return mapped.read_at(length, offset)
        except OSError as error:
            raise unreadable(self.place(name), error) from None

    def read_again(self, name: str, offset: int, length: int) -> pa.Buffer | None:
        return None


def unreadable(place: str, error: OSError) -> UserError:
    """The error to show for a file that cannot be read."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"{place}: the file is missing; copy the dataset again, or prepare it again")
    reason = (error.strerror or str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(f"{place}: cannot be read ({reason}); check the path, its permissions and the network")
