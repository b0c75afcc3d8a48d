"""`raylm drill`: list the faults that `--drill KIND@STEP` injects."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from raylm.cli.tables import print_json
from raylm.guard.drills import KINDS

SUMMARY = "List the faults that --drill can inject into a run."


def main(arguments: Sequence[str], program: str = "raylm drill") -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        program, description=SUMMARY, epilog="example: raylm train --steps 200 --drill nan-loss@120"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    if parser.parse_args(arguments).json:
        print_json(sys.stdout, KINDS)
        return 0
    width = max(map(len, KINDS))
    for kind, what in KINDS.items():
        print(f"{kind:<{width}}  {what}")
    print("\nUse: --drill KIND@STEP, STEP counting the updates before it; several: --drill A@1 B@2")
    print("Once, unless KIND@STEP:sticky says that window STEP strikes each time it is read, as bad data do.")
    print("Where: KIND@STEP:lane=3, KIND@STEP:replica=1, KIND@STEP:sticky,lane=3")
    return 0
