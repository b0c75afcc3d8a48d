"""Reproduces a recipe's published figures, or a prefix of it beside the same prefix in PyTorch, and writes the row for
the README's table.

    python jobs/reproduce.py ptb-small                       all 13 epochs; --workers 2 on two workers
    python jobs/reproduce.py ptb-medium                      3 epochs on two cores; everything where there is a GPU
    python jobs/reproduce.py ptb-awd --epochs 2 --seeds 0 1
    python jobs/reproduce.py bytes --corpus my-text.txt      byte by byte, against the floor of pairs of bytes

raylm's side is `jobs/train_ptb.py`, PyTorch's (`pip install torch`) `jobs/torch_training.py`. Other options are those
of `raylm train` and hold for both. Ctrl-C and SIGTERM save; the same command goes on. What is found is in
STORAGE/reproduce-RECIPE: raylm's runs, PyTorch's state, results.json after each of them, and row.md.

Exit codes: 0 done · 1 a run failed, or `bytes` ended above its floor · 2 a mistake that you can mend · 130 and 143 a
signal, all saved.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from reproduction import PROOFS, Pair, Side, below_floor, bytes_row, curves, row, side_of

from raylm.cli.main import guarded, leave
from raylm.cli.options import parse_run_config
from raylm.cli.train import prepare
from raylm.config import RunConfig
from raylm.data.caching import write_file
from raylm.data.dataset import open_dataset
from raylm.errors import UserError
from raylm.observe.events import NAME as EVENTS
from raylm.observe.events import read_events
from raylm.observe.summary import NAME as SUMMARY
from raylm.observe.summary import Summary

TRAIN, BYTES = Path(__file__).resolve().with_name("train_ptb.py"), "bytes"


class RunFailed(Exception):  # noqa: N818 - an end of a run, told in one line
    """raylm's side ended without its figures."""


class Stopping:
    """Ctrl-C and SIGTERM: remembered, and handed on to the program that runs."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.child: subprocess.Popen[bytes] | None = None
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, self._hear)

    def _hear(self, heard: int, _: Any) -> None:
        self.number = heard
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(heard)

    def asked(self) -> bool:
        return self.number is not None

    def run(self, command: Sequence[str]) -> int:
        """A program to its end, out of the terminal's reach, so that it hears of Ctrl-C once; its exit code."""
        self.child = subprocess.Popen(command, start_new_session=True)
        if self.number is not None:
            self.child.send_signal(self.number)
        return self.child.wait()


def main(arguments: Sequence[str], program: str = "python jobs/reproduce.py") -> int:
    """The exit code. Raises: UserError: a mistake of the user's."""
    try:
        return _reproduce(arguments, program)
    except RunFailed as failed:
        print(f"{program}: {failed}", file=sys.stderr)
        return 1


def _reproduce(arguments: Sequence[str], program: str) -> int:
    options, rest = _parse(arguments, program)
    words, proof = _training_words(options, rest), PROOFS.get(options.recipe)
    config = parse_run_config(words, program=program)
    beside = proof is not None and not options.without_pytorch
    if beside and find_spec("torch") is None:
        raise UserError("PyTorch's side needs it: pip install torch, or leave that side out with --without-pytorch")
    among = f"-{options.workers}-workers" if options.workers > 1 else ""
    folder = Path(options.storage_path).expanduser().resolve() / f"reproduce-{options.recipe}{among}"
    _keep(folder / "asked.json", words)
    stopping, pairs = Stopping(), []
    for seed in options.seeds:
        ours = _raylm(stopping, folder, [*words, "--seed", str(seed)], f"seed-{seed}")
        if ours is None:
            return _stopped(stopping, program, arguments)
        pairs.append(Pair(seed, ours, None))
        _write(folder, pairs)
        if beside:
            theirs = _pytorch(stopping, folder, config.model_copy(update={"seed": seed}))
            if theirs is None:
                return _stopped(stopping, program, arguments)
            pairs[-1] = Pair(seed, ours, theirs)
            _write(folder, pairs)
    command = f"{program} {shlex.join(_told(arguments))}"
    print()
    if proof is None:
        summary = Summary.from_json(json.loads((folder / f"seed-{pairs[0].seed}" / SUMMARY).read_text()))
        print(bytes_row(summary, pairs[0], command))
        return 0 if below_floor(summary, pairs[0]) else 1
    table = row(options.recipe, proof, config.epochs, pairs, command)
    write_file(folder / "row.md", table.encode())
    print(*curves(pairs), table, sep="\n")
    return 0


