"""`raylm score CHECKPOINT FILE...`: the log probability of every token of text files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic_settings import CliPositionalArg

from raylm.cli.options import parse_options
from raylm.cli.ray_log import ray_log
from raylm.cli.trained import Mode, load, longest_sentence, quiet_tensorflow
from raylm.config import Section
from raylm.data.caching import storing
from raylm.data.inputs import plan_splits
from raylm.data.runners import WorkersLost
from raylm.errors import UserError
from raylm.training.loading import Trained, here

SUMMARY = "Give the log probability of every token of text files, to Parquet or as JSON lines."

EXAMPLES = """
Columns: file, row (the line, from 1), position (in the row, from 0), word (<unk> where the vocabulary lacks it), id,
log_probability (nats, given all tokens before). In a stream lines follow each other, each ended by <eos>; the first is
read as if after one.

examples:
  raylm score runs/quick my-text.txt | head
  raylm score runs/quick a.txt b.txt.gz --output scores.parquet
  raylm score runs/quick s3://corpus/a.txt.gz s3://corpus/b.txt.gz --output scores.parquet --ray --address auto"""


class ScoreCommand(Section):
    checkpoint_and_files: CliPositionalArg[tuple[str, ...]] = ()
    """A run's folder (its newest checkpoint), one checkpoint's folder, or exported weights; then text files: plain,
    gzip or zstd, or Parquet with a column text."""
    best: bool = False
    """Of a run's folder, the checkpoint of the lowest validation loss instead of the newest."""
    read: Mode | None = None
    """As one stream, or each line alone, its first token given (null); default as the model was trained."""
    output: Path | None = None
    """Parquet file to write; default JSON lines to standard output."""
    ray: bool = False
    """Work on Ray Data, a task for each file; every node must reach the files and the output's folder."""
    address: str | None = None
    """Ray cluster to use with --ray; default $RAY_ADDRESS, else Ray is started on this machine for the time being."""


def main(arguments: Sequence[str], program: str = "raylm score") -> int:
    """The exit code. Raises: UserError: a mistake of the user's."""
    command = parse_options(ScoreCommand, arguments, program=program, about=SUMMARY + "\n" + EXAMPLES)
    checkpoint, *files = command.checkpoint_and_files or (None,)
    if not files:
        raise UserError(f"name a checkpoint and at least one text file, as in: {program} runs/quick my-text.txt")
    output = None if command.output is None else here(command.output)
    if output is not None:
        with storing(output):
            if not output.parent.is_dir():
                raise UserError(f"--output {output}: there is no folder {output.parent}")
            if output.is_dir():
                raise UserError(f"--output {output} is a folder: name a file in it")
    if command.ray and output is None:
        raise UserError("--ray writes a Parquet file: add --output FILE")
    if command.address is not None and not command.ray:
        raise UserError("--address is of use with --ray alone: add --ray, or leave --address out")
    plan_splits(files)  # a missing one is told before the others are read
    trained = load(checkpoint, command.best, program)
    if command.ray:
        assert output is not None
        return _on_ray(trained, files, longest_sentence(command.read, trained), output, command.address, program)
    with quiet_tensorflow():
        from raylm.training.inference import make_model  # here: TensorFlow takes seconds
        from raylm.training.score import score_text, write_lines, write_parquet

    tables = score_text(
        make_model(trained), files, trained.tokenizer, trained.vocabulary, longest_sentence(command.read, trained)
    )
    if output is None:
        write_lines(tables, sys.stdout)
    else:
        print(f"{write_parquet(tables, output):,} tokens: {output}")
    return 0


def _on_ray(
    trained: Trained, files: Sequence[str], longest: int | None, output: Path, address: str | None, program: str
) -> int:
    with quiet_tensorflow():
        from raylm.cluster.scoring import score_on_ray  # here: TensorFlow and Ray take seconds
    try:
        with ray_log("score") as log:
            tokens = score_on_ray(trained, files, longest, output, address=address, log=log)
    except WorkersLost as lost:
        print(f"{program}: {lost}", file=sys.stderr)
        return 1
    print(f"{tokens:,} tokens: {output}")
    return 0
