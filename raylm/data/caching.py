"""Files that appear whole or not at all, in the cache and elsewhere."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raylm.errors import UserError


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/raylm`, or `~/.cache/raylm`. Raises UserError where there is no home folder either."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "raylm"
    except RuntimeError:
        raise UserError("there is no home folder to keep a cache in; name one with XDG_CACHE_HOME") from None


def write_file(path: Path, content: bytes) -> None:
    """Puts a file in its place in one instant, on disk before it has its name.

    Raises:
        UserError: the folder cannot be written to.
    """
    with _writing_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(handle, 0o644)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well and is removed when it does not.

    Where another process made `folder` meanwhile, theirs stays: what is cached depends on its name alone.

    Raises:
        UserError: the folder cannot be written to.
    """
    with _writing_to(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            staging.chmod(0o755)
            yield staging
            try:
                staging.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def storing(place: Path) -> Iterator[None]:
    """Turn a failure to write below `place` into a UserError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise UserError(f"{place}: cannot be written ({reason}); free some space or choose another place") from None


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}; "
            "free some space or choose another folder (XDG_CACHE_HOME moves the cache)"
        ) from None
