"""The long proof: millions of targets, workers coming and going, every one exactly once in each epoch."""

from __future__ import annotations

import json
from itertools import cycle, pairwise

import numpy as np
import pytest
from made_datasets import make_dataset, random_rows

from raylm.data.cursor import Cursor
from raylm.data.dataset import Dataset
from raylm.data.sentences import Sentences
from raylm.data.streams import Place, Streams, Window

LANES = 61
EPOCHS = 2


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """About 1.9 million tokens in 30 chunks."""
    tokens, lengths = random_rows(150_000, longest=25, vocabulary=10_000)
    return make_dataset(tmp_path_factory.mktemp("data") / "d", tokens, lengths, 10_000, 1 << 16, 1 << 19)


def count(counts: np.ndarray, window: Window, places: list[Place]) -> None:
    """Add the window's targets to the counts, and check that they are what the dataset has there."""
    for row, place in enumerate(places):
        if place.targets:
            assert int((window.weights[row] > 0).sum()) == place.targets
            ids = place.dataset.read(place.first, place.first + place.targets + 1)
            np.testing.assert_array_equal(window.inputs[row, : place.targets], ids[:-1])
            np.testing.assert_array_equal(window.targets[row, : place.targets], ids[1:])
            counts[place.first + 1 : place.first + place.targets + 1] += 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sequential", "chunk", "sentences"])
def test_every_target_exactly_once_over_a_long_run_with_kills(dataset: Dataset, mode: str) -> None:
    """W = 1, 3, 2, 5 in turn, six resumes an epoch; each attempt loses the windows after its last save."""

    def reader(first: int, stop: int) -> Streams | Sentences:
        if mode == "sentences":
            return Sentences(dataset, rows=LANES, seed=11, pool_chunks=7, first_row=first, stop_row=stop)
        order = "chunk" if mode == "chunk" else "sequential"
        return Streams(dataset, lanes=LANES, window=35, seed=11, order=order, first_lane=first, stop_lane=stop)

    whole = reader(0, LANES)
    counts = np.zeros((EPOCHS, dataset.tokens), np.int8)
    saved, resumes, attempt = whole.start().to_json(), [0] * EPOCHS, whole.windows_per_epoch(0) // 6
    for workers in cycle((1, 3, 2, 5)):
        cursor = Cursor.from_json(json.loads(json.dumps(saved)))
        if cursor.epoch == EPOCHS:
            break
        resumes[cursor.epoch] += 1
        slices = list(pairwise(worker * LANES // workers for worker in range(workers + 1)))
        readers = [reader(first, stop) for first, stop in slices]
        for step in range(attempt + 13):
            if cursor.epoch == EPOCHS:
                break
            pieces = [part.read(cursor) for part in readers]
            if step < attempt:
                places = {place.lane: place for place in whole.places(cursor)}
                for (first, stop), (window, _) in zip(slices, pieces, strict=True):
                    here = [places.get(lane, Place(dataset, lane, 0, 0)) for lane in range(first, stop)]
                    count(counts[cursor.epoch], window, here)
                saved = pieces[0][1].to_json()
            cursor = pieces[0][1]
    expected = np.ones(dataset.tokens, np.int8)
    if mode == "sentences":
        rows = [
            dataset.chunk(n).row_offsets[:-1] + dataset.index.token_starts[n] for n in range(len(dataset.index.rows))
        ]
        expected[np.concatenate(rows)] = 0
    expected[0] = 0
    for epoch in range(EPOCHS):
        np.testing.assert_array_equal(counts[epoch], expected)
        assert resumes[epoch] >= 3
