"""`raylm export CHECKPOINT`: a trained model in a folder that needs no raylm to be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from raylm.cli.options import parse_options
from raylm.cli.trained import ModelCommand, load, quiet_tensorflow
from raylm.data.upload import is_uri
from raylm.errors import UserError
from raylm.training.export import Format, check_output, default_output, export_weights
from raylm.training.loading import here

SUMMARY = "Write a trained model for other programs: its weights as safetensors, or a TensorFlow SavedModel."

EXAMPLES = """
A SavedModel has the signatures score (tokens to log probabilities) and next (token and carry to log probabilities and
carry), and loads in plain TensorFlow. README.txt in the folder says how to read what is there.

examples:
  raylm export runs/quick
  raylm export runs/quick/checkpoints/step-00002000 --format saved-model --output models/quick"""


class ExportCommand(ModelCommand):
    form: Format = Field("safetensors", alias="format")
    """What to write."""
    output: Path | None = None
    """Folder to write, which is not there yet; default exports/step-N-FORMAT in the run's folder."""
    force: bool = False
    """Replace an earlier export at the output."""


def main(arguments: Sequence[str], program: str = "raylm export") -> int:
    """The exit code. Raises: UserError: a mistake of the user's."""
    command = parse_options(ExportCommand, arguments, program=program, about=SUMMARY + "\n" + EXAMPLES)
    if command.output is not None:
        check_output(here(command.output), force=command.force)
    elif command.checkpoint is not None and is_uri(command.checkpoint):
        raise UserError("of a run in an object store, say where the export goes: add --output FOLDER")
    trained = load(command.checkpoint, command.best, program)
    output = here(command.output or default_output(trained, command.form))
    check_output(output, force=command.force)
    if command.form == "safetensors":
        export_weights(trained, output, force=command.force)
    else:
        with quiet_tensorflow():
            from raylm.training.savedmodel import export_saved_model  # here: TensorFlow takes seconds
        export_saved_model(trained, output, force=command.force)
    print(f"step {trained.step:,} of {trained.place.parent.parent.name or trained.place}: {output}")
    return 0
