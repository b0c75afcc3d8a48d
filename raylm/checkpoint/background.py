"""Checkpoints written by a thread while training goes on, one at a time."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable

from raylm.checkpoint.snapshot import Snapshot

_NICENESS = 10
"""Hashing and writing take the time that the training's threads leave; 19 could starve them while they hold a lock."""


class BackgroundWriter:
    """Hands snapshots to `write` in a thread; a second one waits for the first, the end waits for the last.

    What `write` raised surfaces at the next call of `save` or `wait`, once. The arrays of a snapshot must not change
    until it is written.
    """

    def __init__(self, write: Callable[[Snapshot], None]) -> None:
        self._write = write
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Begin to write; waits first for the snapshot in flight, and raises what that one met.

        Where it raises, this snapshot is being written all the same.
        """
        error = self._finish()
        # No daemon: an interpreter that ends finishes what is in flight.
        self._thread = threading.Thread(target=self._run, args=(snapshot,), name="checkpoint writer", daemon=False)
        self._thread.start()
        if error is not None:
            raise error

    def wait(self) -> None:
        """Wait for the snapshot in flight, before a rollback and at the end; raises what it met."""
        error = self._finish()
        if error is not None:
            raise error

    @property
    def busy(self) -> bool:
        """Whether a snapshot is being written."""
        return self._thread is not None and self._thread.is_alive()

    def _run(self, snapshot: Snapshot) -> None:
        _let_training_go_first()
        try:
            self._write(snapshot)
        except Exception as error:
            self._error = error

    def _finish(self) -> Exception | None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        return error


def _let_training_go_first() -> None:
    if sys.platform == "linux":  # elsewhere a priority belongs to the process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
