"""The gauges of a run, from its events, and a Grafana dashboard that shows them.

Ray exports a gauge NAME to Prometheus as ray_NAME.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from raylm.observe.events import number

GAUGES = {
    "raylm_loss": "Loss of the last step told of, nats a token",
    "raylm_perplexity": "Perplexity of the last step told of",
    "raylm_valid_perplexity": "Perplexity on the valid text",
    "raylm_tokens_per_second": "Targets trained on a second, all workers together",
    "raylm_gradient_norm": "Norm of the gradient before the clip",
    "raylm_learning_rate": "Learning rate",
    "raylm_step": "Updates applied",
    "raylm_rollbacks": "Rollbacks since the run was begun",
    "raylm_data_wait": "Share of the time in which the loop waited for data",
    "raylm_all_reduce_share": "Share of a step that the sum over replicas takes",
}
"""Names and what they are."""

_OF_A_STEP = {
    "raylm_loss": "loss",
    "raylm_perplexity": "perplexity",
    "raylm_tokens_per_second": "tokens_per_second",
    "raylm_gradient_norm": "gradient_norm",
    "raylm_learning_rate": "learning_rate",
    "raylm_step": "step",
    "raylm_data_wait": "data_wait",
    "raylm_all_reduce_share": "all_reduce_share",
}

_PANELS = (
    ("Perplexity", "none", ("raylm_perplexity", "raylm_valid_perplexity")),
    ("Loss, nats a token", "none", ("raylm_loss",)),
    ("Tokens a second", "none", ("raylm_tokens_per_second",)),
    ("Norm of the gradient", "none", ("raylm_gradient_norm",)),
    ("Learning rate", "none", ("raylm_learning_rate",)),
    ("Rollbacks", "none", ("raylm_rollbacks",)),
    ("Where the time goes", "percentunit", ("raylm_data_wait", "raylm_all_reduce_share")),
    ("Updates", "none", ("raylm_step",)),
)


def figures_of(event: Mapping[str, Any]) -> dict[str, float]:
    """What an event sets the gauges to; what it does not tell, or tells as a NaN, is left out."""
    match event["kind"]:
        case "step":
            told = {gauge: event.get(name) for gauge, name in _OF_A_STEP.items()}
        case "eval" if event.get("split") == "valid":
            told = {"raylm_valid_perplexity": event.get("perplexity")}
        case "rollback" | "resume":
            told = {"raylm_rollbacks": event.get("rollbacks")}
        case _:
            told = {}
    values = {gauge: number(value) for gauge, value in told.items()}
    return {gauge: value for gauge, value in values.items() if value is not None and math.isfinite(value)}


def grafana() -> dict[str, Any]:
    """The dashboard as Grafana imports it; it asks for the Prometheus source that Ray's metrics are in."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    panels = [
        {
            "id": number,
            "title": title,
            "type": "timeseries",
            "datasource": source,
            "gridPos": {"h": 8, "w": 12, "x": 12 * ((number - 1) % 2), "y": 8 * ((number - 1) // 2)},
            "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
            "targets": [
                {
                    "refId": chr(ord("A") + place),
                    "datasource": source,
                    "expr": f'max by (run) (ray_{gauge}{{run=~"$run"}})',
                    "legendFormat": "{{run}}" if len(gauges) == 1 else f"{{{{run}}}} {gauge.removeprefix('raylm_')}",
                }
                for place, gauge in enumerate(gauges)
            ],
        }
        for number, (title, unit, gauges) in enumerate(_PANELS, start=1)
    ]
    runs = {
        "name": "run",
        "type": "query",
        "label": "run",
        "datasource": source,
        "query": {"query": "label_values(ray_raylm_step, run)", "refId": "run"},
        "definition": "label_values(ray_raylm_step, run)",
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }
    prometheus = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "source"}
    return {
        "uid": "raylm",
        "title": "raylm",
        "tags": ["raylm", "ray"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [prometheus, runs]},
        "panels": panels,
    }
