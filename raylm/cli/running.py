"""What `train` and `resume` share: run on Ray, show it, print the table, give the exit code."""

from __future__ import annotations

import sys
from pathlib import Path

from raylm.observe.run_folder import RunRecord, remove_unstarted
from raylm.observe.summary import Summary
from raylm.observe.table import print_table, summary_notes, summary_rows
from raylm.observe.view import View, choose_view

COMPLETED, FAILED, USER_ERROR, SIGNAL = 0, 1, 2, 128
"""Exit codes; 128 + n where signal n ended the run."""


def open_view(record_seconds: float) -> View:
    """The view that suits standard output."""
    return choose_view(sys.stdout, every_seconds=record_seconds)


def run(record: RunRecord, folder: Path, view: View) -> int:
    """Trains to the end and prints how it went; the exit code.

    Raises:
        UserError: the cluster cannot hold the run, or a worker found a mistake of the user's.
    """
    from raylm.cluster.launch import RunFailed, Stopped, fit  # here: importing Ray takes a second that help can save

    again = f"raylm resume --from-checkpoint {folder}"
    try:
        summary = fit(record, folder, view)
    except Stopped as stopped:
        view.close()
        if stopped.summary is not None:
            why = f": {stopped.why}" if stopped.why else ""
            print(f"stopped after {stopped.summary.steps:,} updates, saved{why}")
        remove_unstarted(folder)
        print(f"go on with: {again}" if folder.exists() else "stopped before the first step")
        return SIGNAL + stopped.number
    except RunFailed as failed:
        view.close()
        print(f"raylm: {failed}\ngo on from the newest checkpoint with: {again}", file=sys.stderr)
        return FAILED
    view.close()
    _print(summary, folder, record.note)
    if summary.status == "completed":
        return COMPLETED
    print(f"raylm: {summary.reason}", file=sys.stderr)
    return FAILED


def _print(summary: Summary, folder: Path, note: str) -> None:
    print()
    print_table(sys.stdout, summary_rows(summary), summary_notes(summary, folder, note or None))