def _raylm(stopping: Stopping, folder: Path, words: Sequence[str], name: str) -> Side | None:
    """Trains, or goes on; None where that was stopped. Raises: UserError, RunFailed: it ended with exit code 2, 1."""
    run = folder / name
    if not (run / SUMMARY).is_file() or json.loads((run / SUMMARY).read_text())["status"] != "completed":
        start = [sys.executable, str(TRAIN), *words, "--name", name, "--storage-path", str(folder)]
        again = [str(Path(sys.executable).with_name("raylm")), "resume", "--from-checkpoint", str(run)]
        begun = (run / "checkpoints").is_dir()
        if not begun and (run / "config.json").is_file():
            (run / "config.json").unlink()  # killed before its first checkpoint
        code = stopping.run(again if begun else start)
        if stopping.asked():
            return None
        if code:
            raise (UserError if code == 2 else RunFailed)(f"{run}: the run ended with exit code {code}; see above why")
    return side_of(list(read_events(run / EVENTS)))


def _pytorch(stopping: Stopping, folder: Path, config: RunConfig) -> Side | None:
    """Trains, or goes on; None where that was stopped."""
    from torch_training import Training  # here: PyTorch is optional

    data = {split: open_dataset(place) for split, place in prepare(config, print).datasets.items()}
    texts = {split: each.read(0, each.tokens) for split, each in data.items()}
    training = Training(config, texts, len(data["train"].vocabulary), folder / f"pytorch-{config.seed}")
    if not training.run(stopping.asked, lambda line: print(time.strftime("%H:%M:%S"), line, flush=True)):
        return None
    progress = training.progress
    return Side(tuple(progress.valid), progress.test, progress.seconds)


def _write(folder: Path, pairs: Sequence[Pair]) -> None:
    write_file(folder / "results.json", json.dumps([asdict(pair) for pair in pairs], indent=2).encode())


def _keep(path: Path, words: Sequence[str]) -> None:
    """Writes what was asked for. Raises: UserError: the folder is of something else."""
    if path.is_file() and (before := json.loads(path.read_text())) != [*words]:
        raise UserError(f"{path.parent} was begun with {shlex.join(before)}: choose another --storage-path")
    write_file(path, json.dumps([*words]).encode())


def _stopped(stopping: Stopping, program: str, arguments: Sequence[str]) -> int:
    print(f"stopped and saved; go on with: {program} {shlex.join(arguments)}")
    return 128 + (stopping.number or 0)


def _told(arguments: Sequence[str]) -> list[str]:
    """The command line without where results are kept."""
    words = [*arguments]
    if "--storage-path" in words:
        at = words.index("--storage-path")
        del words[at : at + 2]
    return words


def _training_words(options: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """The options of `raylm train`."""
    words = ["--recipe", options.recipe, "--workers", str(options.workers), *rest]
    proof = PROOFS.get(options.recipe)
    words += ["--corpus", *(options.corpus or (["auto"] if proof is None else ["ptb"]))]
    epochs = options.epochs or (proof.epochs if proof and not Path("/dev/nvidia0").exists() else None)
    return [*words, "--epochs", str(epochs)] if epochs else words


def _parse(arguments: Sequence[str], program: str) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        program,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", choices=[*PROOFS, BYTES])
    parser.add_argument("--corpus", nargs="+", help="what to train on; default ptb, for bytes auto")
    parser.add_argument("--epochs", type=int, help="default: as many as two cores train in an hour; all with a GPU")
    parser.add_argument("--workers", type=int, default=1, help="of raylm's side")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="both sides are run with each")
    parser.add_argument("--storage-path", default=os.environ.get("RAYLM_STORAGE_PATH", "runs"), help="a folder")
    parser.add_argument("--without-pytorch", action="store_true", help="raylm's side alone")
    options, rest = parser.parse_known_args(arguments)
    for own in {"--seed", "--name"} & set(rest):
        raise UserError(f"{own}: the runs have names and seeds of their own: give --seeds")
    return options, rest


if __name__ == "__main__":
    leave(guarded(main, sys.argv[1:], "python jobs/reproduce.py"))
