"""A finished dataset's way to a store: every file, the manifest last."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from raylm.data.manifest import MANIFEST
from raylm.errors import UserError


def is_uri(place: str | Path) -> bool:
    """Whether a place is a URI (`s3://`, `gs://`) and not a path."""
    return "://" in str(place)


def refuse_existing_remote(uri: str) -> None:
    """Raises UserError where a dataset is at the URI already, or the store cannot be reached."""
    filesystem, path = _filesystem(uri)
    try:
        there = filesystem.get_file_info(f"{path}/{MANIFEST}").type != pafs.FileType.NotFound
    except OSError as error:
        raise _unreachable(uri, error) from None
    if there:
        raise UserError(f"{uri}: there is a dataset already; remove it, or choose another place")


def upload_dataset(folder: Path, uri: str) -> None:
    """Copy a dataset to a URI. Until the manifest is there, as the last file, there is no dataset.

    Raises:
        UserError: the store cannot be reached or written.
    """
    filesystem, path = _filesystem(uri)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    try:
        for file in sorted(files, key=lambda file: file.name == MANIFEST):
            target = f"{path}/{file.relative_to(folder).as_posix()}"
            filesystem.create_dir(target.rsplit("/", 1)[0], recursive=True)
            pafs.copy_files(
                str(file), target, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=filesystem
            )
    except OSError as error:
        raise _unreachable(uri, error) from None


def _filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"{uri}: not a place that can be written ({error}); use a path, s3:// or gs://") from None
    except OSError as error:
        raise _unreachable(uri, error) from None
    return filesystem, path.rstrip("/")


def _unreachable(uri: str, error: OSError) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(f"{uri}: the store cannot be used ({reason}); check its name, its rights and the network")
