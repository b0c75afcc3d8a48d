"""Who does a piece of work for each of many items: this process, or several."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkersLost(Exception):  # noqa: N818 - an end of the work, and no mistake of the user's
    """Work could not be done because those who do it died; the message is one line."""


class Runner(Protocol):
    """Does `work` for every item, and gives the results as they come, in any order.

    Work can be pickled, leaves its traces in files only, and may be done again for an item where it was lost.
    """

    def __call__(self, work: Callable[[Item], Result], items: Sequence[Item], /) -> Iterable[Result]: ...


def run_here(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """One item after the other, in this process."""
    return map(work, items)


def in_processes(workers: int) -> Runner:
    """A runner over so many processes of this machine; they start when there is more than one item to share.

    Raises:
        WorkersLost: (when run) a process died.
    """

    def run(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        if min(workers, len(items)) <= 1:
            yield from run_here(work, items)
            return
        others = set(active_children())
        # Spawned, not forked: Arrow's threads do not survive a fork.
        pool = ProcessPoolExecutor(min(workers, len(items)), mp_context=get_context("spawn"))
        try:
            with _interrupts_ignored():
                futures = [pool.submit(work, item) for item in items]
            for done in as_completed(futures):
                yield done.result()
        except BrokenProcessPool:
            raise WorkersLost("a worker process died, perhaps for want of memory; use fewer --processes") from None
        except BaseException:
            for process in set(active_children()) - others:
                process.terminate()  # nobody waits for what they do
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    return run


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started meanwhile ignore interrupts too, which a terminal sends to all; who started them ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may choose, and is interrupted
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
