"""Whether `raylm diagnose` names the fault of a training: small real trainings, each with one fault, and healthy ones.

python jobs/bench_diagnose.py --results found.jsonl --markdown jobs/bench_diagnose.md
python jobs/bench_diagnose.py --only "carry dropped" "targets are the inputs"
python jobs/bench_diagnose.py --only healthy --recipe-seconds 60

Half an hour on two cores. With --results each case is written down as it ends, and one that is there already is not run
again: the same command goes on where it was broken off.

Each trains on some lines of the Penn Treebank (else of the sample) in a process of its own, at two sizes, and is right
where the first finding is the one that is meant (`planted_faults`). Healthy are the same trainings without a fault, and
every recipe for some seconds: none may have a finding above a note.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_USE_LEGACY_KERAS="1")

from planted_faults import BASE, FAULTS, HEALTHY, SIZES, Fault

from raylm.cli.words import merged
from raylm.config import RunConfig
from raylm.data.corpora import find_corpus
from raylm.data.dataset import open_dataset
from raylm.data.prepare import prepare_corpus
from raylm.observe.data_symptoms import data_evidence
from raylm.observe.findings import Diagnosis, evidence_of
from raylm.observe.run_folder import RunRecord, create_run_folder
from raylm.observe.story import read_story
from raylm.observe.symptoms import diagnose
from raylm.recipes import RECIPES
from raylm.training import loop
from raylm.training.datasets import Datasets
from raylm.training.topology import Topology


@dataclass(frozen=True)
class Result:
    """What `raylm diagnose` said of one case. rule, since: of the first finding, where there is one above a note."""

    name: str
    size: str
    verdict: str
    rule: str | None
    since: int | None
    seconds: float

    @property
    def right(self) -> bool:
        """Whether the first finding is the fault's, or nothing is found where there is none."""
        return self.rule in FAULTS[self.name].right if self.name in FAULTS else self.verdict == "healthy"


def main() -> None:
    """Prints the table."""
    options = _options()
    cases = [*itertools.product([*FAULTS, *HEALTHY], SIZES), *((f"healthy: recipe {name}", "") for name in RECIPES)]
    wanted = [case for case in cases if not options.only or any(word in case[0] for word in options.only)]
    known = _known(options.results)
    print(f"{'planted':<28}{'size':<9}{'verdict':<9}{'first finding':<23}{'since':>6}{'seconds':>9}")
    results = []
    for case in wanted:
        result = known.get(case) or _looked_at(case, options.recipe_seconds, options.results)
        since = "-" if result.since is None else str(result.since)
        told = f"{result.name:<28}{result.size:<9}{result.verdict:<9}{result.rule or '-':<23}{since:>6}"
        print(f"{told}{result.seconds:>9.0f}{'' if result.right else '  NOT RIGHT'}", flush=True)
        results.append(result)
    print("\n".join(_totals(results)))
    if options.markdown:
        options.markdown.write_text(_markdown(results), encoding="utf-8")


def _known(path: Path | None) -> dict[tuple[str, str], Result]:
    """The cases of an earlier call; a last line that was broken off is none."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []:
        try:
            result = Result(**json.loads(line))
        except ValueError:
            continue
        found[result.name, result.size] = result
    return found


def _looked_at(case: tuple[str, str], recipe_seconds: float, path: Path | None) -> Result:
    """One case, written down."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="raylm-diagnose-") as folder:
        found = _apart(*case, Path(folder), recipe_seconds)
    above = next((finding for finding in found.findings if finding.severity != "note"), None)
    rule = above.rule if above is not None else found.findings[0].rule if found.findings and case[0] in FAULTS else None
    result = Result(*case, found.verdict, rule, found.since, round(time.monotonic() - began, 1))
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
    return result


def _totals(results: Sequence[Result]) -> Sequence[str]:
    sick = [result.right for result in results if result.name in FAULTS]
    well = [result.right for result in results if result.name not in FAULTS]
    minutes = sum(result.seconds for result in results) / 60
    return (
        f"faults: first finding right in {sum(sick)} of {len(sick)}",
        f"healthy: nothing above a note in {sum(well)} of {len(well)}",
        f"{minutes:.0f} minutes in all",
    )


