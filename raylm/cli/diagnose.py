"""`raylm diagnose RUN`: is something wrong with this training, and what to do, from what the run tells of itself and
from its data; with --preflight before it trains, from its configuration and its data. What a change of the learning
rate, the clip or the first weights would mend is tried on a copy, on the processor, for some seconds.

Exit codes: 0 healthy or suspect · 1 wrong · 2 a mistake that the user can mend.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raylm.checkpoint.mirror import FOLDER
from raylm.checkpoint.snapshot import Snapshot
from raylm.checkpoint.store import CheckpointStore
from raylm.cli.config import toml_lines
from raylm.cli.options import parse_run_config
from raylm.cli.places import look_at
from raylm.cli.tables import print_json
from raylm.cli.train import prepare
from raylm.cli.trained import quiet_tensorflow
from raylm.cli.words import merged
from raylm.data.caching import write_file
from raylm.data.dataset import open_dataset
from raylm.errors import UserError
from raylm.observe.chart import spark
from raylm.observe.data_symptoms import DataEvidence, data_evidence
from raylm.observe.events import finite_json
from raylm.observe.findings import Diagnosis, Finding, evidence_of
from raylm.observe.migration import read_config
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
        story, folder = untold_story(config.model_dump(mode="json"), record.datasets), None
    else:
        parser.add_argument("run", metavar="RUN", help="the run's folder or URI; it may still be training")
        options = parser.parse_args(arguments)
        folder = look_at(options.run, "diagnose")[0]
        story = read_story(folder)
    data, why_not = _data(story)
    found = diagnose(evidence_of(story), data)
    confirmed, experiment = None, ""
    if options.confirm and data is not None:
        confirmed, experiment = _experiment(found, story, folder, options.confirm)
    if options.json:
        told = {"data_not_looked_at": why_not, "confirmed": confirmed, "experiment": experiment}
        print_json(sys.stdout, finite_json({**asdict(found), **told}))
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        print("\n".join(lines(found, story, width)))
        if experiment:
            print("\n" + "\n".join(_wrapped(experiment, "", max(40, min(width, 100)))))
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
    parser.add_argument(
        "--confirm",
        metavar="SECONDS",
        type=_seconds,
        default=20.0,
        help="how long to try what would mend it, on a copy; 0 not to; default %(default)g",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError
    return value


_TRIED = {"schedule.learning_rate", "schedule.warmup_steps", "optimizer.clip_norm", "model.init_scale"}


def _experiment(found: Diagnosis, story: Story, folder: Path | None, seconds: float) -> tuple[bool | None, str]:
    """Whether the weightiest finding whose patch can be tried in a few updates is confirmed, and how that was tried;
    nothing where there is none."""
    finding = next((each for each in found.findings if each.severity != "note" and each.patch), None)
    if finding is None or not set(finding.patch) <= _TRIED:
        return None, ""
    try:
        config = read_config(dict(story.config), story.versions.get("raylm", ""), lambda line: None)
        train = open_dataset(story.datasets.get("train", ""))
        snapshot = _before(folder, finding.since)
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # the run may be using the GPUs
        with quiet_tensorflow():
            from raylm.training.confirm import confirm  # here: TensorFlow takes seconds
        tried = confirm(config, train, snapshot, finding.patch, seconds)
    except (UserError, ValidationError) as problem:
        return None, f"Not tried on a copy: {str(problem).splitlines()[0]}"
    return tried.confirmed, f"Finding {found.findings.index(finding) + 1}: {tried.line}"


def _before(folder: Path | None, since: int | None) -> Snapshot | None:
    """The newest checkpoint from well before a step; None where there is none, or fresh weights come soon to it."""
    if folder is None or since is None or since <= _SOON:
        return None
    store = CheckpointStore(folder / FOLDER)
    earlier = [info for info in store.list() if info.complete and info.step < 0.9 * since]
    return store.load(Path(earlier[-1].path)) if earlier else None


_SOON = 60
"""Updates: as many as an experiment makes at most."""


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
