"""Follows a run's events.jsonl while the run writes it, from another process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from raylm.errors import UserError
from raylm.observe.events import Event, parse_event

_PIECE = 1 << 20


class Follower:
    """Reads what was added to a log since the last time.

    A last line that is not whole yet is left for the next time, since a run that goes on after a kill cuts it off.
    Where the file was written anew, or another took its place, it is read from its start again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._read = 0
        self._last = b""
        self.begun = 0
        """How many times the file was read from its start."""
        self.refused = 0
        """Lines that were no events."""

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def read(self) -> Iterator[Event]:
        """The events that are there and were not given yet; none where there is no file yet.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            file = self._open()
            file.seek(self._read)
            torn = b""
            while piece := file.read(_PIECE):
                *lines, torn = (torn + piece).split(b"\n")
                for line in lines:
                    self._read += len(line) + 1
                    self._last = line + b"\n"
                    try:
                        event = parse_event(line)
                    except ValueError:
                        self.refused += 1
                        continue
                    yield event
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"cannot read {self._path}: {error.strerror}") from None

    def _open(self) -> BinaryIO:
        """The file that stands at the path now."""
        if self._file is not None:
            there, here = os.stat(self._path), os.fstat(self._file.fileno())
            if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino) and self._goes_on(self._file):
                return self._file
            self._file.close()
        self._file = self._path.open("rb")
        self._read, self._last = 0, b""
        self.begun += 1
        return self._file

    def _goes_on(self, file: BinaryIO) -> bool:
        """Whether the last line that was read is still where it was."""
        file.seek(self._read - len(self._last))
        return file.read(len(self._last)) == self._last
