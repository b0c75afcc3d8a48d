"""`raylm prepare`: turn text into a dataset, on this machine or, with `--ray`, on a cluster.

Exit codes: 0 done · 1 failed · 2 a mistake that the user can mend · 130 interrupted; but for 0, nothing is left behind.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from pydantic import Field, PositiveInt
from pydantic_settings import CliPositionalArg

from raylm.cli.options import parse_options
from raylm.cli.progress import ByteProgress
from raylm.cli.ray_log import ray_log
from raylm.cli.tables import Facts, print_facts, print_json
from raylm.data.manifest import REJECTS
from raylm.data.options import PrepareOptions
from raylm.data.prepare import PrepareResult, prepare
from raylm.data.runners import WorkersLost, in_processes
from raylm.errors import UserError

SUMMARY = "Turn text into a dataset: plain, gzip or zstd text, or Parquet, one line (or row) a sentence."

EXAMPLES = """
examples:
  raylm prepare train.txt --output data/train --tokenizer whitespace
  raylm prepare valid.txt --output data/valid --vocab data/train
  raylm prepare s3://corpus/a.txt.gz s3://corpus/b.parquet --output data/big --ray --address auto"""


class PrepareCommand(PrepareOptions):
    input: CliPositionalArg[tuple[str, ...]] = ()
    """Files, or URIs (s3://, gs://), in the order in which the dataset has them."""
    output: str
    """Where the dataset goes: a folder that is not there yet, or a URI."""
    processes: PositiveInt | None = None
    """Processes that work at once; default as many as this machine has cores, with --ray the cluster."""
    ray: bool = False
    """Work on Ray Data; every node must reach the inputs and the output."""
    address: str | None = None
    """Ray cluster to use with --ray; default $RAY_ADDRESS, else Ray is started on this machine for the time being."""
    as_json: bool = Field(False, alias="json")
    """Print the result as JSON."""


def main(arguments: Sequence[str], program: str = "raylm prepare") -> int:
    """The exit code. Raises: UserError: a mistake of the user's."""
    command = parse_options(PrepareCommand, arguments, program=program, about=SUMMARY + "\n" + EXAMPLES)
    if not command.input:
        raise UserError("name at least one file to prepare, as in: raylm prepare train.txt --output data/train")
    if command.address is not None and not command.ray:
        raise UserError("--address is of use with --ray alone: add --ray, or leave --address out")
    try:
        with _ending_on_sigterm(), ByteProgress() as progress:
            result = _prepare_on_ray(command, progress) if command.ray else _prepare_here(command, progress)
    except KeyboardInterrupt:
        print(f"{program}: interrupted; nothing is left behind", file=sys.stderr)
        return 130
    except WorkersLost as lost:
        print(f"{program}: {lost}", file=sys.stderr)
        return 1
    if command.as_json:
        print_json(sys.stdout, asdict(result))
    else:
        print_facts(sys.stdout, facts(result))
    return 0


def _prepare_here(command: PrepareCommand, progress: ByteProgress) -> PrepareResult:
    run = in_processes(command.processes or _cores())
    return prepare(
        command.input, command.output, _options(command), run=run, report=lambda at: progress.tell(*asdict(at).values())
    )


def _cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepare_on_ray(command: PrepareCommand, progress: ByteProgress) -> PrepareResult:
    progress.tell("starting Ray", 0, 0)
    from raylm.cluster.preparation import prepare_on_ray  # here: importing Ray takes a second

    with ray_log("prepare") as log:
        return prepare_on_ray(
            command.input,
            command.output,
            _options(command),
            address=command.address,
            tasks_at_once=command.processes,
            log=log,
            report=lambda at: progress.tell(*asdict(at).values()),
        )


def _options(command: PrepareCommand) -> PrepareOptions:
    return PrepareOptions(**{name: getattr(command, name) for name in PrepareOptions.model_fields})


def facts(result: PrepareResult) -> Facts:
    """What the table at the end says."""
    rows = [
        ("dataset", result.output),
        ("dataset_id", result.dataset_id),
        ("tokens", f"{result.tokens:,}"),
        ("rows", f"{result.rows:,}"),
        ("vocabulary", f"{result.vocabulary:,} words"),
        ("unknowns", f"{result.unknowns:,} ({result.unknowns / result.tokens:.2%})"),
        ("rejects", f"{result.rejects:,}" + (f" (listed in {result.output}/{REJECTS})" if result.rejects else "")),
        ("seconds", f"{result.seconds:.2f}"),
        ("tokens/s", f"{result.tokens_per_second:,.0f}"),
    ]
    if result.long_rows:
        rows.insert(7, ("long rows", f"{result.long_rows:,}"))
    if result.empty_lines:
        rows.insert(7, ("empty lines", f"{result.empty_lines:,}"))
    return rows


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Lets SIGTERM end the command as an exception does: what was begun is removed."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
