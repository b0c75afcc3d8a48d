"""`raylm data verify|show|where|sample`: look into a dataset.

Exit codes: 0 done (verify: it is whole) · 1 verify: it is damaged · 2 a mistake that the user can mend.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic_settings import CliPositionalArg

from raylm.cli.options import parse_options
from raylm.cli.progress import ByteProgress
from raylm.cli.tables import print_facts, print_json, print_table, shown_word
from raylm.config import RunConfig, Section
from raylm.data.dataset import Dataset, open_dataset
from raylm.data.description import Description, describe
from raylm.data.provenance import sample_rows, where
from raylm.data.verify import verify_dataset
from raylm.errors import UserError
from raylm.observe.events import read_events
from raylm.observe.positions import position_of
from raylm.observe.run_folder import read_record
from raylm.training.datasets import open_source
from raylm.training.topology import Topology

SUMMARY = "Look into a dataset."


def main(arguments: Sequence[str], program: str = "raylm data") -> int:
    """The exit code. Raises: UserError: a mistake of the user's."""
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"usage: {program} WHAT DATASET [OPTIONS]", "", SUMMARY, ""]
        lines += [f"  {name:<7} {about.splitlines()[0]}" for name, (_, about) in ACTIONS.items()]
        print("\n".join([*lines, "", f"{program} WHAT --help says more.", f"example: {program} show data/train"]))
        return 0
    name, *rest = arguments
    if name not in ACTIONS:
        near = difflib.get_close_matches(name, ACTIONS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(ACTIONS)}"
        raise UserError(f"{name!r} is nothing that can be done with a dataset; {hint}")
    act, about = ACTIONS[name]
    return act(rest, f"{program} {name}", about)


class Command(Section):
    dataset: CliPositionalArg[str | None] = None
    """Its folder or URI."""
    as_json: bool = Field(False, alias="json")
    """Print JSON."""


class Show(Command):
    top: PositiveInt = 20
    """Most frequent words to list."""


class Where(Command):
    position: NonNegativeInt | None = None
    """Position, counted in windows from the start of a run, as the events of a run tell it."""
    step: PositiveInt | None = None
    """Update of the run instead: the window that it used."""
    run_folder: Path | None = Field(None, alias="run")
    """Folder of a run, to take dataset, lanes, window, order, seed and the position of a step from."""
    lanes: PositiveInt | None = None
    """Lanes of the global batch; default those of the run, else 20."""
    window: PositiveInt | None = None
    """Time steps of a window; default those of the run, else 20."""
    order: Literal["sequential", "chunk"] | None = None
    """Order of an epoch; default that of the run, else sequential."""
    seed: NonNegativeInt | None = None
    """Seed of the order; default that of the run, else 0."""


class Sample(Command):
    rows: PositiveInt = 10
    """How many."""
    seed: NonNegativeInt = Field(0, lt=2**63)
    """Another seed draws other rows."""


def _verify(arguments: Sequence[str], program: str, about: str) -> int:
    command = parse_options(Command, arguments, program=program, about=about)
    with ByteProgress() as progress:
        found = verify_dataset(_named(command, program), lambda done, total: progress.tell("verifying", done, total))
    if command.as_json:
        print_json(sys.stdout, asdict(found))
    elif found.faults:
        print("\n".join(found.faults))
        print(f"damaged: {len(found.faults)} fault{'s' if len(found.faults) > 1 else ''} in {found.files} files")
    else:
        print(f"whole: {found.files} files, {found.bytes:,} bytes, dataset_id {found.dataset_id}")
    return 1 if found.faults else 0


def _show(arguments: Sequence[str], program: str, about: str) -> int:
    command = parse_options(Show, arguments, program=program, about=about)
    found = describe(open_dataset(_named(command, program)), command.top)
    if command.as_json:
        print_json(sys.stdout, _document(found))
        return 0
    dataset = found.dataset
    print_facts(
        sys.stdout,
        [
            ("dataset_id", dataset.dataset_id),
            ("tokens", f"{dataset.tokens:,}"),
            ("rows", f"{dataset.rows:,}"),
            ("tokens in a row", f"{found.shortest_row} to {found.longest_row:,}, on average {found.mean_row:.2f}"),
            ("without target", f"{found.rows_without_target:,} rows"),
            ("vocabulary", f"{len(dataset.vocabulary):,} words, {found.distinct_words:,} of them in the text"),
            ("unknowns", f"{dataset.unknowns:,} ({found.unknown_rate:.2%})"),
            ("entropy", f"{found.entropy:.4f} nats a token: unigram perplexity {found.unigram_perplexity:,.2f}"),
            ("files", f"{found.bytes:,} bytes, {found.shards} shards, {dataset.manifest.totals.chunks} chunks"),
            ("rejects", f"{dataset.manifest.rejected:,}"),
            *((name.replace("_", " "), _one(value)) for name, value in dataset.manifest.provenance.items() if value),
        ],
    )
    print()
    bins = [
        (f"{bin.rows:,}", f"{bin.rows / dataset.rows:.2%}", _range(bin.first, bin.last)) for bin in found.row_lengths
    ]
    print_table(sys.stdout, ["rows", "share", "tokens in a row"], bins)
    print()
    words = [(f"{word.count:,}", f"{word.share:.2%}", shown_word(word.word)) for word in found.most_frequent]
    print_table(sys.stdout, ["count", "share", "most frequent"], words)
    return 0


