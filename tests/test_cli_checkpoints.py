"""`raylm checkpoints` lists, verifies and prunes; what is bad is named and shows in the exit code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_examples import save, snapshot_at

from raylm.checkpoint.snapshot import state_sha256
from raylm.checkpoint.store import CheckpointStore
from raylm.cli.checkpoints import main
from raylm.cli.main import guarded
from raylm.config import RunConfig
from raylm.observe.events import EventLog
from raylm.observe.run_folder import RunRecord, write_record


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Six checkpoints, of which the second was the best on the validation text."""
    folder = tmp_path / "run"
    config = RunConfig(checkpoint={"keep_last": 2, "keep_every": 300})
    write_record(folder, RunRecord(config, "mine", "", dict.fromkeys(("train", "valid", "test"), "")))
    store = CheckpointStore(folder / "checkpoints", clock=lambda: 1000.0)
    log = EventLog(folder)
    for step, nats in ((100, 6.0), (200, 5.0), (300, 5.5), (400, "nan"), (500, 5.75), (600, None)):
        save(store, replace(snapshot_at(step), extra={"epoch_loss": [step // 200, 7.0 * step, step]}))
        if nats is not None:
            log.append("eval", step, step, split="valid", nats=nats)
    log.close()
    return folder


def spoil(run: Path, step: int) -> None:
    path = run / "checkpoints" / f"step-{step:08d}" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_the_table_tells_step_epoch_losses_size_age_and_state(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["step", "epoch", "loss", "validation", "size", "age", "state"]
    assert [line.split()[:6] for line in lines[:2]] == [
        ["100", "0", "7.000", "6.000", "0.0", "MiB"],
        ["200", "1", "7.000", "5.000", "0.0", "MiB"],
    ]
    assert [line.split()[-1] for line in lines] == ["complete"] * 6


def test_verify_names_the_bad_one_and_exits_with_1(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--verify"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]] == ["verified"] * 6
    spoil(run, 300)
    assert main([str(run)]) == 0
    assert main([str(run), "--verify"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "step-00000300/model.safetensors is damaged: expected SHA-256" in line]


def test_json_is_for_programs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(run, 600)
    assert main([str(run), "--verify", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["run"] == str(run)
    second, last = told["checkpoints"][1], told["checkpoints"][5]
    assert second == {
        "step": 200,
        "epoch": 1,
        "loss": 7.0,
        "validation": 5.0,
        "bytes": second["bytes"],
        "saved": 1000.0,
        "state_sha256": state_sha256(snapshot_at(200)),
        "path": str(run / "checkpoints" / "step-00000200"),
        "verified": True,
        "problem": None,
    }
    assert (last["verified"], last["validation"]) == (False, None)
    assert "step-00000600" in last["problem"]


def test_prune_says_what_it_removes_and_dry_run_removes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*options: str) -> list[str]:
        assert main([str(run), "--prune", *options]) == 0
        return capsys.readouterr().out.splitlines()

    gone = [f"{run}/checkpoints/step-00000{step}" for step in (100, 400)]
    assert told("--dry-run") == [f"{path} would be removed (0.0 MiB)" for path in gone]
    assert json.loads("\n".join(told("--dry-run", "--json"))) == {"removed": gone, "dry_run": True}
    assert told() == [f"{path} removed (0.0 MiB)" for path in gone]
    assert [info.step for info in CheckpointStore(run / "checkpoints").list()] == [200, 300, 500, 600]
    assert told() == ["nothing to remove"]


def test_what_is_no_run_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(main, [str(tmp_path / "nowhere")], "raylm checkpoints") == 2
    assert "does not exist" in capsys.readouterr().err
