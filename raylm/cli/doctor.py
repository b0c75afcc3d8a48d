"""`raylm doctor`: what is there and what is missing, on this machine or on every node of a cluster, and what to do.

Exit codes: 0 a run can begin · 1 something is wrong, and which · 2 a mistake that the user can mend.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from raylm.cli.options import parse_run_config
from raylm.cli.tables import print_json, print_table
from raylm.cluster import facts
from raylm.cluster.checkup import Asked, NodeFacts, judge, token_row
from raylm.cluster.facts import existing
from raylm.config import RunConfig
from raylm.data import ptb
from raylm.data.caching import default_cache_dir
from raylm.data.corpora import PTB_DIR_VARIABLE
from raylm.data.prepared import SPLITS, find_prepared
from raylm.data.remote import without_secrets
from raylm.data.upload import is_uri
from raylm.errors import UserError

SUMMARY = "Look at this machine, or at every node of a cluster: what a run needs, what is missing, and what to do."
_SIGNS = {"ok": "ok", "note": "note", "wrong": "WRONG"}


def main(arguments: Sequence[str], program: str = "raylm doctor") -> int:
    """The exit code. Raises: UserError: a mistake of the user's."""
    options, rest = _parser(program).parse_known_args(arguments)
    config = parse_run_config(rest, program=program)
    address = options.address or config.cluster.address or os.environ.get("RAY_ADDRESS")
    from raylm.cluster import doctor  # here: importing Ray takes a second that help can save

    asked, question = _asked(config, options.timeout)
    mode = os.environ.get("RAY_AUTH_MODE", "")
    rows = [token_row(mode, doctor.has_token(), bool(address))]
    if address:
        from raylm.cluster.connection import connected, output_to  # here: as above

        with (
            tempfile.TemporaryDirectory() as folder,
            output_to(Path(folder) / "ray.log"),
            connected(address, "--address"),
            _marks(asked, question) as (asked, question),
        ):
            answers = doctor.examine(question, options.timeout)
            rows.append(doctor.room_row(config.cluster))
        nodes, silent = answers.nodes, answers.silent
    else:
        nodes, silent = (NodeFacts("this machine", **facts.collect(question)),), {}
    rows = [*judge(asked, facts.versions(), nodes, silent), *rows]
    wrong = sum(row.state == "wrong" for row in rows)
    if options.json:
        print_json(sys.stdout, {"address": address, "wrong": wrong, "rows": [asdict(row) for row in rows]})
        return int(wrong > 0)
    if not address:
        print("No cluster is named (--address, $RAY_ADDRESS): this machine alone was looked at.\n")
    cells = [
        [_SIGNS[row.state], row.check, row.where, " -> ".join(filter(None, (row.found, row.advice)))] for row in rows
    ]
    print_table(sys.stdout, ["", "check", "where", "found, and what to do"], cells, texts=4)
    print(f"\n{f'{wrong} of {len(rows)} rows are wrong' if wrong else 'nothing is wrong'}")
    return int(wrong > 0)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        program,
        description=SUMMARY + " The options of `raylm train` may follow: --storage-path, --corpus and --workers are "
        "looked at.",
        epilog=f"example: {program} --address 10.0.0.1:6379 --storage-path s3://bucket/raylm --workers 4",
        allow_abbrev=False,
    )
    parser.add_argument("--address", help="the Ray cluster (default: $RAY_ADDRESS; else this machine alone)")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="for all nodes (default: 60)")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    return parser


def _asked(config: RunConfig, seconds: float) -> tuple[Asked, dict[str, Any]]:
    """What the machines are asked, and how that is called in the table."""
    storage = config.storage_path
    if not is_uri(storage):
        storage = str(Path(storage).expanduser().resolve())
    cache = (config.data.cache_dir or default_cache_dir()).expanduser()
    asked = Asked(without_secrets(storage), ", ".join(map(without_secrets, config.data.corpus)), cache=str(cache))
    question = {"storage": storage, "marks": [], "datasets": [], "seconds": max(1.0, 0.8 * seconds)}
    try:
        datasets = find_prepared(config.data.corpus, config.data.tokenizer)
    except UserError as problem:
        return replace(asked, dataset_problem=str(problem)), question
    if datasets is not None:
        return replace(asked, cache=""), question | {"datasets": [datasets[split] for split in SPLITS]}
    return replace(asked, **_raw(config, cache)), question


def _raw(config: RunConfig, cache: Path) -> dict[str, str]:
    """Text that is not prepared yet: where it is, or why it cannot be had."""
    corpus = config.data.corpus
    if corpus in (("auto",), ("ptb",)):
        named = os.environ.get(PTB_DIR_VARIABLE)
        for folder in (config.data.data_dir, Path(named) if named else None, cache):
            if folder is not None and folder.is_dir() and not ptb.missing_from(folder):
                return {"dataset": f"the Penn Treebank in {folder}"}
        note = f"it is downloaded, or name its folder with --data-dir or ${PTB_DIR_VARIABLE}"
        return {"dataset": "the Penn Treebank is not here yet", "dataset_note": note}
    if corpus == ("sample",):
        return {"dataset": "the sample, which Python carries"}
    gone = [place for place in corpus if not os.access(Path(place).expanduser(), os.R_OK)]
    return {"dataset_problem": f"{gone[0]} cannot be read"} if gone else {}


@contextmanager
def _marks(asked: Asked, question: dict[str, Any]) -> Iterator[tuple[Asked, dict[str, Any]]]:
    """For a while, files in the folders that all machines must share, and what is asked of them."""
    name = f".raylm-doctor-{secrets.token_hex(8)}"
    marks = {}
    if not is_uri(question["storage"]):
        marks["storage_mark"] = existing(question["storage"]) / name
        if asked.cache:
            marks["cache_mark"] = existing(asked.cache) / name
    made = {}
    for kind, mark in marks.items():
        with suppress(OSError):
            mark.touch()
            made[kind] = str(mark)
    try:
        yield replace(asked, **made), question | {"marks": list(made.values())}
    finally:
        for place in made.values():
            Path(place).unlink(missing_ok=True)
