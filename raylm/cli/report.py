"""`raylm report RUN`: a run as one HTML page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from raylm.cli.places import look_at
from raylm.data.caching import write_file
from raylm.observe.page import report_page
from raylm.observe.story import read_story

SUMMARY = "Write a run's curves, incidents, samples and configuration as one HTML page that needs no network."


def main(arguments: Sequence[str], program: str = "raylm report") -> int:
    """The exit code. Raises: UserError: a mistake of the user's."""
    parser = argparse.ArgumentParser(
        program, description=SUMMARY, epilog=f"example: {program} runs/quick-20261121-220000", allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder or URI; it may still be training")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="where to write it; default RUN/report.html, of a URI NAME.html here",
    )
    options = parser.parse_args(arguments)
    folder, mirror = look_at(options.run, "report")
    page = report_page(read_story(folder))
    path = options.output or (folder / "report.html" if mirror is None else Path(f"{folder.name}.html"))
    write_file(path, page.encode())
    print(path)
    return 0
