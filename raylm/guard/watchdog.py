"""Turns a step that never ends into the end of the process, which Ray answers with a restart from a checkpoint.

A peer that is stopped, or a network that swallows messages, leaves every rank waiting in a collective for ever, and
no health check sees it. A thread in each rank watches for progress: the rank's own steps, or a rank that says it is
busy with something long (compiling, evaluating, saving, diagnosing) and is alive. It also leaves word of what the rank
does, for those who watch the run (`raylm.observe.crew`).
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

STALLED = 75
"""Exit code of a process that the watchdog ended (EX_TEMPFAIL)."""

_LONGEST_BUSY = 10  # timeouts: what is busy for longer is stuck
_LONGEST_STEP = 10.0  # seconds after which a rank that is not busy waits for others, or is thought to


def end_process(reason: str) -> None:
    """Says why, where every thread stands, and ends at once: a thread that waits in a collective cannot be woken."""
    try:
        print(f"watchdog: {reason}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr)
    finally:  # where the disk that holds the log is full, too
        os._exit(STALLED)


class Marks(Protocol):
    """A place that all ranks reach, where each says that it is busy. What cannot be said or read is passed over."""

    every: float
    """Seconds between looks."""

    def say(self, rank: int, text: str, kind: str = "busy") -> None:
        """Leaves a rank's word of a kind, in place of its last."""

    def read(self, kind: str = "busy") -> Mapping[str, str]:
        """Every rank's last word of a kind, under names that end with `-RANK`."""


class FolderMarks:
    """Marks as files of a folder."""

    every = 1.0

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def say(self, rank: int, text: str, kind: str = "busy") -> None:
        with contextlib.suppress(OSError):  # a full disk: this rank still knows of itself
            self._folder.mkdir(exist_ok=True)
            (self._folder / f"{kind}-{rank}").write_text(text)

    def read(self, kind: str = "busy") -> Mapping[str, str]:
        with contextlib.suppress(OSError):
            return {path.name: path.read_text() for path in self._folder.glob(f"{kind}-*")}
        return {}


class Watchdog:
    """Watches one rank inside a `with` block. All ranks share the `marks`."""

    def __init__(
        self,
        marks: Marks,
        rank: int,
        timeout: float,
        expire: Callable[[str], None] = end_process,
        clock: Callable[[], float] = time.monotonic,
        workers: int = 1,
        replicas: int = 1,
    ) -> None:
        """timeout: seconds without progress after which `expire` is called with the reason. workers, replicas: of the
        run, and of this rank, for the word that is left."""
        self._marks, self._rank, self._timeout = marks, rank, timeout
        self._expire, self._clock = expire, clock
        self._facts = {"node": socket.gethostname(), "workers": workers, "replicas": replicas, "every": marks.every}
        self._progress = self._beaten = clock()
        self._busy_since: float | None = None
        self._busy_with = ""
        self._seen: Mapping[str, str] = {}
        self._looked = False
        self._beats = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._leave_word(self._clock())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def beat(self) -> None:
        """A step ended."""
        self._progress = self._beaten = self._clock()

    @contextmanager
    def busy(self, doing: str) -> Iterator[None]:
        """What is done inside takes long, and the other ranks wait for it."""
        outer, self._busy_since, self._busy_with = (self._busy_since, self._busy_with), self._clock(), doing
        try:
            yield
        finally:
            self._busy_since, self._busy_with = outer
            self.beat()

    def look(self) -> None:
        """Looks once: says that this rank is busy, and expires where nobody made progress for too long."""
        now = self._clock()
        if self._busy_since is not None and now - self._busy_since < _LONGEST_BUSY * self._timeout:
            self._beats += 1
            self._marks.say(self._rank, f"{os.getpid()} {self._beats}")
            self._progress = now
        if self._someone_is_busy():
            self._progress = now
        if now - self._progress > self._timeout:
            self._expire(
                f"rank {self._rank} made no progress for {now - self._progress:.0f} s (guard.step_timeout): a worker "
                "is stopped, or the network is cut; the run goes on from the newest checkpoint"
            )
        self._leave_word(now)

    def _leave_word(self, now: float) -> None:
        doing = self._busy_with or ("training" if now - self._beaten < _LONGEST_STEP else "waiting for another worker")
        word = {**self._facts, "doing": doing, "time": time.time()}
        self._marks.say(self._rank, json.dumps(word), "worker")

    def _someone_is_busy(self) -> bool:
        """Whether a rank said so since the last look; what stands there says nothing of when."""
        seen = self._marks.read()
        changed = self._looked and seen != self._seen
        self._looked = True
        self._seen = seen
        return changed

    def _run(self) -> None:
        while not self._over.wait(min(self._marks.every, self._timeout / 10)):
            self.look()
