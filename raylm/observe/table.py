"""The table of perplexities that a run ends with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from raylm.observe import figures
from raylm.observe.summary import Summary


@dataclass(frozen=True)
class PerplexityRow:
    """One line: a split's perplexity with its nats a token, or a floor to hold it against."""

    name: str
    perplexity: float | None
    nats: float | None
    floor: bool = False
    """What a table of word pairs (bigram), of words (unigram), or guessing (uniform) reaches."""


def summary_rows(summary: Summary) -> list[PerplexityRow]:
    """The rows of a run's end: train, valid, test, and the floors where they are known."""
    rows = [
        PerplexityRow(name, value, figures.nats_of(value))
        for name, value in (
            ("train", summary.train_perplexity),
            ("valid", summary.valid_perplexity),
            ("test", summary.test_perplexity),
        )
    ]
    floors = (("bigram", summary.bigram_nats), ("unigram", summary.unigram_nats), ("uniform", summary.uniform_nats))
    for name, nats in floors:
        if nats is not None:
            rows.append(PerplexityRow(name, figures.perplexity_of(nats), nats, floor=True))
    return rows


def summary_notes(summary: Summary, run_folder: Path | str, warning: str | None = None) -> list[str]:
    """The lines below the table: speed, what came in between, a warning of the caller's, the run's folder."""
    notes = [f"{summary.status} after {figures.count(summary.steps)} steps: {summary.reason}"]
    if summary.tokens_per_second is not None:
        share = summary.all_reduce_share
        summing = "" if share is None else f", at most {share:.0%} of it the sum over the replicas"
        notes.append(f"{figures.count(summary.tokens_per_second)} tokens/s{summing}")
    if summary.rollbacks or summary.resumes:
        notes.append(f"rollbacks: {summary.rollbacks}, resumes: {summary.resumes}")
    if warning:
        notes.append(warning)
    return [*notes, f"run folder: {run_folder}"]


def perplexity_table(rows: Sequence[PerplexityRow], notes: Sequence[str]) -> RenderableType:
    """The table for a terminal."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("perplexity", justify="right")
    table.add_column("nats/token", justify="right")
    for row in rows:
        style = "dim" if row.floor else "bold"
        table.add_row(row.name, figures.perplexity(row.perplexity), figures.nats(row.nats), style=style)
    return Group(table, Text(), *(Text(figures.one_line(note), overflow="fold") for note in notes))


def plain_table(rows: Sequence[PerplexityRow], notes: Sequence[str]) -> str:
    """The table as plain text, ending with a newline."""
    cells = [("", "perplexity", "nats/token")]
    cells += [(row.name, figures.perplexity(row.perplexity), figures.nats(row.nats)) for row in rows]
    names, perplexities, nats = (max(len(cell) for cell in column) for column in zip(*cells, strict=True))
    lines = [f"{a:<{names}}  {b:>{perplexities}}  {c:>{nats}}" for a, b, c in cells]
    return "\n".join([*lines, "", *(figures.one_line(note) for note in notes)]) + "\n"


def print_table(stream: TextIO, rows: Sequence[PerplexityRow], notes: Sequence[str]) -> None:
    """Print the table as the stream can show it: styled on a terminal, plain elsewhere."""
    if stream.isatty():
        Console(file=stream).print(perplexity_table(rows, notes))
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(plain_table(rows, notes).encode(encoding, "replace").decode(encoding))
    stream.flush()
