"""Where the files of a dataset lie.

`LocalStorage` maps them into memory, so a range of a file is a view and not a copy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pyarrow as pa

from raylm.errors import UserError


class Storage(Protocol):
    """Read access to the files below one folder, by name relative to it."""

    def place(self, name: str) -> str:
        """The full path or URI of a file, for messages."""

    def size(self, name: str) -> int:
        """Bytes in a file. Raises UserError where it is missing or cannot be read."""

    def read(self, name: str) -> bytes:
        """The whole of a small file. Raises UserError where it is missing or cannot be read."""

    def read_range(self, name: str, offset: int, length: int) -> pa.Buffer:
        """`length` bytes from `offset`. Raises UserError where they cannot be read."""

    def read_again(self, name: str, offset: int, length: int) -> pa.Buffer | None:
        """The same bytes from their origin, past any copy kept here; None where there is no other copy."""


class LocalStorage:
    """A folder on this machine, its files memory-mapped."""

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

    def read_range(self, name: str, offset: int, length: int) -> pa.Buffer:
        mapped = self._maps.get(name)
        if mapped is None:
            try:
                mapped = self._maps[name] = pa.memory_map(self.place(name))
            except OSError as error:
                raise unreadable(self.place(name), error) from None
        return mapped.read_at(length, offset)

    def read_again(self, name: str, offset: int, length: int) -> pa.Buffer | None:
        return None


def open_storage(location: str | Path) -> Storage:
    """The storage at a path."""
    return LocalStorage(Path(location))


def unreadable(place: str, error: OSError) -> UserError:
    """The error to show for a file that cannot be read."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"{place}: the file is missing; copy the dataset again, or prepare it again")
    reason = error.strerror or str(error) or type(error).__name__
    return UserError(f"{place}: cannot be read ({reason}); check the path and its permissions")