def _markdown(results: Sequence[Result]) -> str:
    """The table as a page: a row for each case, a column for each size."""
    by_name: dict[str, list[Result]] = {}
    for result in results:
        by_name.setdefault(result.name, []).append(result)
    lines = ["# Planted faults, and what `raylm diagnose` found first", ""]
    lines += [
        "`python jobs/bench_diagnose.py --markdown jobs/bench_diagnose.md` wrote this page. In **bold**: not right."
    ]
    lines += ["", *(f"- {total}" for total in _totals(results)), ""]
    lines += [f"| planted | {' | '.join(SIZES)} |", f"|---|{'---|' * len(SIZES)}"]
    for name, cases in by_name.items():
        told = [_cell(result) for result in cases] + [""] * (len(SIZES) - len(cases))
        lines.append(f"| {name} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def _cell(result: Result) -> str:
    since = "" if result.since is None else f", since step {result.since}"
    told = f"{result.verdict}: {result.rule}{since}" if result.rule else result.verdict
    return told if result.right else f"**{told}**"


def _apart(*case: Any) -> Diagnosis:
    """In a process of its own: TensorFlow allows one strategy each."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_diagnosed, case)


def _diagnosed(name: str, size: str, folder: Path, recipe_seconds: float) -> Diagnosis:
    """Trains one case and looks at what it left."""
    fault = FAULTS.get(name, Fault((), HEALTHY.get(name, {})))
    recipe = name.removeprefix("healthy: recipe ")
    if recipe in RECIPES:
        tree, until = (
            {**RECIPES[recipe], "recipe": recipe, "report": {"sample_every": 0}},
            time.monotonic() + recipe_seconds,
        )
    else:
        tree, until = merged(merged(BASE, {"model": SIZES[size]}), fault.config), float("inf")
    config = RunConfig.model_validate(tree)
    places = _datasets(config, fault, folder, whole=recipe in RECIPES)
    opened = Datasets("text", *(open_dataset(places[split]) for split in ("train", "valid", "test")))
    create_run_folder(folder / "run", RunRecord(config, "text", "", places))
    outside = loop.Outside(lambda event: None, lambda: time.monotonic() > until, lambda metrics, path: None)
    with fault.code():
        loop.train(config, opened, Topology(0, 1, 1, config.data.lanes), folder / "run", outside)
    return diagnose(evidence_of(read_story(folder / "run")), data_evidence(places["train"], places["valid"]))


def _no_one(line: str) -> None:
    """Nobody listens."""


def _datasets(config: RunConfig, fault: Fault, folder: Path, whole: bool) -> dict[str, str]:
    corpus = find_corpus(("auto",), say=_no_one)
    if not whole:
        texts = {
            split: getattr(corpus, split)[0].read_text().splitlines()[:most]
            for split, most in (("train", fault.lines), ("valid", 300), ("test", 300))
        }
        (folder / "text").mkdir(parents=True)
        for split, lines in fault.texts(texts).items():
            (folder / "text" / f"{split}.txt").write_text("\n".join(lines) + "\n")
        corpus = find_corpus((str(folder / "text"),), cache_dir=folder / "cache", say=_no_one)
    prepared = prepare_corpus(corpus, folder / "datasets", _no_one, vocabulary_size=config.data.vocabulary_size)
    return {split: str(path) for split, path in asdict(prepared).items()}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Whether raylm diagnose names the fault of a training.")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORDS", help="cases whose name holds one of these")
    parser.add_argument("--results", type=Path, metavar="FILE", help="JSON lines of what is done, to go on from")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="where to write the table as a page")
    parser.add_argument("--recipe-seconds", type=float, default=30, help="how long each whole recipe trains")
    return parser.parse_args()


if __name__ == "__main__":
    main()
