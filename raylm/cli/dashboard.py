"""`raylm dashboard > raylm.json`: the Grafana dashboard of the gauges that runs export through Ray."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from raylm.cli.tables import print_json
from raylm.observe.dashboard import grafana

SUMMARY = "Print a Grafana dashboard of the gauges that every run exports through Ray's metrics."


def main(arguments: Sequence[str], program: str = "raylm dashboard") -> int:
    """The exit code."""
    argparse.ArgumentParser(
        program,
        description=SUMMARY + " Import the file in the Grafana that Ray's Prometheus feeds.",
        epilog=f"example: {program} > raylm.json",
    ).parse_args(arguments)
    print_json(sys.stdout, grafana())
    return 0
