"""Searches learning rate, dropout and clip with Ray Tune (ASHA); each trial is a raylm run in a folder of its own.

    python jobs/tune_ptb.py --toy                                      minutes on two cores
    python jobs/tune_ptb.py --trials 32 --recipe ptb-small --corpus ptb
    raylm train --config runs/tune-20261122-120000/best.toml           the best configuration, trained to its end

Options that are not the search's own are those of `raylm train`; with trials on several nodes, --storage-path is a
folder that all of them reach, or s3://BUCKET/PATH. Each trial trains in one process, on one GPU for each
of --replicas where there are GPUs. ASHA (Li et al. 2018, arXiv:1810.05934) looks after the epochs 1, 3, 9 and so on,
and ends all but the best third; such a run is interrupted, not lost: `raylm resume` goes on with it.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raylm.cli.config import toml_lines
from raylm.cli.main import guarded, leave
from raylm.cli.options import parse_run_config
from raylm.cli.tables import print_table
from raylm.cli.train import prepare, run_folder
from raylm.cli.words import merged
from raylm.config import RunConfig
from raylm.data.caching import default_cache_dir, write_file
from raylm.data.dataset import open_dataset
from raylm.data.sample import find_sample
from raylm.errors import UserError
from raylm.observe import figures
from raylm.observe.events import NAME as EVENTS
from raylm.observe.events import EventLog, read_events, validation_losses
from raylm.observe.run_folder import RunRecord, create_in_store, create_run_folder, to_be_kept
from raylm.observe.summary import NAME as SUMMARY
from raylm.observe.summary import Summary, write_summary
from raylm.training.datasets import Datasets
from raylm.training.topology import Topology

TOY = (
    *("--data.lanes", "10", "--data.window", "10", "--data.vocabulary-size", "1000", "--model.hidden", "48"),
    *("--model.layers", "1", "--epochs", "6", "--steps", "none", "--schedule.kind", "constant"),
    *("--report.sample-every", "0"),
)
_TOY_LINES = {"train": 1200, "valid": 150, "test": 150}
METRIC = "valid_perplexity"


@dataclass(frozen=True)
class Outcome:
    """Of one trial: its folder or URI, the configuration that it ran with, the best perplexity on the valid text, the
    epochs after which it was evaluated."""

    run: str
    config: RunConfig
    perplexity: float
    epochs: int


def ranges(config: RunConfig) -> dict[str, tuple[float, float]]:
    """What is searched, around a configuration: the learning rate and the clip on a logarithmic scale, and dropout."""
    rate = config.schedule.learning_rate
    clip = config.optimizer.clip_norm or (5.0 if config.optimizer.loss_scale == "sequence_sum" else 0.25)
    return {"learning_rate": (rate / 10, 3 * rate), "clip_norm": (clip / 5, 4 * clip), "dropout": (0.0, 0.65)}


def configured(config: RunConfig, drawn: Mapping[str, float], **more: Any) -> RunConfig:
    """A configuration with what was drawn for a trial, to three digits."""
    rate, clip, dropout = (float(f"{drawn[name]:.3g}") for name in ("learning_rate", "clip_norm", "dropout"))
    sections = {"schedule": {"learning_rate": rate}, "optimizer": {"clip_norm": clip}, "model": {"dropout": dropout}}
    return RunConfig.model_validate(merged(config.model_dump(mode="json"), sections | more))


def run_trial(drawn: Mapping[str, float], record: RunRecord, place: str, cores: int) -> None:
    """One trial, in a process of its own: the training loop, which reports to Tune after every epoch.

    place: the search's folder or URI, in which the trial has its own.
    """
    from ray import tune  # here: help needs no Ray, whose import takes a second

    from raylm.cluster.worker import QUIET_TENSORFLOW

    threads = dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), str(cores))
    os.environ.update(QUIET_TENSORFLOW, **threads)
    from raylm.training.loop import Outside, train  # here: TensorFlow reads the environment

    name = _run_name(tune.get_context().get_trial_id())
    config = configured(record.config, drawn, name=name, storage_path=place)
    folder, mirror = run_folder(config)
    if mirror is not None:
        create_in_store(mirror)
    create_run_folder(folder, replace(record, config=config))

    def report(metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        if mirror is not None:
            mirror.push()  # the search may end this trial while it reports
        tune.report(dict(metrics))

    outside = Outside(lambda event: None, lambda: False, report)
    datasets = Datasets(record.corpus, *(open_dataset(record.datasets[split]) for split in ("train", "valid", "test")))
    topology = Topology(0, 1, config.cluster.replicas or 1, config.data.lanes, config.cluster.fixed_shards)
    summary = train(config, datasets, topology, folder, outside, mirror)
    if summary.status == "failed":
        tune.report({METRIC: math.inf})


def search(record: RunRecord, place: str, folder: Path, trials: int, say: Callable[[str], None]) -> list[Outcome]:
    """Runs the trials, as many at once as the cluster has room for; the best first.

    place: the search's folder or URI. folder: for what Ray writes: the same, or this machine's working folder.

    Raises:
        UserError: the cluster cannot be reached, or no trial came to an evaluation.
    """
    import ray  # here: help needs no Ray, whose import takes a second
    from ray import tune

    from raylm.cluster.attempt import run_name
    from raylm.cluster.connection import connected, output_to

    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
    config = record.config

    class Teller(tune.Callback):
        """Says how each trial ended. Tune keeps a copy of it on the disk, which says nothing."""

        def __init__(self, say: Callable[[str], None]) -> None:
            self.say = say

        def __getstate__(self) -> dict[str, Any]:
            return {}

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            result = trial.last_result or {}
            epochs = result.get("training_iteration", 0)
            after = f"after {epochs} epoch{'s' if epochs != 1 else ''}"
            self.say(f"{_run_name(trial.trial_id)}: {figures.perplexity(result.get(METRIC))} {after}")

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.say(f"{_run_name(trial.trial_id)} failed: see tune.log and ray/")

    with output_to(folder / "tune.log"), connected(config.cluster.address):
        cores = max(1, int(config.cluster.cpus_per_worker))
        needs = {"cpu": cores} | ({"gpu": config.cluster.replicas or 1} if ray.cluster_resources().get("GPU") else {})
        space = {
            name: tune.uniform(*ends) if name == "dropout" else tune.loguniform(*ends)
            for name, ends in ranges(config).items()
        }
        run = tune.with_parameters(run_trial, record=record, place=place, cores=cores)
        asha = tune.schedulers.ASHAScheduler(
            max_t=config.epochs,
            grace_period=1,
            reduction_factor=3,
            stop_last_trials=False,  # they are at their end, and write their summary
        )
        seeded = tune.search.BasicVariantGenerator(random_state=config.seed)
        tuner = tune.Tuner(
            tune.with_resources(run, needs),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric=METRIC, mode="min", num_samples=trials, scheduler=asha, search_alg=seeded
            ),
            run_config=tune.RunConfig(
                name=run_name(), storage_path=str(folder / "ray"), verbose=0, callbacks=[Teller(say)]
            ),
        )
        results = list(tuner.fit())
    begun = [(result.metrics, result.config) for result in results if result.metrics and result.config]
    told = [(_run_name(metrics["trial_id"]), drawn) for metrics, drawn in begun if "trial_id" in metrics]
    found = [_outcome(configured(config, drawn, name=name, storage_path=place)) for name, drawn in told]
    evaluated = [outcome for outcome in found if outcome.epochs]
    if not evaluated:
        raise UserError(f"no trial came to an evaluation; {folder / 'tune.log'} and {folder / 'ray'} say why")
    return sorted(evaluated, key=lambda outcome: outcome.perplexity)


def _outcome(config: RunConfig) -> Outcome:
    """Of a trial, as its own events tell it; where ASHA ended it in the midst, its folder is told how."""
    run, mirror = run_folder(config)
    if mirror is not None:
        mirror.pull_files()
    events = read_events(run) if (run / EVENTS).exists() else []
    losses = validation_losses(events)
    if events and not (run / SUMMARY).exists():
        step, reason = events[-1]["step"], f"ended by the search after epoch {len(losses)}"
        tokens = max((event["tokens"] for event in events if event["kind"] == "step"), default=0)
        write_summary(run, Summary("interrupted", reason, step, tokens))
        log = EventLog(run)
        log.append("end", step, None, status="interrupted", reason=reason)
        log.close()
        if mirror is not None:
            mirror.push()
    lowest = figures.perplexity_of(min(losses.values(), default=math.inf))
    place = mirror.place if mirror else str(run)
    return Outcome(place, config, math.inf if lowest is None else lowest, len(losses))


def _run_name(trial: str) -> str:
    return f"trial-{trial.rpartition('_')[2]}"


def main(arguments: Sequence[str], program: str) -> int:
    """The exit code. Raises: UserError: a mistake of the user's."""
    parser = argparse.ArgumentParser(
        program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--trials", type=int, default=8, help="how many (default: %(default)s)")
    parser.add_argument("--toy", action="store_true", help="a tiny model on a piece of the sample")
    options, rest = parser.parse_known_args(arguments)
    if options.trials < 1:
        raise UserError(f"--trials {options.trials}: at least one is needed")
    config = parse_run_config([*(TOY if options.toy else ()), *rest], program=program)
    name = config.name or f"tune-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, mirror = run_folder(config.model_copy(update={"name": name}))
    place = mirror.place if mirror else str(folder)
    if mirror is not None:
        mirror.check_writable()
        shutil.rmtree(folder, ignore_errors=True)
    if mirror.remote.sizes() if mirror else folder.exists():
        raise UserError(f"{place} is there already: choose another --name")

    terminal = sys.stdout  # Ray's part of it goes to a file

    def say(line: str) -> None:
        print(line, file=terminal, flush=True)

    if options.toy:
        text = {"data": {"corpus": [str(_toy_text(folder / "text", say))]}}
        config = RunConfig.model_validate(merged(config.model_dump(mode="json"), text))
    record = prepare(config, say)
    say(f"searching in {place}: {options.trials} trials of {config.epochs} epochs at most")
    began = time.monotonic()
    found = search(record, mirror.uri if mirror else place, folder, options.trials, say)
    _print(found, time.monotonic() - began)
    best = {key: value for key, value in to_be_kept(found[0].config).items() if key not in ("name", "storage_path")}
    write_file(folder / "best.toml", ("\n".join(toml_lines(best)) + "\n").encode())
    if mirror is not None:
        mirror.push(("best.toml", "tune.log"))
    say(f"\nthe best one, trained to its end: raylm train --config {folder / 'best.toml'}")
    return 0


def _print(found: Sequence[Outcome], seconds: float) -> None:
    rows = [
        [
            figures.perplexity(one.perplexity),
            str(one.epochs),
            figures.compact(one.config.schedule.learning_rate),
            figures.compact(one.config.model.dropout),
            figures.compact(one.config.optimizer.clip_norm),
            one.run,
        ]
        for one in found
    ]
    print(f"\n{len(found)} trials in {figures.duration(seconds)}\n")
    print_table(sys.stdout, ["valid perplexity", "epochs", "learning rate", "dropout", "clip", "run"], rows)


def _toy_text(folder: Path, say: Callable[[str], None]) -> Path:
    """The first lines of the sample's texts."""
    for file in find_sample(default_cache_dir(), say):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)[: _TOY_LINES[file.stem]]
        write_file(folder / file.name, "".join(lines).encode())
    return folder


if __name__ == "__main__":
    leave(guarded(main, sys.argv[1:], "python jobs/tune_ptb.py"))
