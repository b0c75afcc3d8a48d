"""What the commands that use a trained model share: the options that name it, finding it, starting TensorFlow."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from pydantic_settings import CliPositionalArg

from raylm.cli.train import prepare
from raylm.config import Section
from raylm.errors import UserError
from raylm.training.loading import Trained, load_trained


class ModelCommand(Section):
    checkpoint: CliPositionalArg[str | None] = None
    """A run's folder (its newest checkpoint), one checkpoint's folder, or exported weights."""
    best: bool = False
    """Of a run's folder, the checkpoint of the lowest validation loss instead of the newest."""


Mode = Literal["stream", "sentences"]


def longest_sentence(read: Mode | None, trained: Trained) -> int | None:
    """Targets that a sentence is read in at once; None where text is read as one stream."""
    data = trained.config.data
    return data.buckets[-1] if (read or data.mode) == "sentences" else None


def load(checkpoint: str | None, best: bool, program: str) -> Trained:
    """The model that a command names. Raises: UserError: it names none, or none that can be read."""
    if checkpoint is None:
        raise UserError(f"name a run, a checkpoint or exported weights, as in: {program} runs/quick")
    return load_trained(checkpoint, prepare, sayer(program), best=best)


def sayer(program: str) -> Callable[[str], None]:
    """Lines for the person at the terminal, away from what the command prints."""
    return lambda line: print(f"{program}: {line}", file=sys.stderr)


@contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """For the import of TensorFlow: without what its libraries write to standard error then, unless it fails."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(before, 2)
            said.seek(0)
            os.write(2, said.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)
