"""The file-system calls of a checkpoint, one function each, so that a test can plant a crash at any of them.

Everything that changes the disk goes through here: what is not yet synced may be gone after a power cut, and
what is not yet renamed does not exist for a reader.
"""

import os
from pathlib import Path


def make_folder(path: Path) -> None:
    """Make `path`, which must not exist, with the permissions that the user's umask gives."""
    path.mkdir()


def create(path: Path) -> int:
    """Open a new file for writing and return its descriptor; FileExistsError where it exists."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)


def write(descriptor: int, data: memoryview) -> None:
    """Write all of `data`, however many calls the system needs for it."""
    while data:
        data = data[os.write(descriptor, data) :]


def sync(descriptor: int) -> None:
    """Put a file's bytes on the disk."""
    os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """Put a folder's list of names on the disk: without it a rename may be gone after a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(old: Path, new: Path) -> None:
    """Rename in one indivisible step."""
    os.rename(old, new)


def unlink(path: Path) -> None:
    """Remove one file."""
    os.unlink(path)


def remove_folder(path: Path) -> None:
    """Remove one empty folder."""
    os.rmdir(path)


def remove_tree(path: Path) -> None:
    """Remove a file, or a folder and all in it; links are removed, never followed."""
    if path.is_symlink() or not path.is_dir():
        unlink(path)
        return
    for entry in list(path.iterdir()):
        remove_tree(entry)
    remove_folder(path)
