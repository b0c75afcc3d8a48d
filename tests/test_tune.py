"""The search: it draws around the configuration that it was given, and exports what the best trial ran."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from raylm.cli.options import parse_run_config
from raylm.config import RunConfig
from raylm.data.upload import Destination
from raylm.errors import UserError

JOB = Path(__file__).parents[1] / "jobs" / "tune_ptb.py"


@pytest.fixture(scope="module")
def job() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tune_ptb", JOB)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["tune_ptb"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_drawn_lies_around_the_configuration_and_needs_no_clip_in_it(job: ModuleType) -> None:
    config = parse_run_config(["--learning-rate", "2", "--optimizer.clip-norm", "none"], program="tune")
    ranges = job.ranges(config)
    assert ranges["learning_rate"] == (0.2, 6.0)
    assert ranges["clip_norm"] == (1.0, 20.0)
    means = parse_run_config(["--recipe", "ptb-next-word"], program="tune")
    assert job.ranges(means)["clip_norm"] == (0.05, 1.0)


def test_a_trial_differs_in_what_was_drawn_alone(job: ModuleType) -> None:
    config = RunConfig()
    drawn = {"learning_rate": 0.123456, "clip_norm": 3.0, "dropout": 0.25}
    tried = job.configured(config, drawn, name="trial-00001")
    assert (tried.schedule.learning_rate, tried.optimizer.clip_norm, tried.model.dropout) == (0.123, 3.0, 0.25)
    before = {"learning_rate": 1.0, "clip_norm": 5.0, "dropout": 0.0}
    assert job.configured(tried, before, name=None) == config


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trials", "0"], "--trials 0"),
        (["--storage-path", "{}", "--name", "there"], "is there already"),
    ],
)
def test_a_search_that_cannot_be_is_refused(job: ModuleType, words: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match=said):
        job.main([word.format(tmp_path) for word in words], "tune")


def test_a_search_in_a_bucket_that_is_missing_or_under_a_name_that_is_taken_is_refused(
    job: ModuleType, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Destination(bucket.format("there")).write("best.toml", b"")
    missing = bucket.replace("@bucket/", "@nowhere/").format("")
    for place, said in ((missing, "bucket does not exist"), (bucket.format(""), "s3://bucket/there is there already")):
        with pytest.raises(UserError, match=said):
            job.main(["--storage-path", place, "--name", "there"], "tune")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_toy_search_in_a_bucket_leaves_its_runs_there_and_the_best_configuration_here_too(
    bucket: str, tmp_path: Path
) -> None:
    done = search_toys(tmp_path, "2", bucket.format("searches"))
    remote = Destination(bucket.format("searches/toy"))
    there = remote.sizes()
    runs = {name.split("/")[0] for name in there if name.startswith("trial-")}
    assert len(runs) == 2
    for run in runs:
        assert json.loads(remote.read(f"{run}/summary.json"))["status"] in ("completed", "interrupted")
        assert [name for name in there if name.startswith(f"{run}/checkpoints/") and name.endswith("MANIFEST.json")]
    best = re.search(r"raylm train --config (\S+/best\.toml)", done.stdout)
    assert best
    assert Path(best[1]).read_bytes() == remote.read("best.toml")
    assert f"s3://bucket/searches/toy/{min(runs)}" in done.stdout
    assert not [name for name in there if name.endswith((".toml", ".json")) and b"key:hidden" in remote.read(name)]


def search_toys(folder: Path, trials: str, storage: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    words = ("--toy", "--trials", trials, "--storage-path", storage, "--name", "toy")
    done = subprocess.run(
        [sys.executable, str(JOB), *words], capture_output=True, text=True, timeout=500, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_toy_search_leaves_runs_and_the_best_configuration_that_train_takes(tmp_path: Path) -> None:
    done = search_toys(tmp_path, "4", str(tmp_path))
    folder = tmp_path / "toy"
    runs = sorted(folder.glob("trial-*"))
    assert len(runs) == 4
    ends = [json.loads((run / "summary.json").read_text())["status"] for run in runs]
    assert set(ends) <= {"completed", "interrupted"}
    assert "completed" in ends
    best = parse_run_config(["--config", str(folder / "best.toml")], program="raylm train")
    table = done.stdout.split("valid perplexity")[1].splitlines()[1].split()
    config = json.loads((Path(table[-1]) / "config.json").read_text())["config"]
    assert best.model.dropout == config["model"]["dropout"]
    assert best.schedule.learning_rate == config["schedule"]["learning_rate"]
    assert "name" not in tomllib.loads((folder / "best.toml").read_text())
