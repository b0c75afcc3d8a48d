"""How far a command is: a bar on a terminal, a line now and then anywhere else, nothing where it is soon done."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from raylm.observe.figures import duration

SHOWN_AFTER = 2.0
"""Seconds before the first sign of it."""


class ByteProgress:
    """Shows bytes done of all, from what it is told; from a thread, so that what works is never held up.

    It writes to the standard error of the time it was made, whatever becomes of that meanwhile.
    """

    def __init__(self, *, after: float = SHOWN_AFTER, every: float = 10.0, refresh: float = 0.25) -> None:
        self._stream, self._owned = _lasting(sys.stderr)
        self._after, self._every, self._refresh = after, every, refresh
        self._state = ("starting", 0, 0)
        self._ended = threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def tell(self, what: str, done: int, total: int) -> None:
        """What is done now, and how many of its bytes; a total of 0 where that is not known."""
        self._state = (what, done, total)

    def __enter__(self) -> ByteProgress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._owned:
            self._stream.close()

    def _run(self) -> None:
        if self._ended.wait(self._after):
            return
        with suppress(OSError, ValueError):  # nobody reads any more: no reason to stop
            if self._stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
                self._draw_bar()
            else:
                self._print_lines()

    def _draw_bar(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(file=self._stream), transient=True) as bar:
            shown, task = "", bar.add_task("", total=None)
            while True:
                what, done, total = self._state
                if what != shown:
                    bar.reset(task)
                bar.update(task, description=what, completed=done, total=total or None)
                shown = what
                if self._ended.wait(self._refresh):
                    return

    def _print_lines(self) -> None:
        while True:
            what, done, total = self._state
            share = f": {done / total:.0%} of {total / (1 << 20):,.1f} MiB" if total else ""
            print(f"{what}{share}, {duration(time.monotonic() - self._began)}", file=self._stream, flush=True)
            if self._ended.wait(self._every):
                return


def _lasting(stream: TextIO) -> tuple[TextIO, bool]:
    """The stream on a descriptor of its own, where it has one, so that it stays where it points now; and whether."""
    try:
        return os.fdopen(os.dup(stream.fileno()), "w", encoding="utf-8", errors="replace"), True
    except (OSError, ValueError):
        return stream, False
