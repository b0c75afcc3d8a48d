"""What `train` and `resume` share: run on Ray, show it, print the table, give the exit code."""

from __future__ import annotations

import sys
from pathlib import Path

from raylm.checkpoint.mirror import Mirror
from raylm.observe.run_folder import RunRecord, remove_unstarted
from raylm.observe.summary import Summary
from raylm.observe.table import print_table, summary_notes, summary_rows
from raylm.observe.view import View, choose_view

COMPLETED, FAILED, USER_ERROR, SIGNAL = 0, 1, 2, 128
"""Exit codes; 128 + n where signal n ended the run."""


def open_view(record_seconds: float) -> View:
    """The view that suits standard output."""
    return choose_view(sys.stdout, every_seconds=record_seconds)


def run(record: RunRecord, folder: Path, view: View, mirror: Mirror | None = None) -> int:
    """Trains to the end and prints how it went; the exit code.

    mirror: of a run that is kept in an object store; `folder` is the driver's working folder then.

    Raises:
        UserError: the cluster cannot hold the run, or a worker found a mistake of the user's.
    """
    from raylm.cluster.launch import RunFailed, Stopped, fit  # here: importing Ray takes a second that help can save

    place = mirror.place if mirror else str(folder)
    again = f"raylm resume --from-checkpoint {place}"
    try:
        summary = fit(record, folder, view, mirror)
    except Stopped as stopped:
        view.close()
        if stopped.summary is not None:
            why = f": {stopped.why}" if stopped.why else ""
            print(f"stopped after {stopped.summary.steps:,} updates, saved{why}")
        never = remove_unstarted(folder, mirror)
        print("stopped before the first step" if never else f"go on with: {again}")
        return SIGNAL + stopped.number
    except RunFailed as failed:
        view.close()
        print(f"raylm: {failed}\ngo on from the newest checkpoint with: {again}", file=sys.stderr)
        return FAILED
    view.close()
    _print(summary, place, record.note)
    if summary.status == "completed":
        return COMPLETED
    print(f"raylm: {summary.reason}", file=sys.stderr)
    return FAILED


def _print(summary: Summary, place: str, note: str) -> None:
    print()
    print_table(sys.stdout, summary_rows(summary), summary_notes(summary, place, note or None))
