"""Prints facts and tables: by Rich on a terminal, aligned with spaces anywhere else; and plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raylm.observe.figures import one_line

Facts = Sequence[tuple[str, str]]


def print_facts(stream: TextIO, facts: Facts) -> None:
    """Name and value of each fact, one a line."""
    if stream.isatty():
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in facts:
            table.add_row(name, Text(one_line(value)))
        Console(file=stream).print(table)
        return
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:<{width}}  {one_line(value)}", file=stream)


def print_table(stream: TextIO, columns: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> None:
    """A table; its last `texts` columns are text and stand to the left, those before are figures."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    figures = len(columns) - texts
    if stream.isatty():
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for number, column in enumerate(columns):
            table.add_column(
                column,
                justify="right" if number < figures else "left",
                no_wrap=number < len(columns) - 1,
                overflow="fold",
            )
        for row in cells:
            table.add_row(*map(Text, row))
        Console(file=stream).print(table)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in [list(columns), *cells]:
        parts = [
            f"{cell:>{width}}" if number < figures else f"{cell:<{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(parts).rstrip(), file=stream)


def print_json(stream: TextIO, document: Mapping[str, Any]) -> None:
    """One JSON object."""
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False), file=stream)


def shown_word(word: str) -> str:
    """A word as it may be shown: white space and control characters as escapes, in quotes."""
    return word if word.isprintable() and not word.isspace() else repr(word)
