"""A run's figures as gauges of Ray's own metrics, which its dashboard, Prometheus and Grafana show, tagged by run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

from raylm.observe.dashboard import GAUGES, figures_of


class Gauges:
    """Fed with the events of rank 0, in its process."""

    def __init__(self, run: str) -> None:
        self._gauges = {
            name: Gauge(name, text, tag_keys=("run",)).set_default_tags({"run": run}) for name, text in GAUGES.items()
        }
        self._gauges["raylm_rollbacks"].set(0)

    def show(self, event: Mapping[str, Any]) -> None:
        """Takes in what an event tells."""
        for name, value in figures_of(event).items():
            self._gauges[name].set(value)
