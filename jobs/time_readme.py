"""Runs the README's commands, one after another, from an empty directory, and writes a page of Markdown: a table of how
long each took and how it ended, and what each printed.

RAYLM_PTB_DIR=ptb python jobs/time_readme.py --output jobs/tour.md        a quarter of an hour

Each is typed as it stands there, with what its words stand for put in: the first run for RUN, a text for my-text.txt.
The first training runs to its end; another that takes longer than --limit seconds gets a Ctrl-C then, as a person would
end it. What needs a cluster, a server, or the tests is left out, and so is what --total leaves no time for.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RAYLM = [sys.executable, "-c", "from raylm.cli.main import main; main()"]
FIRST, LAST = 8, 12  # lines of what a command printed
HEAD = """# The README's commands, and what they print

Written by `python jobs/time_readme.py --output jobs/tour.md`: each command of the README, one after another, on two CPU
cores, from an empty directory. A training that takes longer than 25 seconds was ended there by Ctrl-C, which saves.
"""
ELSEWHERE = ("jobs/serve.py", "jobs/bench_", "jobs/soak.py", "s3://", "raylm doctor --workers")


@dataclass(frozen=True)
class Timed:
    """How long a command took, how it ended (its exit code, or that it was stopped), and what it printed."""

    command: str
    seconds: float
    end: str
    said: str = ""


def commands(text: str) -> Iterator[str]:
    """raylm's own commands and jobs in a page's blocks of code, each once, in their order."""
    seen = set()
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.removeprefix("$ ").split(" && "):
                typed = command.split("  #")[0].strip()
                if typed.startswith(("raylm ", "python jobs/")) and typed not in seen:
                    seen.add(typed)
                    if not any(words in typed for words in ELSEWHERE):
                        yield typed


def filled(command: str, folder: Path) -> list[str]:
    """The words of a command, with what is in the folder for what they stand for."""
    begun = (file.parent for file in (folder / "runs").glob("*/config.json"))
    runs = sorted(begun, key=lambda run: run.name.split("-")[-2:])  # their names end with date and time
    named = re.search(r"--name (\S+)", command)
    if runs and not named:
        checkpoints = sorted(runs[0].glob("checkpoints/step-*"))
        incidents = sorted(folder.glob("runs/*/incidents/step-*"))
        for pattern, place in (
            (r"\S+/checkpoints/step-\d+", checkpoints[-1] if checkpoints else None),
            (r"\S+/incidents/step-\d+", incidents[0] if incidents else None),
            (r"\bRUN\b|runs/quick-\d+-\d+|runs/NAME", runs[0]),
        ):
            command = re.sub(rf"(?<!\S)(?:{pattern})(?!\S)", str(place), command) if place else command
    words = shlex.split(command)
    words = words[: words.index(">")] if ">" in words else words
    return [*RAYLM, *words[1:]] if words[0] == "raylm" else [sys.executable, *words[1:]]


def timed(command: str, folder: Path, limit: float) -> Timed:
    """Runs a command in the folder, in a session of its own; at the limit it gets a Ctrl-C, and half a minute more."""
    began, stopped = time.monotonic(), ""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            filled(command, folder),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "100"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            stopped = "stopped, "
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        seconds = time.monotonic() - began
        said.seek(0)
        words = said.read().decode(errors="replace")
    return Timed(command, seconds, f"{stopped}exit code {process.returncode}", _anywhere(words, folder))


def _anywhere(words: str, folder: Path) -> str:
    """Without the names of this machine and of its folders."""
    treebank = Path(os.environ.get("RAYLM_PTB_DIR") or folder / "ptb")
    for place, name in ((folder, "."), (treebank, "ptb"), (ROOT, "."), (Path(sys.prefix), "venv"), (Path.home(), "~")):
        words = words.replace(str(place.resolve()), name)
    words = re.sub(r"(?<![\d.])\d{1,3}(\.\d{1,3}){3}(?![\d.])", "ADDRESS", words)
    return words.replace(socket.gethostname(), "HOST")


def prepare(folder: Path) -> None:
    """What the README takes for granted: the jobs, text files, a configuration."""
    (folder / "jobs").symlink_to(ROOT / "jobs")
    if named := os.environ.get("RAYLM_PTB_DIR"):
        (folder / "ptb").symlink_to(Path(named).resolve())
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines() * 4
    for name, part in {"my-text": lines, "train": lines, "valid": lines[:400], "test": lines[:400]}.items():
        (folder / f"{name}.txt").write_text("\n".join(part) + "\n", encoding="utf-8")
    (folder / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    with gzip.open(folder / "b.txt.gz", "wt", encoding="utf-8") as compressed:
        compressed.write("\n".join(lines))
    (folder / "my.toml").write_text("steps = 100\n")


def table(results: Sequence[Timed]) -> str:
    """As Markdown."""
    rows = [f"| `{each.command}` | {each.seconds:.1f} | {each.end} |" for each in results]
    return "\n".join(["| command | seconds | end |", "|---|---|---|", *rows]) + "\n"


def page(results: Sequence[Timed]) -> str:
    """The table, and of each command what it printed, without the middle where that is long."""
    parts = [HEAD, table(results)]
    for each in results:
        lines = [line.rstrip() for line in each.said.strip("\n").splitlines()]
        if len(lines) > FIRST + LAST + 1:
            lines[FIRST:-LAST] = [f"... {len(lines) - FIRST - LAST} lines"]
        parts.append("\n".join(["```", f"$ {each.command}", *lines, "```", ""]))
    return "\n".join(parts)


def main() -> None:
    """Writes the page, prints the table; of what ended otherwise than with 0 or a Ctrl-C, its last words too."""
    options = _options()
    results: list[Timed] = []
    until = time.monotonic() + options.total
    with tempfile.TemporaryDirectory(prefix="raylm-readme-") as name:
        prepare(Path(name))
        for command in commands((ROOT / "README.md").read_text(encoding="utf-8")):
            if options.only and not any(words in command for words in options.only):
                continue
            left = until - time.monotonic()
            limit = min(options.limit if results else options.first, left - 30)
            if limit <= 0:
                results.append(Timed(command, 0.0, "not begun: no time left"))
                continue
            results.append(timed(command, Path(name), limit))
            print(f"{results[-1].seconds:7.1f} s  {results[-1].end:<22} {command}", file=sys.stderr, flush=True)
            if not results[-1].end.endswith(("code 0", "code 130", "left")):
                print(results[-1].said[-500:], file=sys.stderr)
    print(table(results))
    if options.output is not None:
        options.output.write_text(page(results), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time the README's commands from an empty directory.")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the page")
    parser.add_argument("--only", nargs="+", metavar="WORDS", help="commands that hold one of these alone")
    parser.add_argument("--limit", type=float, default=25, metavar="SECONDS", help="default %(default)g")
    parser.add_argument("--first", type=float, default=180, metavar="SECONDS", help="of the first; default %(default)g")
    parser.add_argument("--total", type=float, default=1200, metavar="SECONDS", help="default %(default)g")
    return parser.parse_args()


if __name__ == "__main__":
    main()
