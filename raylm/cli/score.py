"""`raylm score CHECKPOINT FILE...`: the log probability of every token of text files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic_settings import CliPositionalArg

from raylm.cli.options import parse_options
from raylm.cli.trained import Mode, load, longest_sentence, quiet_tensorflow
from raylm.config import Section
from raylm.data.caching import storing
from raylm.data.inputs import plan_splits
from raylm.errors import UserError
from raylm.training.loading import here

SUMMARY = "Give the log probability of every token of text files, to Parquet or as JSON lines."

EXAMPLES = """
Columns: file, row (the line, from 1), position (in the row, from 0), word (<unk> where the vocabulary lacks it), id,
log_probability (nats, given all tokens before). In a stream lines follow each other, each ended by <eos>; the first is
read as if after one.

examples:
  raylm score runs/quick my-text.txt | head
  raylm score runs/quick a.txt b.txt.gz --output scores.parquet"""


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
    plan_splits(files)  # a missing one is told before the others are read
    trained = load(checkpoint, command.best, program)
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