def _where(arguments: Sequence[str], program: str, about: str) -> int:
    command = parse_options(Where, arguments, program=program, about=about)
    config = RunConfig()
    place = command.dataset
    if command.run_folder is not None:
        record = read_record(command.run_folder)
        config, place = record.config, place or record.datasets["train"]
    if place is None:
        raise UserError("name a dataset, or a run with --run, as in: raylm data where data/train --position 0")
    position = _position(command)
    named = {name: getattr(command, name) for name in ("lanes", "window", "order") if getattr(command, name)}
    data = config.data.model_copy(update=named)
    seed = config.seed if command.seed is None else command.seed
    whole = Topology(0, 1, 1, data.lanes)
    reader = open_source(config.model_copy(update={"data": data, "seed": seed}), open_dataset(place), whole)
    cursor, readings = reader.at(position), where(reader, position)
    if command.as_json:
        lanes = [asdict(reading) for reading in readings]
        document = {"position": position, "epoch": cursor.epoch, "window": cursor.window, "lanes": lanes}
        print_json(sys.stdout, document)
        return 0
    print(f"position {position:,}: window {cursor.window:,} of epoch {cursor.epoch} (both from 0)\n")
    rows = [
        (f"{at.lane}", f"{at.chunk}", f"{at.row:,}", f"{at.first_token:,}", f"{at.targets}", at.shard, at.text)
        for at in readings
    ]
    print_table(sys.stdout, ["lane", "chunk", "row", "token", "targets", "shard", "text"], rows, texts=2)
    return 0


def _position(command: Where) -> int:
    if (command.position is None) == (command.step is None):
        raise UserError("say where: either --position P, or --step N of a run (--run RUN)")
    if command.position is not None:
        return command.position
    if command.run_folder is None:
        raise UserError(f"--step {command.step}: of which run? Add --run RUN, or name a --position")
    return position_of(read_events(command.run_folder), command.step or 0)


def _sample(arguments: Sequence[str], program: str, about: str) -> int:
    command = parse_options(Sample, arguments, program=program, about=about)
    rows = sample_rows(open_dataset(_named(command, program)), command.rows, command.seed)
    if command.as_json:
        print_json(sys.stdout, {"rows": [asdict(row) for row in rows]})
        return 0
    cells = [(f"{row.number:,}", f"{row.chunk}", row.shard, row.text) for row in rows]
    print_table(sys.stdout, ["row", "chunk", "shard", "text"], cells, texts=2)
    return 0


def _named(command: Command, program: str) -> str:
    if command.dataset is None:
        raise UserError(f"name a dataset, as in: {program} data/train")
    return command.dataset


def _document(found: Description) -> dict[str, Any]:
    dataset: Dataset = found.dataset
    facts = {field: value for field, value in vars(found).items() if field != "dataset"}
    return {
        "dataset_id": dataset.dataset_id,
        "tokens": dataset.tokens,
        "rows": dataset.rows,
        "words": len(dataset.vocabulary),
        "unknowns": dataset.unknowns,
        "chunks": dataset.manifest.totals.chunks,
        "rejected": dataset.manifest.rejected,
        **facts,
        "row_lengths": [asdict(bin) for bin in found.row_lengths],
        "most_frequent": [asdict(word) for word in found.most_frequent],
        "provenance": dict(dataset.manifest.provenance),
    }


def _range(first: int, last: int) -> str:
    return str(last) if first == last else f"{first:,} to {last:,}"


def _one(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {text}" for name, text in value.items() if text is not None)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


Action = Callable[[Sequence[str], str, str], int]

ACTIONS: dict[str, tuple[Action, str]] = {
    "verify": (
        _verify,
        "read every byte: exit code 0 where it is whole, 1 where it is damaged, each fault named\n\n"
        "example: raylm data verify data/train",
    ),
    "show": (
        _show,
        "what is in it: sizes, lengths of rows, unknowns, most frequent words, entropy, unigram perplexity\n\n"
        "example: raylm data show data/train --top 10",
    ),
    "where": (
        _where,
        "what every lane reads at a position, or at a step of a run: shard, chunk, row and text\n\n"
        "examples:\n"
        "  raylm data where data/train --position 1000 --lanes 20 --window 35\n"
        "  raylm data where --run runs/ptb-small-20260101-120000 --step 500",
    ),
    "sample": (
        _sample,
        "rows drawn at random, as text\n\nexample: raylm data sample data/train --rows 5 --seed 1",
    ),
}
"""What can be done with a dataset: the function, and what its help begins with."""
