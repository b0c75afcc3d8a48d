"""W&B and MLflow as sinks: packages on the path that write down what they are asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raylm.config import RunConfig
from raylm.errors import UserError
from raylm.observe.events import EventLog
from raylm.observe.sinks import open_sinks

PACKAGE = """
import json, pathlib, types

def _keep(name, /, *words, **named):
    with open(pathlib.Path(__file__).parent / "asked.jsonl", "a") as file:
        print(json.dumps([name, *words, named], default=str), file=file)
    if FAILS == name:
        raise ConnectionError("the server is gone")
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id="4711"), **{
        method: (lambda *words, method=method, **named: _keep(method, *words, **named))
        for method in ("log", "define_metric", "finish")
    })

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda *words, **named: _keep(name, *words, **named)
"""

Asked = Sequence[list[Any]]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path for packages of their names."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    for name in ("wandb", "mlflow"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield folder
    for name in ("wandb", "mlflow"):
        sys.modules.pop(name, None)


def told(name: str, packages: Path, run: Path, say: Any, fails: str = "") -> Asked:
    """What the package was asked while a run told some events."""
    (packages / f"{name}.py").write_text(f"FAILS = {fails!r}\n{PACKAGE}")
    run.mkdir(exist_ok=True)
    (sink,) = open_sinks(RunConfig.model_validate({"report": {"sinks": [name]}}), run, say)
    log = EventLog(run)
    for event in (
        log.append("start", 0, 0),
        log.append("step", 1, 0, loss=9.2, gradient_norm="inf", signals={"carry_read": 0.5}),
        log.append("eval", 1, 0, split="valid", nats=9.0),
    ):
        sink.record(event)
    sink.close()
    sink.close()
    log.close()
    return [json.loads(line) for line in (packages / "asked.jsonl").read_text().splitlines()]


def test_wandb_is_told_every_figure_by_update(packages: Path, tmp_path: Path) -> None:
    asked = told("wandb", packages, tmp_path / "quick", pytest.fail)
    assert [each[0] for each in asked] == ["init", "define_metric", "log", "log", "finish"]
    began = asked[0][-1]
    assert (began["id"], began["resume"], began["config"]["recipe"]) == ("quick", "allow", "quick")
    assert asked[2][1]["update"] == 1
    assert (asked[2][1]["train/loss"], asked[2][1]["signals/carry_read"]) == (9.2, 0.5)
    assert asked[3][1] == {"update": 1, "valid/nats": 9.0}


def test_mlflow_goes_on_with_its_run_after_a_resume(packages: Path, tmp_path: Path) -> None:
    asked = told("mlflow", packages, tmp_path / "quick", pytest.fail)
    assert [each[0] for each in asked] == ["start_run", "log_params", "log_metrics", "log_metrics", "end_run"]
    assert asked[1][1]["model.hidden"] == "200"
    assert asked[3][1:] == [{"valid/nats": 9.0}, {"step": 1}]
    again = told("mlflow", packages, tmp_path / "quick", pytest.fail)[len(asked) :]
    assert again[0] == ["start_run", {"run_id": "4711"}]


@pytest.mark.parametrize("fails", ["init", "log"])
def test_a_sink_that_fails_is_told_of_once_and_left_alone(fails: str, packages: Path, tmp_path: Path) -> None:
    said: list[str] = []
    asked = told("wandb", packages, tmp_path / "quick", said.append, fails)
    assert said == ["nothing more goes to wandb: the server is gone"]
    assert asked[-1][0] == fails


def test_a_package_that_is_missing_is_one_line(packages: Path, tmp_path: Path) -> None:
    (packages / "wandb.py").write_text("raise ModuleNotFoundError(name='wandb')\n")
    with pytest.raises(UserError, match=r"--report.sinks wandb: the package wandb is missing.*pip install wandb"):
        open_sinks(RunConfig.model_validate({"report": {"sinks": ["wandb"]}}), tmp_path, pytest.fail)


def test_nothing_is_imported_that_is_not_asked_for(tmp_path: Path) -> None:
    assert open_sinks(RunConfig(), tmp_path, pytest.fail) == []
