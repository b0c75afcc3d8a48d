"""`raylm watch RUN`: the live view of a run that trains elsewhere, from its events. Ctrl-C ends the watching alone.

Exit codes: 0 the run completed · 1 it failed or was interrupted · 2 a mistake that the user can mend · 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from raylm.checkpoint.mirror import Mirror, marks_of
from raylm.cli.places import look_at
from raylm.guard.watchdog import Marks
from raylm.observe.crew import Crew
from raylm.observe.events import NAME, Event
from raylm.observe.figures import duration
from raylm.observe.follow import Follower
from raylm.observe.view import View, choose_view

SUMMARY = "Watch a run from another terminal, while it trains or afterwards; it goes on whatever happens here."
_SECONDS = 0.25
_SECONDS_BETWEEN_FETCHES = 10.0  # requests are not free, and the run sends its events at checkpoints only


def main(arguments: Sequence[str], program: str = "raylm watch") -> int:
    """The exit code. Raises: UserError: a mistake of the user's."""
    parser = argparse.ArgumentParser(
        program, description=SUMMARY, epilog=f"example: {program} runs/quick-20261121-220000", allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder, or its URI in an object store")
    folder, mirror = look_at(parser.parse_args(arguments).run, "watch")
    view = choose_view(sys.stdout, own_screen=True)
    marks = marks_of(folder, mirror)
    try:
        end = (
            watch(folder / NAME, view, marks=marks)
            if mirror is None
            else watch(folder / NAME, view, _Fetching(mirror), silence=1800, marks=marks)
        )
    except KeyboardInterrupt:
        view.note("stopped watching; the run is left as it is")
        return 130
    finally:
        view.close()
    return 0 if end.get("status") == "completed" else 1


def watch(
    path: Path,
    view: View,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    silence: float = 60.0,
    marks: Marks | None = None,
) -> Event:
    """Shows the events of a log until the last of them is the run's end, which it returns; says so once where none came
    for `silence` seconds. marks: where the workers say what they do, which is shown too.

    Raises:
        UserError: the log cannot be read.
    """
    heard, told, begun = clock(), False, 0
    crew, looked = Crew(), clock()
    with Follower(path) as follower:
        while True:
            last = None
            for event in follower.read():
                if follower.begun > max(begun, 1):
                    view.note(f"{path} was begun anew")
                begun = follower.begun
                view.show(event)
                last = event
            if last is not None:
                heard, told = clock(), False
                if last["kind"] == "end":
                    return last
            elif not told and begun == 0:
                view.wait("waiting for the run's first event")
                told = True
            elif not told and clock() - heard >= silence:
                view.note(f"no event for {duration(clock() - heard)}: the run waits, or was killed")
                told = True
            if marks is not None and begun and clock() - looked >= marks.every:
                looked = clock()
                view.crew(crew.hear(marks.read("worker")))
            sleep(_SECONDS)


class _Fetching:
    """Sleeps, and now and then fetches what the store has more."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror, self._fetched = mirror, time.monotonic()

    def __call__(self, seconds: float) -> None:
        time.sleep(seconds)
        if time.monotonic() - self._fetched >= _SECONDS_BETWEEN_FETCHES:
            self._mirror.pull_files()
            self._fetched = time.monotonic()
