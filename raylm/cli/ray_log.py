"""Where a command that works on Ray for a while keeps what Ray prints."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raylm.data.runners import WorkersLost


@contextmanager
def ray_log(command: str) -> Iterator[Path]:
    """A file that stays, and is named, where the workers were lost, and is removed otherwise."""
    handle, name = tempfile.mkstemp(prefix=f"raylm-{command}-", suffix=".log")
    os.close(handle)
    try:
        yield Path(name)
    except WorkersLost as lost:
        raise WorkersLost(f"{lost}; what Ray printed is in {name}") from None
    except BaseException:
        Path(name).unlink()
        raise
    Path(name).unlink()
