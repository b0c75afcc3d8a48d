"""Checkpoints written by a thread while training goes on, one at a time."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from raylm.checkpoint.snapshot import Json, Snapshot
from raylm.checkpoint.store import CheckpointStore

_NICENESS = 10
"""Hashing and writing take the time that the training's threads leave; 19 could starve them while they hold a lock."""


class BackgroundWriter:
    """Saves snapshots in a thread; a second save waits for the first, the end waits for the last.

    What a save raised (CheckpointNotSaved, or ValueError for a snapshot that cannot be written) surfaces at the
    next call of `save` or `wait`, once. The arrays of a snapshot must not change until its save is over.
    """

    def __init__(self, store: CheckpointStore, after_save: Callable[[Path], None] | None = None) -> None:
        """`after_save` is called in the thread with each checkpoint's folder, for pruning and reporting."""
        self._store = store
        self._after_save = after_save
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, snapshot: Snapshot, *, config: Json, dataset_id: str) -> None:
        """Begin to save; waits first for the save in flight, and raises what that one met.

        Where it raises, this snapshot's save has begun all the same: a full disk costs one checkpoint, not two.
        """
        error = self._finish()
        self._thread = threading.Thread(
            target=self._run, args=(snapshot, config, dataset_id), name="checkpoint writer", daemon=False
        )
        self._thread.start()
        if error is not None:
            raise error

    def wait(self) -> None:
        """Wait for the save in flight, before a rollback reads it and at the end; raises what it met."""
        error = self._finish()
        if error is not None:
            raise error

    @property
    def busy(self) -> bool:
        """Whether a save is in flight."""
        return self._thread is not None and self._thread.is_alive()

    def _run(self, snapshot: Snapshot, config: Json, dataset_id: str) -> None:
        _let_training_go_first()
        try:
            path = self._store.save(snapshot, config=config, dataset_id=dataset_id)
            if self._after_save is not None:
                self._after_save(path)
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
