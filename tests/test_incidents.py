"""Incidents: their folders, the verdicts on planted causes, and the step computed again."""

from __future__ import annotations

import io
import json
import math
import os
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guard_runs import config, run_all
from incident_cases import LANES, replayed, unknown, verdicts, written
from training_cases import said
from training_runner import call

from raylm.config import RunConfig
from raylm.errors import UserError
from raylm.guard.diagnosis import bisect_lanes
from raylm.observe.events import read_events
from raylm.observe.plain import PlainView
from raylm.observe.progress import Progress, advance
from raylm.training.incident import prune_incidents, read_incident


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return call(verdicts, [0, 2, 7], [0], [300.0, 1e4, 1e6])


def assert_each_is_found_or_unknown(found: dict[str, Any]) -> None:
    wrong = {
        name: (truth, verdict.line, findings)
        for name, (truth, verdict, findings) in found.items()
        if verdict.name not in (truth, "UNKNOWN")
    }
    assert not wrong
    counts = Counter(verdict.name for _, verdict, _ in found.values())
    assert counts["UNKNOWN"] <= len(found) / 10, counts


def test_of_planted_causes_every_one_is_found_or_said_to_be_unknown(found: dict[str, Any]) -> None:
    assert len(found) >= 20
    assert_each_is_found_or_unknown(found)


@pytest.mark.slow
def test_of_forty_planted_causes_every_one_is_found_or_said_to_be_unknown() -> None:
    found = call(verdicts)
    assert len(found) >= 40
    assert_each_is_found_or_unknown(found)


def test_a_bad_lane_is_found_within_the_passes_that_bisection_needs(found: dict[str, Any]) -> None:
    for name, (_, verdict, findings) in found.items():
        if "lane" in name:
            lane = int(name[-1])
            assert findings.lane == lane, name
            assert f"text of lane {lane}" in verdict.line
            assert findings.passes <= math.ceil(math.log2(LANES)) + 1


def test_a_gradient_that_leapt_is_named_with_its_step(found: dict[str, Any]) -> None:
    _, verdict, findings = found["leap 0"]
    assert findings.leap.endswith("at step 19, window 19")
    assert verdict.patch == ("[optimizer]", "clip_norm = 5")


def test_the_answer_names_the_first_non_finite_tensor_and_where_in_it(found: dict[str, Any]) -> None:
    firsts = {name: findings.first for name, (_, _, findings) in found.items()}
    assert firsts["nan-embedding@3:sticky,lane=0"] == "embedding at time 0, lane 0"
    assert firsts["nan-logits@3:sticky,lane=6"] == "logits at time 0, lane 6, word 0"
    assert firsts["nan-hidden@3:sticky,lane=3"] == "replica 0: layer0/outputs at time 0, lane 3"
    assert firsts["poisonous word in lane 2"].startswith("layer0/gates: the ")


def test_suggestions_are_configuration_that_a_run_takes(found: dict[str, Any]) -> None:
    for _, verdict, findings in found.values():
        patch = tomllib.loads("\n".join(verdict.patch))
        assert RunConfig.model_validate(patch)
        if verdict.name == "OPTIMISATION":
            assert patch in ({"optimizer": {"clip_norm": findings.clip}}, {"schedule": patch.get("schedule")})


def test_a_cause_that_no_probe_removes_is_called_unknown() -> None:
    verdict, findings = call(unknown)
    assert (verdict.name, findings.lane) == ("UNKNOWN", None)
    assert findings.first == "gradient of softmax/bias at [0]"


@pytest.mark.parametrize("lanes", [1, 2, 3, 8, 20])
def test_bisection_finds_every_lane(lanes: int) -> None:
    for bad in range(lanes):
        lane, passes = bisect_lanes(range(lanes), lambda some, bad=bad: bad in some)
        assert lane == bad
        assert passes <= math.ceil(math.log2(lanes)) + 1


def test_bisection_blames_no_lane_where_several_or_none_fail() -> None:
    assert bisect_lanes(range(8), lambda some: True)[0] is None
    assert bisect_lanes(range(8), lambda some: 1 in some or 6 in some)[0] is None


