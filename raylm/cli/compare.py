"""`raylm compare A B`: what differs in the configurations of runs, then how they went, here and as one HTML page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from raylm.cli.places import look_at
from raylm.cli.tables import print_json, print_table
from raylm.data.caching import write_file
from raylm.errors import UserError
from raylm.observe.figures import count, perplexity, perplexity_of
from raylm.observe.page import MOST_RUNS, compare_page
from raylm.observe.story import Story, differences, read_story

SUMMARY = "Compare runs: what differs in their configurations first, then their results and their curves."


def main(arguments: Sequence[str], program: str = "raylm compare") -> int:
    """The exit code. Raises: UserError: a mistake of the user's."""
    parser = argparse.ArgumentParser(
        program, description=SUMMARY, epilog=f"example: {program} runs/one runs/other", allow_abbrev=False
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders or URIs of runs")
    parser.add_argument("--output", metavar="FILE", type=Path, help="a page with their curves as well")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if not 2 <= len(options.runs) <= MOST_RUNS:
        raise UserError(f"name two to {MOST_RUNS} runs, as in {program} runs/one runs/other")
    stories = [read_story(look_at(run, f"compare-{n}")[0]) for n, run in enumerate(options.runs)]
    names = [story.name for story in stories]
    rows = [(*values, key) for key, values in differences(stories).items()]
    if options.json:
        tables = {"configuration": rows, "results": _results(stories)}
        print_json(sys.stdout, {"runs": names, **{name: _by_key(table) for name, table in tables.items()}})
    else:
        print_table(sys.stdout, [*names, "configuration"], rows or [("",) * len(names) + ("nothing differs",)])
        print()
        print_table(sys.stdout, [*names, "result"], _results(stories))
    if options.output is not None:
        write_file(options.output, compare_page(stories).encode())
        print(options.output, file=sys.stderr)
    return 0


def _by_key(rows: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """The values of the runs, in their order, by the last column."""
    return {row[-1]: list(row[:-1]) for row in rows}


def _results(stories: Sequence[Story]) -> list[tuple[str, ...]]:
    """A row for each figure, the values of the runs first."""
    splits = dict.fromkeys(split for story in stories for split in story.evaluations)
    rows = [
        (
            *(
                perplexity(perplexity_of(dict(story.evaluations.get(split, ())).get(_last(story, split))))
                for story in stories
            ),
            f"{split} perplexity",
        )
        for split in splits
    ]
    rows.append((*(count(story.last_step) for story in stories), "updates"))
    rows.append((*(story.status for story in stories), "how it ended"))
    rates = (count(story.summary.tokens_per_second if story.summary else None) for story in stories)
    rows.append((*rates, "tokens a second"))
    return rows


def _last(story: Story, split: str) -> int:
    return max((step for step, _ in story.evaluations.get(split, ())), default=0)
