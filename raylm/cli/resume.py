"""`raylm resume --from-checkpoint PATH`: go on exactly where a run stopped."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raylm.checkpoint.locate import locate
from raylm.checkpoint.store import CheckpointStore, step_of
from raylm.cli.options import parse_run_config
from raylm.cli.running import open_view, run
from raylm.cli.train import prepare
from raylm.cli.words import fields_of
from raylm.config import RunConfig
from raylm.data.dataset import open_dataset
from raylm.errors import UserError
from raylm.observe.run_folder import RunRecord, read_record, write_record
from raylm.observe.view import View

SUMMARY = "Go on where a run stopped, on any number of workers."

FIXED = ("recipe", "name", "storage_path", "seed", "data.", "model.", "optimizer.name")
FREE = ("data.data_dir", "data.cache_dir")
"""What a checkpoint is made of: no option may change it, but for where the data lie on this machine."""


def main(arguments: Sequence[str], program: str = "raylm resume") -> int:
    """The exit code. Raises: UserError: a mistake of the user's."""
    parser = argparse.ArgumentParser(
        program,
        description=SUMMARY + " Options of `raylm train` that fit the checkpoint may follow, as in --workers 2.",
        epilog=f"example: {program} --from-checkpoint runs/ptb-small-20260101-120000 --workers 2",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--from-checkpoint",
        required=True,
        metavar="PATH",
        help="a run's folder (its newest checkpoint), or one checkpoint's folder",
    )
    known, overrides = parser.parse_known_args(arguments)
    folder, checkpoint = locate(known.from_checkpoint)
    before = read_record(folder)
    config = parse_run_config(overrides, program=program, base=before.config.model_dump(mode="json"))
    _refuse_other_state(before.config, config)
    view = open_view(config.report.plain_seconds)
    try:
        record = RunRecord(config, before.corpus, before.note, _datasets(before, view))
        _go_back_to(folder, checkpoint, view)
        write_record(folder, record)
        return run(record, folder, view)
    finally:
        view.close()


def _refuse_other_state(before: RunConfig, after: RunConfig) -> None:
    for key, _ in fields_of(RunConfig):
        old, new = _value(before, key), _value(after, key)
        if old != new and key.startswith(FIXED) and key not in FREE:
            raise UserError(
                f"--{key.replace('_', '-')}: the checkpoint was made with {old}, not {new}: leave the option out, or "
                "start a new run"
            )


def _value(config: RunConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _datasets(record: RunRecord, view: View) -> dict[str, str]:
    """The datasets of the run, prepared again where the cache lost them: a dataset's id shows that it is the same."""
    try:
        for path in record.datasets.values():
            open_dataset(path)
        return record.datasets
    except UserError as problem:
        view.note(f"{problem}; preparing the data again")
        return prepare(record.config, view.note).datasets


def _go_back_to(folder: Path, checkpoint: Path | None, view: View) -> None:
    """Sets newer checkpoints aside where the user named an older one."""
    store = CheckpointStore(folder / "checkpoints")
    step = step_of(checkpoint) if checkpoint is not None else None
    if checkpoint is None or step is None:
        return
    store.load(checkpoint)
    aside = store.set_aside_after(step)
    if aside is not None:
        view.note(f"newer checkpoints than step {step} are set aside in {aside}")