def test_an_incident_comes_back_from_its_folder_as_it_was(tmp_path: Path) -> None:
    made, back = call(written, tmp_path / "step-00000003")
    assert (made.config, made.last.drill, made.where, made.kind) == (
        back.config,
        back.last.drill,
        back.where,
        back.kind,
    )
    for one, other in zip(made.steps, back.steps, strict=True):
        assert (one.step, one.position, one.learning_rate) == (other.step, other.position, other.learning_rate)
        assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("inputs", "weights", "reset"))
    content = json.loads((tmp_path / "step-00000003" / "verdict.json").read_bytes())
    assert content["verdict"] == "DATA"
    assert content["fault"]["loss"] == "nan"
    assert next(each["tensor"] for each in content["trace"] if each["first"]) == "layer0/outputs"
    assert tomllib.loads((tmp_path / "step-00000003" / "suggested.toml").read_text())["guard"]["leave_out"] == ["3:4"]

    for name in ("config.json", "verdict.json", "batches.safetensors"):
        path = tmp_path / "step-00000003" / name
        whole = path.read_bytes()
        for damage in (whole[: len(whole) // 2], None):
            path.unlink()
            if damage is not None:
                path.write_bytes(damage)
            with pytest.raises(UserError, match=r"damaged|cannot be read"):
                read_incident(tmp_path / "step-00000003")
        path.write_bytes(whole)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two replicas with dropout: a transient fault, and a lane that fails each time."""
    folder = tmp_path_factory.mktemp("runs")
    dropout = {"layers": 2, "hidden": 8, "dropout": 0.3}
    drills = {"transient": "nan-logits@6", "data": "nan-logits@6:sticky,lane=5"}
    run_all(folder, {name: config(drill=[drill], model=dropout) for name, drill in drills.items()}, replicas=2)
    return folder


def test_every_incident_of_a_run_has_its_folder_and_its_verdict(runs: Path) -> None:
    for name, verdict in (("transient", "TRANSIENT"), ("data", "DATA")):
        told = [event for event in read_events(runs / name) if event["kind"] == "verdict"]
        assert [event["verdict"] for event in told] == [verdict]
        content = json.loads((runs / name / "incidents" / "step-00000006" / "verdict.json").read_bytes())
        assert content["verdict"] == verdict
    assert "lane 5" in content["line"]
    assert "shard" in content["line"]


def test_a_replay_computes_the_steps_of_two_replicas_bit_for_bit_in_one_process(runs: Path) -> None:
    folder = runs / "data" / "incidents" / "step-00000006"
    told, lines = call(replayed, folder)
    steps = {event["step"]: event for event in read_events(runs / "data") if event["kind"] == "step"}
    expected = [
        f"step {step}  window {step}  loss {steps[step + 1]['loss']:.6g}  norm {steps[step + 1]['gradient_norm']:.6g}"
        for step in (4, 5)
    ]
    assert lines[1:3] == expected
    assert not told.sound
    assert told.lines[0].startswith(
        "step 6 fails again; the first non-finite tensor is replica 1: logits at time 0, lane 5"
    )


def test_a_transient_fault_is_sound_when_replayed_and_ends_as_the_run_did(runs: Path) -> None:
    told, _ = call(replayed, runs / "transient" / "incidents" / "step-00000006")
    step = next(event for event in read_events(runs / "transient") if event["kind"] == "step" and event["step"] == 7)
    assert told.sound
    assert (told.result.loss, told.result.norm) == (step["loss"], step["gradient_norm"])


def test_the_views_tell_the_verdict_and_stay_at_the_present_step() -> None:
    event = {"kind": "verdict", "step": 6, "position": 6, "verdict": "DATA", "text": "DATA: id 60", "folder": "runs/x"}
    out = io.StringIO()
    PlainView(out).show(event)
    assert out.getvalue() == "verdict: DATA: id 60; more in runs/x\n"
    assert advance(Progress(step=4), event) == Progress(step=4, troubles=("DATA: id 60; more in runs/x",))


def test_raylm_replay_prints_the_trace_and_the_answer(runs: Path) -> None:
    folder = str(runs / "data" / "incidents" / "step-00000006")
    varied = ("--on", "cpu", "--clip", "0.5", "--learning-rate", "0.001")
    code, out, err = call(said, "replay", folder, *varied)
    assert code == 1, err
    assert "layer0/gates" in out
    assert "step 6 fails again; the first non-finite tensor is replica 1: logits at time 0, lane 5" in out
    assert "verdict so far: DATA" in out
    assert not any(character in out for character in "┃│\x1b")  # plain where nobody looks
    code, _, err = said("replay", str(Path(folder).parent))
    assert code == 2
    assert "name a folder in a run's incidents" in err
    assert err.count("raylm replay:") == 1


def test_the_incidents_written_to_last_are_kept(tmp_path: Path) -> None:
    folders = [tmp_path / "incidents" / f"step-{step:08d}" for step in (900, 20, 30, 40)]
    for second, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / "verdict.json").write_text("{}")
        os.utime(folder, (second, second))
    prune_incidents(tmp_path, 4)
    assert all(folder.exists() for folder in folders)
    prune_incidents(tmp_path, 2)
    assert [folder.exists() for folder in folders] == [False, False, True, True]
