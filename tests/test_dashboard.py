"""Every panel of the Grafana dashboard asks for a gauge that runs export, and every gauge is set by an event."""

from __future__ import annotations

import json
import re

import pytest

from raylm.cli.dashboard import main
from raylm.observe.dashboard import GAUGES, figures_of, grafana

STEP = {
    "kind": "step",
    "step": 40,
    "loss": 5.0,
    "perplexity": 148.4,
    "tokens_per_second": None,
    "gradient_norm": "nan",
    "learning_rate": 1.0,
    "data_wait": 0.25,
}


def test_every_panel_asks_for_gauges_that_exist_and_no_gauge_is_forgotten() -> None:
    asked = [target["expr"] for panel in grafana()["panels"] for target in panel["targets"]]
    named = [re.fullmatch(r'max by \(run\) \(ray_(\w+)\{run=~"\$run"\}\)', query) for query in asked]
    assert {match[1] for match in named if match} == set(GAUGES)
    assert None not in named


def test_the_variables_that_the_queries_use_are_defined() -> None:
    board = grafana()
    defined = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board).replace("$__all", "")))
    assert used == defined == {"run", "datasource"}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in board["panels"]})


def test_a_step_sets_what_it_tells_and_leaves_out_what_is_missing_or_no_number() -> None:
    assert figures_of(STEP) == {
        "raylm_step": 40.0,
        "raylm_loss": 5.0,
        "raylm_perplexity": 148.4,
        "raylm_learning_rate": 1.0,
        "raylm_data_wait": 0.25,
    }
    assert figures_of(STEP | {"all_reduce_share": 0.5})["raylm_all_reduce_share"] == 0.5


@pytest.mark.parametrize(
    ("event", "gauges"),
    [
        ({"kind": "eval", "split": "valid", "perplexity": 99.0}, {"raylm_valid_perplexity": 99.0}),
        ({"kind": "eval", "split": "test", "perplexity": 99.0}, {}),
        ({"kind": "rollback", "rollbacks": 2}, {"raylm_rollbacks": 2.0}),
        ({"kind": "resume", "rollbacks": 3}, {"raylm_rollbacks": 3.0}),
        ({"kind": "resume"}, {}),
        ({"kind": "wait", "what": "data"}, {}),
    ],
)
def test_other_events_set_what_is_theirs(event: dict[str, object], gauges: dict[str, float]) -> None:
    assert figures_of(event) == gauges


def test_the_command_prints_the_dashboard(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert json.loads(capsys.readouterr().out) == grafana()
