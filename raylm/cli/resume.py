"""`raylm resume --from-checkpoint PATH`: go on exactly where a run stopped."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from raylm.checkpoint.locate import find
from raylm.checkpoint.store import CheckpointStore, step_of
from raylm.cli.options import parse_run_config
from raylm.cli.running import open_view, run
from raylm.cli.train import prepare
from raylm.config import RunConfig, is_fixed
from raylm.data.dataset import open_dataset
from raylm.data.remote import with_credentials_of
from raylm.errors import UserError
from raylm.observe.migration import differences
from raylm.observe.run_folder import RunRecord, read_record, write_record
from raylm.observe.view import View

SUMMARY = "Go on where a run stopped, on any number of workers."


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
        help="a run's folder or URI (its newest checkpoint), or one checkpoint's",
    )
    known, overrides = parser.parse_known_args(arguments)
    found = find(known.from_checkpoint, "driver")
    folder, checkpoint, mirror = found
    left_out: list[str] = []
    before = read_record(folder, left_out.append)
    if mirror is not None:
        before = _with_credentials(before, mirror.uri)
    config = parse_run_config(overrides, program=program, base=before.config.model_dump(mode="json"))
    if mirror is not None:
        mirror.pull(checkpoint.name if checkpoint else None)
        mirror.check_writable()
    _refuse(before.config, config, checkpoint or found.store.newest())
    view = open_view(config.report.plain_seconds)
    try:
        for line in left_out:
            view.note(line)
        record = RunRecord(config, before.corpus, before.note, _datasets(before, view))
        _go_back_to(found.store, checkpoint, view)
        write_record(folder, record)
        try:
            return run(record, folder, view, mirror)
        except UserError:  # it did not begin: the next attempt is not to inherit what this one was asked for
            write_record(folder, before)
            if mirror is not None:
                mirror.push(("config.json",))
            raise
    finally:
        view.close()


def _with_credentials(record: RunRecord, uri: str) -> RunRecord:
    """The record with the credentials of the run's URI, which no file keeps, in its data's."""
    path = with_credentials_of(record.config.storage_path, uri)
    datasets = {split: with_credentials_of(place, uri) for split, place in record.datasets.items()}
    return replace(record, config=record.config.model_copy(update={"storage_path": path}), datasets=datasets)


def _refuse(before: RunConfig, after: RunConfig, checkpoint: Path | None) -> None:
    """Refuses what would make another run of it, or no run at all."""
    changes = differences(before.model_dump(mode="json"), after.model_dump(mode="json"))
    for key, (old, new) in changes.items():
        if is_fixed(key):
            raise UserError(
                f"--{key.replace('_', '-')}: the checkpoint was made with {old}, not {new}: leave the option out, or "
                "start a new run"
            )
    done = step_of(checkpoint) if checkpoint is not None else None
    if "steps" in changes and after.steps is not None and after.steps <= (done or 0):
        raise UserError(
            f"--steps {after.steps}: the checkpoint is of step {done:,}, and steps count from the start of the run: "
            "name more, or an older checkpoint"
        )


def _datasets(record: RunRecord, view: View) -> dict[str, str]:
    """The datasets of the run, prepared again where the cache lost them: a dataset's id shows that it is the same."""
    try:
        for path in record.datasets.values():
            open_dataset(path)
        return record.datasets
    except UserError as problem:
        view.note(f"{problem}; preparing the data again")
        return prepare(record.config, view.note).datasets


def _go_back_to(store: CheckpointStore, checkpoint: Path | None, view: View) -> None:
    """Sets newer checkpoints aside where the user named an older one."""
    step = step_of(checkpoint) if checkpoint is not None else None
    if checkpoint is None or step is None:
        return
    store.load(checkpoint)
    aside = store.set_aside_after(step)
    if aside is not None:
        view.note(f"newer checkpoints than step {step} are set aside in {aside}")
