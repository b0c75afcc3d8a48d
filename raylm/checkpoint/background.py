"""Checkpoints are written by a thread while training goes on, one at a time and in its own time."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable

_NICENESS = 10
"""Hashing and writing take the time that the training's threads leave; 19 could starve them while they hold a lock."""

_SHARE = 0.005
"""Of the processor time of all cores, what a writing that nobody waits for takes: steps are then hardly longer."""


class BackgroundWriter:
    """Runs one writing after the other in a thread; the next waits for the one before, the end for the last.

    What a writing raised surfaces at the next call of `begin` or `wait`, once.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._awaited = threading.Event()
        self._busy_since = 0.0

    def begin(self, write: Callable[[], object]) -> None:
        """Begin to write; waits first for the writing in flight, and raises what that one met.

        Where it raises, this writing has begun all the same.
        """
        error = self._finish()
        self._awaited.clear()
        # No daemon: an interpreter that ends finishes what is in flight.
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint writer", daemon=False)
        self._thread.start()
        if error is not None:
            raise error

    def wait(self) -> None:
        """Wait for the writing in flight, before a rollback and at the end; raises what it met."""
        error = self._finish()
        if error is not None:
            raise error

    def rest(self) -> None:
        """Called in the thread, by a writing after each piece of its work: sleeps as long as its share asks for, not at
        all once somebody waits."""
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        worked = time.thread_time() - self._busy_since
        self._awaited.wait(worked * max(1 / (_SHARE * cores) - 1, 0))
        self._busy_since = time.thread_time()

    @property
    def busy(self) -> bool:
        """Whether something is being written."""
        return self._thread is not None and self._thread.is_alive()

    def _run(self, write: Callable[[], object]) -> None:
        _let_training_go_first()
        self._busy_since = time.thread_time()
        try:
            write()
        except Exception as error:
            self._error = error

    def _finish(self) -> Exception | None:
        if self._thread is not None:
            self._awaited.set()
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        return error


def _let_training_go_first() -> None:
    if sys.platform == "linux":  # elsewhere a priority belongs to the process
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)
