"""`raylm diagnose RUN`: is something wrong with this training, and what to do, from what the run tells of itself and
from its data; with --preflight before it trains, from its configuration and its data.

Exit codes: 0 healthy or suspect · 1 wrong · 2 a mistake that the user can mend.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raylm.cli.config import toml_lines
from raylm.cli.options import parse_run_config
from raylm.cli.places import look_at
from raylm.cli.tables import print_json
from raylm.cli.train import prepare
from raylm.cli.words import merged
from raylm.data.caching import write_file
from raylm.errors import UserError
from raylm.observe.chart import spark
from raylm.observe.data_symptoms import DataEvidence, data_evidence
from raylm.observe.events import finite_json
from raylm.observe.findings import Diagnosis, Finding, evidence_of
from raylm.observe.story import Story, read_story, untold_story
from raylm.observe.symptoms import diagnose

SUMMARY = "Say whether something is wrong with a training, since when, why, and what to change."


def main(arguments: Sequence[str], program: str = "raylm diagnose") -> int:
    """The exit code. Raises: UserError: a mistake of the user's."""
    preflight = "--preflight" in arguments and not {"-h", "--help"} & set(arguments)
    parser = _parser(program)
    if preflight:
        options, rest = parser.parse_known_args(arguments)
        config = parse_run_config(rest, program=f"{program} --preflight")
        record = prepare(config, lambda line: print(line, file=sys.stderr))
        story = untold_story(config.model_dump(mode="json"), record.datasets)
    else:
        parser.add_argument("run", metavar="RUN", help="the run's folder or URI; it may still be training")
        options = parser.parse_args(arguments)
        story = read_story(look_at(options.run, "diagnose")[0])
    data, why_not = _data(story)
    found = diagnose(evidence_of(story), data)
    if options.json:
        print_json(sys.stdout, finite_json({**asdict(found), "data_not_looked_at": why_not}))
    else:
        print("\n".join(lines(found, story, shutil.get_terminal_size((100, 24)).columns)))
        if why_not:
            print(f"\nThe data was not looked at: {why_not}")
    if options.apply is not None:
        _apply(found, story, options.apply)
        print(f"written to {options.apply}: raylm train --config {options.apply}", file=sys.stderr)
    return 1 if found.verdict == "wrong" else 0


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        program,
        description=SUMMARY,
        epilog=f"examples: {program} runs/quick-20261121-220000 --apply mended.toml · "
        f"{program} --preflight --recipe ptb-small --corpus ptb",
        allow_abbrev=False,
    )
    parser.add_argument("--preflight", action="store_true", help="no run: the options of raylm train, before it trains")
    parser.add_argument("--apply", metavar="FILE", type=Path, help="write the run's configuration, mended, as TOML")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _data(story: Story) -> tuple[DataEvidence | None, str]:
    """What the run's data shows, or why it could not be looked at."""
    train, valid = story.datasets.get("train", ""), story.datasets.get("valid", "")
    if not train or not valid:
        return None, "the run does not say where it is"
    if "://" in train + valid:
        return None, "it is in an object store; raylm data show looks there"
    try:
        return data_evidence(train, valid), ""
    except UserError as error:
        return None, str(error)


def lines(found: Diagnosis, story: Story, width: int) -> list[str]:
    """The diagnosis as text that fits a width, the verdict first."""
    width = max(40, min(width, 100))
    since = f" since step {found.since:,}" if found.since is not None else ""
    course = f", {story.last_step:,} updates, {story.status}" if story.start else ""
    told = [f"{found.verdict}{since} ({story.name}{course})"]
    if not found.findings:
        told += ["", "No rule found anything."]
    for number, finding in enumerate(found.findings, start=1):
        told += ["", *_wrapped(f"{number}. {finding.severity}: {finding.title}", "", width)]
        if finding.curve:
            told.append(f"   {spark(finding.curve, min(48, width - 24))}  steps {_span(finding)}")
        for text in finding.evidence:
            told += _wrapped(text, "   ", width)
        told += _wrapped(f"What to do: {finding.advice}", "   ", width)
        told += [f"     {line}" for line in toml_lines(_tree(finding.patch)) if line]
        told += _wrapped(f"Threshold: {finding.source}.", "   ", width)
    if found.left_out:
        told += ["", f"{found.left_out} more of less weight."]
    return told


def _span(finding: Finding) -> str:
    return f"{finding.curve[0][0]:,} to {finding.curve[-1][0]:,}"


def _wrapped(text: str, first: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=first or "   ", break_on_hyphens=False)


def _apply(found: Diagnosis, story: Story, path: Path) -> None:
    """Writes the run's configuration with the patches of the findings over it, the weightiest over the others.

    Raises:
        UserError: nothing is to be mended by the configuration, the run has none, or the file cannot be written.
    """
    patch: dict[str, Any] = {}
    for finding in reversed(found.findings):
        patch |= finding.patch
    if not patch:
        raise UserError("--apply: no finding has a change of the configuration that would mend it")
    if not story.config:
        raise UserError("--apply: the run has no config.json to change")
    mended = merged({key: value for key, value in story.config.items() if key != "name"}, _tree(patch))
    write_file(path, ("\n".join(toml_lines(mended)) + "\n").encode())


def _tree(patch: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in patch.items():
        branch: Any = value
        for part in reversed(key.split(".")):
            branch = {part: branch}
        tree = merged(tree, branch)
    return tree
