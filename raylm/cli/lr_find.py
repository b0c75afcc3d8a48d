"""`raylm lr-find`: a range test of the learning rate on a copy of a run's state; the run is not touched."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from raylm.checkpoint.locate import find
from raylm.checkpoint.mirror import FOLDER
from raylm.checkpoint.snapshot import Snapshot
from raylm.checkpoint.store import CheckpointStore
from raylm.cli.options import parse_run_config
from raylm.cli.tables import print_json
from raylm.cli.train import prepare
from raylm.cli.trained import quiet_tensorflow, sayer
from raylm.cli.words import positive
from raylm.config import RunConfig
from raylm.data.caching import write_file
from raylm.data.dataset import Dataset, open_dataset
from raylm.errors import UserError
from raylm.observe.events import finite_json
from raylm.observe.page import rate_page
from raylm.observe.rate_range import diverges, document, drawn, suggest
from raylm.observe.run_folder import read_record

SUMMARY = "Find a learning rate: some updates on a copy while the rate rises, and where the loss falls fastest."


def main(arguments: Sequence[str], program: str = "raylm lr-find") -> int:
    """The exit code. Raises: UserError: a mistake of the user's."""
    options, rest = _parser(program).parse_known_args(arguments)
    say = sayer(program)
    place, config, snapshot, train = _copied(options.from_checkpoint, rest, program, say)
    lowest, highest = _range(config, options.lowest, options.highest)
    growth = (highest / lowest) ** (1 / (options.updates - 1))
    until = time.monotonic() + options.seconds
    with quiet_tensorflow():
        from raylm.training.trial import Trial  # here: TensorFlow takes seconds
    say(f"{options.updates} updates on a copy of {place}, from {lowest:g} to {highest:g}")
    tried: list[tuple[float, float]] = []
    for update in islice(Trial(config, train, snapshot).updates(lambda n: lowest * growth**n), options.updates):
        tried.append((update.rate, update.loss))
        if diverges(tried) or time.monotonic() > until:
            break
    found = suggest(tried)
    if options.json:
        print_json(sys.stdout, finite_json(document(tried, found, place)))
    else:
        width, height = shutil.get_terminal_size((100, 24))
        print("\n".join(drawn(tried, found, math.log(len(train.vocabulary)), min(width, 100), min(14, height - 8))))
        print(f"\nlearning rate: {'none' if found.rate is None else f'{found.rate:g}'}")
        print(textwrap.fill(found.why, min(width, 100)))
    if options.output is not None:
        write_file(options.output, rate_page(tried, found, place, config.model_dump(mode="json")).encode())
        say(f"written to {options.output}")
    return 0 if found.rate is not None else 1


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        program,
        description=SUMMARY + " Options of `raylm train` may follow.",
        epilog=f"examples: {program} --recipe ptb-small --corpus ptb · "
        f"{program} --from-checkpoint runs/quick --output rates.html",
        allow_abbrev=False,
    )
    parser.add_argument("--from-checkpoint", metavar="PATH", help="a run or a checkpoint; default: fresh weights")
    parser.add_argument("--lowest", type=positive, metavar="RATE", help="default: by optimizer and loss scale")
    parser.add_argument("--highest", type=positive, metavar="RATE", help="default: 100,000 times the lowest")
    parser.add_argument("--updates", type=_several, default=100, metavar="N", help="default %(default)s")
    parser.add_argument("--seconds", type=positive, default=120.0, metavar="S", help="at most; default %(default)g")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write it as an HTML page too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _several(text: str) -> int:
    value = int(text)
    if value < 10:
        raise ValueError
    return value


def _copied(
    path: str | None, rest: Sequence[str], program: str, say: Callable[[str], None]
) -> tuple[str, RunConfig, Snapshot | None, Dataset]:
    """What is copied, in words; its configuration, state and training text."""
    if path is None:
        config = parse_run_config(rest, program=program)
        return "fresh weights", config, None, open_dataset(prepare(config, say).datasets["train"])
    folder, checkpoint, mirror = find(path, "reader")
    record = read_record(folder, say)
    config = parse_run_config(rest, program=program, base=record.config.model_dump(mode="json"))
    if mirror is not None:
        mirror.pull(checkpoint.name if checkpoint else None)
    store = CheckpointStore(folder / FOLDER)
    if checkpoint is None:
        checkpoint, snapshot = store.load_newest(say)
    else:
        snapshot = store.load(checkpoint)
    try:
        train = open_dataset(record.datasets["train"])
    except UserError as problem:
        say(f"{problem}; preparing the data again")
        train = open_dataset(prepare(config, say).datasets["train"])
    return str(checkpoint), config, snapshot, train


def _range(config: RunConfig, lowest: float | None, highest: float | None) -> tuple[float, float]:
    """Five powers of ten around the rates that the optimizer is used with (`raylm.observe.rates`)."""
    terms = config.data.window if config.optimizer.loss_scale == "sequence_sum" else 1
    usual = {"adam": 1e-5, "adagrad": 1e-3}.get(config.optimizer.name, 0.02 / terms)
    lowest = usual if lowest is None else lowest
    highest = 1e5 * lowest if highest is None else highest
    if highest <= lowest:
        raise UserError(f"--highest {highest:g} must be above --lowest {lowest:g}")
    return lowest, highest
