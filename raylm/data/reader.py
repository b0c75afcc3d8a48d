"""Reading ahead: a thread keeps windows ready, so that the device does not wait for them.

The thread only reads; where a run stands is the cursor of what was taken, never of what lies ready.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from types import TracebackType
from typing import Protocol

from raylm.data.cursor import Cursor
from raylm.data.streams import Window


class Source(Protocol):
    """What windows are read from: `Streams`, `Sentences` or `MixedStreams`."""

    def read(self, cursor: Cursor) -> tuple[Window, Cursor]: ...
    def settle(self, cursor: Cursor) -> Cursor: ...


class Reader:
    """Windows of a source from a cursor on, up to `ahead` of them read before they are asked for.

    `cursor` is the place of the next window, settled past what is left out. `waited` is the time in seconds that
    `read` spent waiting. No other thread may use the source until the reader is closed.
    """

    def __init__(self, source: Source, cursor: Cursor, ahead: int = 64) -> None:
        self.cursor = source.settle(cursor)
        self.waited = 0.0
        self._source = source
        self._ahead = max(ahead, 1)
        self._ready: deque[tuple[Window, Cursor]] = deque()
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = self._start(self.cursor)

    def read(self) -> Window:
        """The next window.

        Raises:
            UserError: the source could not read it; the windows before it were all given.
            RuntimeError: the reader is closed.
        """
        with self._changed:
            if not self._ready:
                begin = time.perf_counter()
                self._changed.wait_for(lambda: self._ready or self._error or self._stopping)
                self.waited += time.perf_counter() - begin
            if self._ready:
                window, self.cursor = self._ready.popleft()
                if len(self._ready) <= self._ahead // 2:
                    self._changed.notify_all()
                return window
            if self._error is not None:
                raise self._error
            raise RuntimeError("the reader is closed")

    def seek(self, cursor: Cursor) -> None:
        """Go on from another place; what was read ahead is thrown away."""
        self.close()
        self.cursor, self._error, self._stopping = self._source.settle(cursor), None, False
        self._thread = self._start(self.cursor)

    def close(self) -> None:
        """End the thread and wait until it has ended; may be called again."""
        with self._changed:
            self._stopping = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, cursor: Cursor) -> threading.Thread:
        thread = threading.Thread(target=self._read_ahead, args=(cursor,), name="raylm-reader", daemon=True)
        thread.start()
        return thread

    def _read_ahead(self, cursor: Cursor) -> None:
        """Fill up whenever half of what lay ready was taken: few long turns cost less than many short ones."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or len(self._ready) <= self._ahead // 2)
            while len(self._ready) < self._ahead:
                if self._stopping:
                    return
                try:
                    window, after = self._source.read(cursor)
                    cursor = self._source.settle(after)
                except BaseException as error:
                    with self._changed:
                        self._error = error
                        self._changed.notify_all()
                    return
                with self._changed:
                    if self._stopping:
                        return
                    self._ready.append((window, cursor))
                    if len(self._ready) == 1:
                        self._changed.notify_all()
