"""Promises of the mixture: lanes by weight, and each dataset exactly once in each of its own epochs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_datasets import make_dataset

from raylm.data.cursor import Cursor
from raylm.data.dataset import Dataset
from raylm.data.mixture import MOST_DATASETS, MixedStreams, share_lanes
from raylm.data.provenance import where
from raylm.data.segments import Order
from raylm.errors import UserError

SIZES = (190, 90, 40)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Dataset, float]]:
    """Three datasets of tokens 0, 1, ..., 200, 201, ... and 300, 301, ..., weighted 5 to 2 to 1."""
    folder = tmp_path_factory.mktemp("data")
    found = []
    for place, (size, weight) in enumerate(zip(SIZES, (5.0, 2.0, 1.0), strict=True)):
        tokens, lengths = np.arange(size) + (0, 200, 300)[place], np.full(size // 10, 10)
        found.append((make_dataset(folder / str(place), tokens, lengths, 400, chunk=20, shard=60), weight))
    return found


def mixed(members: list[tuple[Dataset, float]], **changes: object) -> MixedStreams:
    return MixedStreams(members, **{"lanes": 8, "window": 6, "seed": 3, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["sequential", "chunk"])
def test_each_dataset_comes_exactly_once_in_each_of_its_epochs(
    members: list[tuple[Dataset, float]], order: Order
) -> None:
    reader = mixed(members, order=order)
    cursor = reader.start()
    counts: dict[tuple[int, int], Counter[int]] = {}
    bounds = np.cumsum([0, *share_lanes(8, [5, 2, 1])])
    while min(epoch for epoch, _ in cursor.parts) < 3:
        window, after = reader.read(cursor)
        real = window.weights > 0
        assert int(real.sum()) == window.targets_total
        np.testing.assert_array_equal(window.targets[real], window.inputs[real] + 1)
        for member, (first, stop) in enumerate(pairwise(bounds)):
            epoch, at = cursor.parts[member]
            here = real[first:stop]
            counts.setdefault((member, epoch), Counter()).update(window.targets[first:stop][here].tolist())
            if at == 0:
                assert window.reset_lanes[first:stop].all()
        assert window.reset == window.reset_lanes.all()
        cursor = after
    for member, size in enumerate(SIZES):
        first = (0, 200, 300)[member]
        for epoch in range(3):
            assert counts[member, epoch] == Counter(range(first + 1, first + size))


def test_workers_together_read_what_one_reads(members: list[tuple[Dataset, float]]) -> None:
    whole = mixed(members)
    for workers in (2, 3, 5, 8):
        borders = [worker * 8 // workers for worker in range(workers + 1)]
        parts = [mixed(members, first_lane=first, stop_lane=stop, pad_lanes_to=4) for first, stop in pairwise(borders)]
        cursor = whole.start()
        for _ in range(12):
            window, after = whole.read(cursor)
            for (first, stop), part in zip(pairwise(borders), parts, strict=True):
                piece, piece_after = part.read(cursor)
                assert piece_after == after
                assert (piece.targets_total, piece.reset) == (window.targets_total, window.reset)
                assert piece.inputs.shape == (4, 6)
                for name in ("inputs", "targets", "weights", "reset_lanes"):
                    found, expected = getattr(piece, name), getattr(window, name)
                    np.testing.assert_array_equal(found[: stop - first], expected[first:stop])
                assert not piece.weights[stop - first :].any()
            cursor = after


def test_a_reader_restored_at_every_position_gives_the_same_from_there(
    members: list[tuple[Dataset, float]],
) -> None:
    reader, trace = mixed(members, order="chunk"), []
    cursor = reader.start().leave_out(3, 5).leave_out(20, 21)
    while cursor.position < 40:
        window, after = reader.read(cursor)
        trace.append((cursor, window, after))
        cursor = after
    for cursor, expected, after in trace:
        restored = mixed(members, order="chunk")
        saved = Cursor.from_json(json.loads(json.dumps(cursor.to_json())))
        restored.check(saved)
        window, following = restored.read(saved)
        assert following == after
        assert window.cursor == expected.cursor == restored.settle(saved)
        np.testing.assert_array_equal(window.targets, expected.targets)
        np.testing.assert_array_equal(window.reset_lanes, expected.reset_lanes)
    assert {window.cursor.position for _, window, _ in trace} == set(range(40)) - {3, 4, 20}


def test_where_says_which_dataset_each_lane_reads(members: list[tuple[Dataset, float]]) -> None:
    reader = mixed(members)
    cursor = reader.at(7)
    window, _ = reader.read(cursor)
    for reading in where(reader, 7):
        size = int((window.weights[reading.lane] > 0).sum())
        ids = [*window.inputs[reading.lane, :size], window.targets[reading.lane, size - 1]]
        assert reading.text == members[0][0].vocabulary.decode(ids)
    assert [reading.lane for reading in where(reader, 7)] == np.flatnonzero(window.weights.any(axis=1)).tolist()


@given(weights=st.lists(st.floats(0.001, 1000), min_size=1, max_size=8), extra=st.integers(0, 100))
def test_lanes_are_shared_by_weight_and_none_goes_without(weights: list[float], extra: int) -> None:
    lanes = len(weights) + extra
    shares = share_lanes(lanes, weights)
    assert sum(shares) == lanes
    assert min(shares) >= 1
    for share, weight in zip(shares, weights, strict=True):
        assert share <= max(weight * lanes / sum(weights) + 1, 1)


def test_a_cursor_of_many_datasets_is_under_a_kilobyte(members: list[tuple[Dataset, float]]) -> None:
    reader = mixed([members[0]] * MOST_DATASETS, lanes=MOST_DATASETS)
    cursor = replace(reader.start(), seed=2**64 - 1, position=10**7, parts=((1000, 100000),) * MOST_DATASETS)
    for number in range(8):
        cursor = cursor.leave_out(10**7 + 10 * number, 10**7 + 10 * number + 2)
    assert len(json.dumps(cursor.to_json())) < 1024


def test_mixtures_that_cannot_work_are_refused(members: list[tuple[Dataset, float]], tmp_path: Path) -> None:
    dataset = members[0][0]
    other = make_dataset(tmp_path / "other", np.arange(50), np.full(5, 10), 60)
    cases: list[tuple[list[tuple[Dataset, float]], dict[str, object], str]] = [
        ([], {}, "0 datasets"),
        ([(dataset, 1.0)] * 17, {}, "17 datasets"),
        ([(dataset, 0.0)], {}, "positive number"),
        ([(dataset, float("nan"))], {}, "positive number"),
        ([(dataset, 1.0)] * 9, {}, "8 lanes for 9"),
        ([(dataset, 1.0), (other, 1.0)], {}, "different vocabularies"),
        (members, {"stop_lane": 9}, "a part of the 8 lanes"),
        (members, {"pad_lanes_to": 3}, "cannot pad"),
    ]
    for wrong, changes, told in cases:
        with pytest.raises(UserError, match=told):
            mixed(wrong, **changes)


def test_cursors_of_other_mixtures_are_refused(members: list[tuple[Dataset, float]]) -> None:
    reader = mixed(members)
    with pytest.raises(UserError, match="dataset_id"):
        reader.check(mixed(members[:2]).start())
    with pytest.raises(UserError, match="layout"):
        reader.check(mixed([(dataset, 1.0) for dataset, _ in members]).start())
    with pytest.raises(UserError, match="2 parts"):
        reader.check(replace(reader.start(), parts=((0, 0), (0, 0))))
