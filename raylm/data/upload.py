"""The way to a store: of a finished dataset, every file, the manifest last; and of files on the way to one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyarrow.fs as pafs

from raylm.data.manifest import MANIFEST
from raylm.data.remote import WAITS, connect, hopeless, without_secrets
from raylm.errors import UserError

Answer = TypeVar("Answer")


def is_uri(place: str | Path) -> bool:
    """Whether a place is a URI (`s3://`, `gs://`) and not a path."""
    return "://" in str(place)


def refuse_existing_remote(uri: str) -> None:
    """Raises UserError where a dataset is at the URI already, or the store cannot be reached."""
    try:
        filesystem, path = connect(uri)
        there = filesystem.get_file_info(f"{path}/{MANIFEST}").type != pafs.FileType.NotFound
    except OSError as error:
        raise _unusable(uri, error) from None
    if there:
        raise UserError(f"{without_secrets(uri)}: there is a dataset already; remove it, or choose another place")


def upload_dataset(folder: Path, uri: str, *, waits: tuple[float, ...] = WAITS) -> None:
    """Copy a dataset to a URI. Until the manifest is there, as the last file, there is no dataset.

    A request that fails is made again, after each of the `waits` in seconds.

    Raises:
        UserError: the store cannot be reached or written.
    """
    destination = Destination(uri, waits)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in sorted(files, key=lambda file: file.name == MANIFEST):
        destination.send(file, file.relative_to(folder).as_posix())


class Destination:
    """A place in a store that is written to; a request that fails is made again, after each of the `waits` in seconds.

    All methods raise UserError where the store cannot be reached or used.
    """

    def __init__(self, uri: str, waits: tuple[float, ...] = WAITS) -> None:
        self._uri, self._waits = uri, waits
        try:
            self._store, self._path = connect(uri)
        except OSError as error:
            raise _unusable(uri, error) from None

    def send(self, file: Path, name: str) -> None:
        """Copy a file of this machine there."""
        target = self._target(name)
        local = pafs.LocalFileSystem()
        self._persist(
            lambda: pafs.copy_files(str(file), target, source_filesystem=local, destination_filesystem=self._store)
        )

    def copy(self, name: str, there: str) -> None:
        """Copy a file within the store, which does it itself where it can."""
        target = self._target(there)
        self._persist(lambda: self._store.copy_file(f"{self._path}/{name}", target))

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of every file below a folder, by its name from here; nothing where there is no such folder."""
        chosen = pafs.FileSelector(f"{self._path}/{folder}".rstrip("/"), recursive=True, allow_not_found=True)
        found = self._persist(lambda: self._store.get_file_info(chosen))
        start = len(self._path) + 1
        return {info.path[start:]: info.size for info in found if info.type == pafs.FileType.File}

    def last_written(self, folder: str) -> list[str]:
        """The names in a folder, those that were written to last at the end; of folders their files count."""
        chosen = pafs.FileSelector(f"{self._path}/{folder}", recursive=True, allow_not_found=True)
        start, times = len(f"{self._path}/{folder}/"), dict[str, int]()
        for info in self._persist(lambda: self._store.get_file_info(chosen)):
            if info.type == pafs.FileType.File:
                name = info.path[start:].split("/")[0]
                times[name] = max(times.get(name, 0), info.mtime_ns or 0)
        return sorted(times, key=lambda name: (times[name], name))

    def fetch(self, name: str, file: Path) -> None:
        """Copy a file from there to this machine."""

        def ask() -> None:  # `copy_files` stands still on larger files of gs://
            with self._store.open_input_stream(f"{self._path}/{name}") as source, file.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)

        self._persist(ask)

    def write(self, name: str, data: bytes) -> None:
        """Put a file there, or replace it."""
        target = self._target(name)

        def ask() -> None:
            with self._store.open_output_stream(target) as stream:
                stream.write(data)

        self._persist(ask)

    def read(self, name: str) -> bytes:
        """All of a file."""

        def ask() -> bytes:
            with self._store.open_input_stream(f"{self._path}/{name}") as stream:
                return bytes(stream.read())

        return self._persist(ask)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all in it; nothing where it is not there."""

        def ask() -> None:
            path = f"{self._path}/{name}"
            match self._store.get_file_info(path).type:
                case pafs.FileType.Directory:
                    self._store.delete_dir(path)
                case pafs.FileType.File:
                    self._store.delete_file(path)

        self._persist(ask)

    def _target(self, name: str) -> str:
        target = f"{self._path}/{name}"
        if not isinstance(self._store, pafs.S3FileSystem):  # a bucket has no folders
            self._persist(lambda: self._store.create_dir(target.rsplit("/", 1)[0], recursive=True))
        return target

    def _persist(self, ask: Callable[[], Answer]) -> Answer:
        for pause in (*self._waits, None):
            try:
                return ask()
            except OSError as error:
                if pause is None or hopeless(error):
                    raise _unusable(self._uri, error) from None
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


def _unusable(uri: str, error: OSError) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(
        f"{without_secrets(uri)}: the store cannot be used ({reason}); check its name, its rights and the network"
    )
