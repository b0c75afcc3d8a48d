"""What a run trains and is evaluated on, and the lanes of it that a worker reads."""

from __future__ import annotations

from dataclasses import dataclass

from raylm.config import RunConfig
from raylm.data.dataset import Dataset
from raylm.data.streams import Streams
from raylm.training.topology import Topology


@dataclass(frozen=True)
class Datasets:
    """The opened splits of a corpus, with its name; they share one vocabulary."""

    name: str
    train: Dataset
    valid: Dataset
    test: Dataset


def open_streams(config: RunConfig, dataset: Dataset, topology: Topology) -> Streams:
    """The lanes of a worker, with those that pad them.

    Raises:
        UserError: the data cannot be cut into so many lanes.
    """
    return Streams(
        dataset,
        lanes=config.data.lanes,
        window=config.data.window,
        seed=config.seed,
        order=config.data.order,
        first_lane=topology.first_lane,
        stop_lane=topology.stop_lane,
        pad_lanes_to=topology.padded_lanes,
    )
