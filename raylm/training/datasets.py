"""What a run trains and is evaluated on, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass

from raylm.config import DataConfig, RunConfig
from raylm.data.dataset import Dataset
from raylm.data.lengths import JitteredLengths
from raylm.data.sentences import Sentences
from raylm.data.streams import Streams, Window
from raylm.training.topology import Topology


@dataclass(frozen=True)
class Datasets:
    """The opened splits of a corpus, with its name; they share one vocabulary."""

    name: str
    train: Dataset
    valid: Dataset
    test: Dataset


EVALUATION_WINDOW = 256
"""Time steps of a window in evaluation, which only bounds memory: the carry makes the result independent of it."""

EVALUATION_SENTENCES = 16
"""Sentences read at once in evaluation; no one's result depends on the others."""

Source = Streams | Sentences
"""What windows are read from, by a cursor."""


def open_source(config: RunConfig, dataset: Dataset, topology: Topology) -> Source:
    """The lanes of a worker, or its sentences of each batch, with those that pad them.

    Raises:
        UserError: the data cannot be cut so.
    """
    data = config.data
    if data.mode == "sentences":
        return Sentences(
            dataset,
            rows=data.lanes,
            seed=config.seed,
            buckets=data.buckets,
            pool_chunks=data.pool_chunks,
            first_row=topology.first_lane,
            stop_row=topology.stop_lane,
            pad_rows_to=topology.padded_lanes,
        )
    jitter = JitteredLengths(base=data.window, short_base=max(data.window // 2, 1)) if data.jitter else None
    return Streams(
        dataset,
        lanes=data.lanes,
        window=jitter.longest if jitter else data.window,
        seed=config.seed,
        order=data.order,
        jitter=jitter,
        first_lane=topology.first_lane,
        stop_lane=topology.stop_lane,
        pad_lanes_to=topology.padded_lanes,
    )


def rate_factor(data: DataConfig, window: Window) -> float:
    """What its length makes of a window's learning rate: else short windows would weigh as much as long ones (Merity,
    Keskar and Socher 2017, arXiv:1708.02182, section 5)."""
    return window.length / data.window if data.jitter else 1.0


def open_evaluation(data: DataConfig, dataset: Dataset) -> Source:
    """A whole dataset as it is evaluated: one lane, or sentence by sentence; its first epoch is the whole."""
    if data.mode == "sentences":
        return Sentences(dataset, rows=EVALUATION_SENTENCES, seed=0, buckets=data.buckets)
    return Streams(dataset, lanes=1, window=EVALUATION_WINDOW, seed=0)
