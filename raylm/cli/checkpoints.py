"""`raylm checkpoints RUN`: what a run has saved; whether it is whole; what may go."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from raylm.checkpoint.locate import find
from raylm.checkpoint.retention import Retention
from raylm.checkpoint.store import CheckpointInfo
from raylm.cli.tables import print_json, print_table
from raylm.observe import figures
from raylm.observe.events import NAME as EVENTS
from raylm.observe.events import finite_json, number, read_events, validation_losses
from raylm.observe.run_folder import read_record

SUMMARY = "List the checkpoints of a run, verify every byte of them, or remove those that need not be kept."

_COLUMNS = ("step", "epoch", "loss", "validation", "size", "age", "state")


def main(arguments: Sequence[str], program: str = "raylm checkpoints") -> int:
    """The exit code: 1 where --verify finds a bad one. Raises: UserError: a mistake of the user's."""
    options = _parser(program).parse_args(arguments)
    found = find(options.run, "reader")
    folder, store = found.folder, found.store
    validation = validation_losses(read_events(folder) if (folder / EVENTS).exists() else ())
    if options.prune:
        keep = read_record(folder).config.checkpoint
        retention = Retention(keep.keep_last, keep.keep_every, keep.keep_best)
        removed = store.superfluous(retention, validation)
        if not options.dry_run:
            removed = store.prune(retention, validation, lambda line: print(f"{program}: {line}", file=sys.stderr))
        _tell_removed(removed, options)
        return 0
    infos = store.verify_all() if options.verify else store.list()
    rows = [_facts(info, validation.get(info.step), options.verify) for info in infos]
    if options.json:
        print_json(sys.stdout, finite_json({"run": found.place, "checkpoints": rows}))
    else:
        print_table(sys.stdout, _COLUMNS, [_row(row) for row in rows])
    return int(options.verify and any(not info.complete for info in infos))


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        program,
        description=SUMMARY,
        epilog=f"example: {program} runs/quick-20260101-120000 --verify",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder or URI")
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--verify", action="store_true", help="read every byte; exit code 1 where one is bad, which is named"
    )
    action.add_argument(
        "--prune", action="store_true", help="remove what the run's checkpoint.keep-* options do not keep"
    )
    parser.add_argument("--dry-run", action="store_true", help="with --prune: only say what would be removed")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    return parser


def _facts(info: CheckpointInfo, validation: float | None, verified: bool) -> dict[str, Any]:
    """A checkpoint as plain data; losses in nats a token, the training loss over the epoch so far."""
    epoch, loss_sum, tokens = (*map(number, info.extra.get("epoch_loss") or ()), None, None, None)[:3]
    return {
        "step": info.step,
        "epoch": None if epoch is None else int(epoch),
        "loss": loss_sum / tokens if loss_sum is not None and tokens else None,
        "validation": validation,
        "bytes": info.bytes,
        "saved": info.saved,
        "state_sha256": info.state_sha256,
        "path": str(info.path),
        "verified": verified and info.complete,
        "problem": info.problem,
    }


def _row(facts: Mapping[str, Any]) -> list[str]:
    saved = facts["saved"]
    return [
        str(facts["step"]),
        figures.count(facts["epoch"]),
        figures.nats(facts["loss"]),
        figures.nats(facts["validation"]),
        _size(facts["bytes"]),
        figures.MISSING if saved is None else figures.duration(time.time() - saved),
        facts["problem"] or ("verified" if facts["verified"] else "complete"),
    ]


def _size(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"


def _tell_removed(removed: Sequence[CheckpointInfo], options: argparse.Namespace) -> None:
    if options.json:
        document = {"removed": [str(info.path) for info in removed], "dry_run": options.dry_run}
        print_json(sys.stdout, document)
        return
    verb = "would be removed" if options.dry_run else "removed"
    for info in removed:
        print(f"{info.path} {verb} ({_size(info.bytes)})")
    if not removed:
        print("nothing to remove")
