"""Reproducing a recipe: the row, what is refused, and a reproduction that goes on where it was interrupted."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylm import recipes
from raylm.errors import UserError
from raylm.observe.summary import Summary

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def job() -> Any:
    sys.path.insert(0, str(ROOT / "jobs"))
    return importlib.import_module("reproduction")


def test_the_row_tells_perplexities_of_mean_nats_and_how_far_the_last_epoch_s_are_apart(job: Any) -> None:
    ours = [job.Side((6.0, math.log(100)), math.log(90), 60.0), job.Side((6.0, math.log(144)), math.log(90), 80.0)]
    theirs = [job.Side((6.0, math.log(121)), math.log(99), 100.0), job.Side((6.0, math.log(121)), math.log(99), 1400.0)]
    pairs = [job.Pair(seed, *sides) for seed, sides in enumerate(zip(ours, theirs, strict=True))]
    difference = (math.log(100) + math.log(144)) / 2 / math.log(121) - 1
    assert job.relative_difference(ours, theirs) == pytest.approx(difference)
    cells = [cell.strip() for cell in job.row("ptb-awd", job.PROOFS["ptb-awd"], 2, pairs, "run").split("|")[-9:-1]]
    spread = (math.log(144) - math.log(100)) / math.log(120)
    assert cells[1:] == [
        "`ptb-awd`, 2 epochs",
        "61.2 / 58.8",
        "120.00 / 90.00",
        "121.00 / 99.00",
        f"{difference:+.2%} (among seeds: {spread:.2%}, 0.00%)",
        "70 / 750",
        "`run`",
    ]
    alone = job.row("ptb-small", job.PROOFS["ptb-small"], 13, [job.Pair(0, ours[0], None)], "run")
    assert "| 100.00 / 90.00 |  |  | 60 |" in alone
    assert (
        job.curves(pairs)[1]
        == f"seed 0, epoch 2: raylm 4.6052 nats, PyTorch 4.7958 ({ours[0].valid[1] / 4.79579 - 1:+.2%})"
    )


def test_seconds_pass_between_events_but_not_before_a_resume(job: Any) -> None:
    times = {"start": 10.0, "step": 14.0, "resume": 1000.0, "eval": 1003.0}
    events = [{"kind": kind, "step": 1, "time": at, "split": "valid", "nats": 2.0} for kind, at in times.items()]
    assert job.side_of(events) == job.Side((2.0,), None, 7.0)


def test_a_run_of_bytes_is_told_in_bits_beside_its_floor(job: Any) -> None:
    summary = Summary("completed", "", 1, 1, bigram_nats=2 * math.log(2))
    reached = job.Pair(0, job.Side((math.log(2),), None, 9.0), None)
    assert "valid 1.00 bits a byte (2.00), below the bigram floor of 2.00 bits a byte (4.00), in 9 s" in job.bytes_row(
        summary, reached, "run"
    )
    missed = job.Pair(0, job.Side((3.0,), None, 9.0), None)
    assert "NOT below" in job.bytes_row(summary, missed, "run")


def test_the_published_figures_are_those_beside_the_recipe_and_in_the_readme(job: Any) -> None:
    source, readme = inspect.getsource(recipes), (ROOT / "README.md").read_text(encoding="utf-8")
    for name, proof in job.PROOFS.items():
        figures = f"{proof.valid} / {proof.test}"
        assert re.search(rf"{proof.valid}( valid)? / {proof.test}", source), name
        assert re.search(rf"^\| `{name}` \|.*\| {figures} \|", readme, re.MULTILINE), name


@pytest.mark.usefixtures("job")
def test_another_reproduction_s_folder_and_options_of_its_own_are_refused(tmp_path: Path) -> None:
    main = importlib.import_module("reproduce").main
    folder = tmp_path / "reproduce-ptb-small" / "asked.json"
    folder.parent.mkdir()
    folder.write_text('["--recipe", "another"]')
    asked = ["ptb-small", "--without-pytorch", "--storage-path", str(tmp_path)]
    with pytest.raises(UserError, match=r"was begun with --recipe another: choose another --storage-path"):
        main(asked)
    with pytest.raises(UserError, match=r"--seed: .* give --seeds"):
        main([*asked, "--seed", "3"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_interrupted_reproduction_goes_on_and_ends_as_the_unbroken_one(tmp_path: Path) -> None:
    """SIGTERM while raylm trains and while PyTorch does: the same command goes on, to the same figures."""
    pytest.importorskip("torch", reason="PyTorch's side needs it: pip install torch")
    random = np.random.default_rng(0)
    for split, lines in {"train": 1500, "valid": 30, "test": 30}.items():
        ids = random.integers(0, 40, (lines, 9))
        (tmp_path / f"{split}.txt").write_text("".join(" ".join(f"w{i}" for i in line) + "\n" for line in ids))
    results = {}
    for name, places in {"unbroken": (), "broken": ("seed-0/events.jsonl", "pytorch-0/pytorch.safetensors")}.items():
        folder = tmp_path / name / "reproduce-ptb-medium"
        for place in places:
            process = _reproduce(tmp_path, name)
            while not _has_begun(folder / place):
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 143
        assert _reproduce(tmp_path, name).wait(280) == 0
        (results[name],) = json.loads((folder / "results.json").read_text())
        assert "| `ptb-medium`, 3 epochs |" in (folder / "row.md").read_text()
    for side in ("raylm", "pytorch"):
        assert len(results["broken"][side]["valid"]) == 3
        for figure in ("valid", "test"):
            assert results["broken"][side][figure] == results["unbroken"][side][figure]


def _reproduce(folder: Path, name: str) -> subprocess.Popen[bytes]:
    options = ["--epochs", "3", "--corpus", str(folder), "--data.cache-dir", str(folder / "cache"), "--data.lanes", "4"]
    small = ["--model.hidden", "8", "--data.window", "10", "--report.log-every", "1"]
    command = [sys.executable, str(ROOT / "jobs" / "reproduce.py"), "ptb-medium", "--storage-path", str(folder / name)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *options, *small], env=environment)


def _has_begun(file: Path) -> bool:
    if file.suffix == ".jsonl":
        return file.is_file() and b'"kind":"step"' in file.read_bytes()
    return file.is_file()
