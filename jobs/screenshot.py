"""Draws a run's live view as an SVG image, from the events of its folder, as `raylm watch` shows them.

python jobs/train_ptb.py --corpus sample --steps 200 --checkpoint-every 50 --report.sample-every 40 \
    --report.log-every 5 --drill nan-loss@120 --name shot
python jobs/screenshot.py runs/shot --output jobs/screenshot.svg        the image in the README
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from raylm.cli.main import guarded, leave
from raylm.data.caching import write_file
from raylm.observe.events import read_events
from raylm.observe.live import LiveView

_OWN_FONTS = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)  # nothing is fetched


def drawn(run: Path, until: int | None, width: int, height: int) -> str:
    """The SVG of the live view after a run's events, to its end or up to an update. Raises: UserError: no events."""
    view = LiveView(Console(file=io.StringIO(), width=width, height=height, force_terminal=True))
    for event in read_events(run):
        if until is None or event["step"] <= until:
            view.show(json.loads(json.dumps(event).replace(str(run.resolve()), f"runs/{run.name}")))
    view.close()
    paper = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, record=True)
    paper.print(view.render())
    svg = paper.export_svg(title="raylm", code_format=_OWN_FONTS, unique_id="raylm")
    return "\n".join(line.rstrip() for line in svg.splitlines() if line.strip()) + "\n"


def main(arguments: Sequence[str], program: str) -> int:
    """The exit code. Raises: UserError: a mistake of the user's."""
    parser = argparse.ArgumentParser(program, description="Draw a run's live view as an SVG image.")
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    parser.add_argument("--output", metavar="FILE", type=Path, default=Path("screenshot.svg"))
    parser.add_argument("--until", metavar="STEP", type=int, help="as it was after this update; default: at its end")
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--height", type=int, default=30)
    options = parser.parse_args(arguments)
    write_file(options.output, drawn(options.run, options.until, options.width, options.height).encode())
    return 0


if __name__ == "__main__":
    leave(guarded(main, sys.argv[1:], "python jobs/screenshot.py"))
