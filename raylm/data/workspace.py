"""Where the files on the way to a dataset lie, seen by all who work on it: a folder, or a place in an object store.

Whoever works writes a file in a scratch folder of its own machine and puts it in the workspace under a name that its
work decides. A file appears whole or not at all, and putting it again changes nothing.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Protocol

from raylm.data.caching import storing
from raylm.data.manifest import INDEX, MANIFEST, REJECTS, VOCABULARY
from raylm.data.upload import Destination, is_uri
from raylm.errors import UserError

_COPIES_AT_ONCE = 16


class Workspace(Protocol):
    """Files by name; can be pickled, compared and hashed."""

    def __hash__(self) -> int: ...

    def scratch(self) -> AbstractContextManager[Path]:
        """A new folder of this machine to write files in, for the time being. Raises UserError where there is none."""

    def put(self, file: Path, name: str) -> None:
        """Give a file of the scratch folder its name. Raises UserError where that cannot be done."""

    def read(self, name: str) -> bytes:
        """All of a file. Raises UserError where it cannot be read."""

    def place(self, names: Sequence[tuple[str, str]]) -> None:
        """Bring files, (name here, name in the dataset), into the dataset. Raises UserError."""

    def remove(self) -> None:
        """Remove all files that were not placed."""

    def discard(self) -> None:
        """Remove everything, what was placed too; says nothing of what cannot be removed."""


@dataclass(frozen=True)
class FolderWorkspace:
    """In the folder `work` of a dataset that is being made in the folder `dataset`."""

    dataset: Path

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.dataset / "work"

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        with storing(self.folder):
            folder = mkdtemp(prefix=".", dir=self.folder)
        try:
            yield Path(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put(self, file: Path, name: str) -> None:
        with storing(self.folder):
            os.replace(file, self.folder / name)

    def read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise UserError(
                f"{self.folder / name}: cannot be read ({error.strerror or error}); all who work must reach this "
                "folder: prepare again in another one"
            ) from None

    def place(self, names: Sequence[tuple[str, str]]) -> None:
        with storing(self.dataset):
            for here, there in names:
                (self.folder / here).rename(self.dataset / there)

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def discard(self) -> None:
        for pause in (0.0, 0.05, 0.2, 0.5, 1.0, 2.0):  # a worker that is being ended may write still
            time.sleep(pause)
            shutil.rmtree(self.dataset, ignore_errors=True)
            if not self.dataset.exists():
                return


@dataclass(frozen=True)
class StoreWorkspace:
    """In the folder `work` beside a dataset that is being made at a URI, where there was none before."""

    uri: str
    work: str
    placed: list[str] = field(default_factory=list, compare=False)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        with TemporaryDirectory(prefix="raylm-prepare-") as folder:
            yield Path(folder)

    def put(self, file: Path, name: str) -> None:
        _destination(self.uri).send(file, f"{self.work}/{name}")

    def read(self, name: str) -> bytes:
        return _destination(self.uri).read(f"{self.work}/{name}")

    def place(self, names: Sequence[tuple[str, str]]) -> None:
        destination = _destination(self.uri)

        def copy(names: tuple[str, str]) -> None:
            here, there = names
            self.placed.append(there)
            destination.copy(f"{self.work}/{here}", there)

        with ThreadPoolExecutor(_COPIES_AT_ONCE) as pool:
            list(pool.map(copy, names))

    def remove(self) -> None:
        _destination(self.uri).remove(self.work)

    def discard(self) -> None:
        for name in (MANIFEST, INDEX, VOCABULARY, REJECTS, *self.placed, self.work):
            with suppress(UserError):
                _destination(self.uri).remove(name)


def open_workspace(output: str | Path, staging: Path) -> Workspace:
    """The workspace for an output: in the store, where that is a URI, else in the folder it is staged in.

    Raises:
        UserError: it cannot be made.
    """
    if is_uri(output):
        return StoreWorkspace(str(output), f".work-{secrets.token_hex(6)}")
    workspace = FolderWorkspace(staging)
    with storing(staging):
        workspace.folder.mkdir()
    return workspace


@lru_cache(maxsize=1)
def _destination(uri: str) -> Destination:
    return Destination(uri)
