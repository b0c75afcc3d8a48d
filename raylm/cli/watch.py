"""`raylm watch RUN`: the live view of a run that trains elsewhere, from its events. Ctrl-C ends the watching alone.

Exit codes: 0 the run completed · 1 it failed or was interrupted · 2 a mistake that the user can mend · 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from raylm.errors import UserError
from raylm.observe.events import NAME, Event
from raylm.observe.figures import duration
from raylm.observe.follow import Follower
from raylm.observe.run_folder import NAME as CONFIG
from raylm.observe.view import View, choose_view

SUMMARY = "Watch a run from another terminal, while it trains or afterwards; it goes on whatever happens here."
_SECONDS = 0.25
_SILENCE = 60.0


def main(arguments: Sequence[str], program: str = "raylm watch") -> int:
    """The exit code. Raises: UserError: a mistake of the user's."""
    parser = argparse.ArgumentParser(
        program, description=SUMMARY, epilog=f"example: {program} runs/quick-20261121-220000", allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    folder = Path(parser.parse_args(arguments).run)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name a run's, as in {program} runs/NAME")
    if not (folder / CONFIG).exists() and not (folder / NAME).exists():
        raise UserError(f"{folder} holds neither {CONFIG} nor {NAME}: it is no run's folder")
    view = choose_view(sys.stdout, own_screen=True)
    try:
        end = watch(folder / NAME, view)
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
) -> Event:
    """Shows the events of a log until the last of them is the run's end, which it returns.

    Raises:
        UserError: the log cannot be read.
    """
    heard, told, begun = clock(), False, 0
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
            elif not told and clock() - heard >= _SILENCE:
                view.note(f"no event for {duration(clock() - heard)}: the run waits, or was killed")
                told = True
            sleep(_SECONDS)
