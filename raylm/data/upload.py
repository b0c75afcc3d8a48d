"""A finished dataset's way to a store: every file, the manifest last."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyarrow.fs as pafs

from raylm.data.manifest import MANIFEST
from raylm.data.remote import WAITS, connect, without_secrets
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
    try:
        filesystem, path = connect(uri)
    except OSError as error:
        raise _unusable(uri, error) from None
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in sorted(files, key=lambda file: file.name == MANIFEST):
        target = f"{path}/{file.relative_to(folder).as_posix()}"

        def copy(source: str = str(file), target: str = target) -> None:
            if not isinstance(filesystem, pafs.S3FileSystem):  # a bucket has no folders
                filesystem.create_dir(target.rsplit("/", 1)[0], recursive=True)
            local = pafs.LocalFileSystem()
            pafs.copy_files(source, target, source_filesystem=local, destination_filesystem=filesystem)

        _persist(copy, uri, waits)


def _persist(ask: Callable[[], Answer], uri: str, waits: tuple[float, ...]) -> Answer:
    for pause in waits:
        try:
            return ask()
        except OSError:
            time.sleep(pause)
    try:
        return ask()
    except OSError as error:
        raise _unusable(uri, error) from None


def _unusable(uri: str, error: OSError) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(
        f"{without_secrets(uri)}: the store cannot be used ({reason}); check its name, its rights and the network"
    )
