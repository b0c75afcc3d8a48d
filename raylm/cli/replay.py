"""`raylm replay INCIDENT`: compute a step that failed again, in one process, and show where it goes wrong."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raylm.checkpoint.mirror import Mirror
from raylm.cli.tables import print_json, print_table
from raylm.cli.words import positive
from raylm.data.upload import is_uri
from raylm.errors import UserError
from raylm.observe.events import finite_json

SUMMARY = "Compute an incident's step again in one process, bit for bit, and show its first non-finite tensor."


def main(arguments: Sequence[str], program: str = "raylm replay") -> int:
    """The exit code: 0 where the step is sound now, 1 where it fails again. Raises: UserError: a mistake of the
    user's."""
    options = _parser(program).parse_args(arguments)
    if options.on == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_USE_LEGACY_KERAS="1")
    from raylm.training.replay import replay  # here: importing TensorFlow takes seconds, and it reads the environment

    with folder_of(options.incident) as folder:
        told = replay(
            folder,
            clip_norm=options.clip,
            rate=options.learning_rate,
            diagnosed=options.diagnose,
            say=lambda line: print(line, file=sys.stderr if options.json else sys.stdout),
        )
    if options.json:
        print_json(sys.stdout, finite_json({"sound": told.sound, "answer": told.lines, "tensors": told.trace}))
    else:
        print_table(sys.stdout, _COLUMNS, [_row(each) for each in told.trace], texts=2)
        print("\n".join(told.lines))
    return 0 if told.sound else 1


@contextmanager
def folder_of(incident: str) -> Iterator[Path]:
    """The folder of an incident. One in an object store is copied, and what changed in it is sent back.

    Raises:
        UserError: the URI names no incident of a run, or the store cannot be used.
    """
    if not is_uri(incident):
        yield Path(incident)
        return
    named = re.fullmatch(r"(.+)/(incidents/[^/?]+)/?(\?.*)?", incident)
    if named is None:
        raise UserError(f"{incident!r} names no incident: give RUN/incidents/step-…, as the run's events name it")
    run, name, query = named.groups("")
    mirror = Mirror(run + query, "reader")
    folder = mirror.fetch_folder(name)
    yield folder
    mirror.push([f"{name}/{file.name}" for file in folder.iterdir()])


_COLUMNS = ("non-finite", "smallest", "largest", "mean size", "shape", "tensor")


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        program,
        description=SUMMARY,
        epilog=f"example: {program} runs/quick/incidents/step-00000120 --clip 5",
        allow_abbrev=False,
    )
    parser.add_argument("incident", metavar="INCIDENT", help="a folder in a run's incidents, or its URI")
    parser.add_argument("--on", choices=("cpu", "default"), default="default", help="the device to compute on")
    parser.add_argument("--clip", type=positive, metavar="NORM", help="clip the gradient here since the snapshot")
    parser.add_argument("--learning-rate", type=positive, metavar="RATE", help="its highest since the snapshot")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--diagnose", action="store_true", help="make all probes, without a limit of time")
    return parser


def _row(tensor: Mapping[str, Any]) -> Sequence[str]:
    numbers = (tensor[name] for name in ("smallest", "largest", "mean_size"))
    shown = ("-" if number is None else f"{number:.4g}" for number in numbers)
    shape = " × ".join(map(str, tensor["shape"])) or "scalar"
    first = "  <- first" if tensor["first"] else ""
    return (f"{tensor['non_finite']:,}", *shown, shape, f"{tensor['tensor']}{first}")
