"""Promises of the sentence batches: every target exactly once per epoch, and nothing but targets of its own row."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_datasets import counting_dataset

from raylm.data.cursor import Cursor
from raylm.data.dataset import Dataset
from raylm.data.sentences import Sentences
from raylm.data.streams import Window
from raylm.errors import UserError

LENGTHS = [1, 1, 1, *((1 + (7 * row) % 11 if row % 9 else 30) for row in range(60)), 1]
ENDS = np.cumsum(LENGTHS)
FIRSTS = set((ENDS - LENGTHS).tolist())
TARGETS = Counter(set(range(sum(LENGTHS))) - FIRSTS)
SETTINGS = {"rows": 7, "seed": 5, "buckets": (2, 4, 6, 9, 12), "pool_chunks": 3}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Tokens 0, 1, 2, ...; its first chunk holds rows of one token only, some rows are wider than any bucket."""
    return counting_dataset(tmp_path_factory.mktemp("data") / "d", LENGTHS, chunk=32, shard=96)


def sentences(dataset: Dataset, **changes: object) -> Sentences:
    return Sentences(dataset, **{**SETTINGS, **changes})  # type: ignore[arg-type]


def seen(batch: Window) -> Counter[int]:
    """The targets of a batch; also checks that each was predicted from the token before it in the same row."""
    real = batch.weights > 0
    np.testing.assert_array_equal(batch.targets[real], batch.inputs[real] + 1)
    assert not FIRSTS & set(batch.targets[real].tolist())
    return Counter(batch.targets[real].tolist())


def epoch_of(reader: Sentences, cursor: Cursor) -> tuple[list[Window], Cursor]:
    batches, epoch = [], cursor.epoch
    while cursor.epoch == epoch:
        batch, cursor = reader.read(cursor)
        batches.append(batch)
    return batches, cursor


def same(left: Window, right: Window) -> bool:
    return (
        all(np.array_equal(getattr(left, name), getattr(right, name)) for name in ("inputs", "targets", "weights"))
        and left.cursor == right.cursor
        and left.targets_total == right.targets_total
    )


@pytest.mark.parametrize("pool_chunks", [1, 3, 100])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_every_target_is_seen_exactly_once_per_epoch(dataset: Dataset, rows: int, pool_chunks: int) -> None:
    reader = sentences(dataset, rows=rows, pool_chunks=pool_chunks)
    cursor = reader.start()
    order = []
    for epoch in range(3):
        batches, cursor = epoch_of(reader, cursor)
        assert sum((seen(batch) for batch in batches), Counter()) == TARGETS
        assert sum(batch.targets_total for batch in batches) == reader.targets_per_epoch
        assert len(batches) == reader.windows_per_epoch(epoch)
        assert cursor == replace(cursor, epoch=epoch + 1, window=0, parts=((0, 0),))
        order.append([batch.targets.tolist() for batch in batches])
    assert order[0] != order[1] != order[2] or rows == 1000


def test_rows_are_whole_and_begin_at_the_left(dataset: Dataset) -> None:
    reader = sentences(dataset, buckets=(4, 40))
    for batch in epoch_of(reader, reader.start())[0]:
        assert batch.reset
        assert batch.reset_lanes.all()
        for row in range(7):
            real = batch.weights[row] > 0
            if real.any():
                size = int(real.sum())
                assert real[:size].all()
                assert batch.inputs[row, 0] in FIRSTS
                assert batch.targets[row, size - 1] + 1 in ENDS
                assert not batch.inputs[row, size:].any()


def test_a_batch_is_as_wide_as_its_longest_row_needs(dataset: Dataset) -> None:
    reader = sentences(dataset)
    widths = set()
    for batch in epoch_of(reader, reader.start())[0]:
        longest = int((batch.weights > 0).sum(axis=1).max())
        assert batch.length == batch.inputs.shape[1] == min(width for width in (2, 4, 6, 9, 12) if width >= longest)
        widths.add(batch.length)
    assert len(widths) > 2


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 7, 9])
def test_workers_together_read_what_one_reads_and_none_is_all_padding(dataset: Dataset, workers: int) -> None:
    whole = sentences(dataset)
    borders = [worker * 7 // workers for worker in range(workers + 1)]
    parts = [
        sentences(dataset, first_row=first, stop_row=stop, pad_rows_to=-(-7 // workers))
        for first, stop in pairwise(borders)
    ]
    cursor = whole.start()
    while cursor.epoch < 2:
        batch, after = whole.read(cursor)
        for first, stop, part in zip(borders[:-1], borders[1:], parts, strict=True):
            piece, piece_after = part.read(cursor)
            assert piece_after == after
            assert piece.targets_total == batch.targets_total
            assert piece.inputs.shape == (-(-7 // workers), batch.length)
            for name in ("inputs", "targets", "weights"):
                np.testing.assert_array_equal(getattr(piece, name)[: stop - first], getattr(batch, name)[first:stop])
            assert not piece.weights[stop - first :].any()
            assert piece.targets.any(axis=1).all(), "a row is all padding"
        cursor = after


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(5, 40),
    pool_chunks=st.integers(1, 20),
    seed=st.integers(0, 2**64 - 1),
    kills=st.lists(st.tuples(st.integers(0, 15), st.integers(0, 5)), min_size=4, max_size=4),
)
def test_every_target_exactly_once_through_kills_and_other_numbers_of_workers(
    dataset: Dataset, rows: int, pool_chunks: int, seed: int, kills: list[tuple[int, int]]
) -> None:
    """W = 1, 3, 2, 5 in turn, twice over; each ends after its saved batches and some more that are lost."""
    changes = {"rows": rows, "pool_chunks": pool_chunks, "seed": seed}
    saved = sentences(dataset, **changes).start().to_json()
    counts = [Counter[int](), Counter[int]()]
    for workers, (kept, lost) in [*zip((1, 3, 2, 5), kills, strict=True)] * 2 + [(3, (10**6, 0))]:
        cursor = Cursor.from_json(json.loads(json.dumps(saved)))
        borders = pairwise(worker * rows // workers for worker in range(workers + 1))
        readers = [sentences(dataset, **changes, first_row=first, stop_row=stop) for first, stop in borders]
        for step in range(kept + lost):
            if cursor.epoch == 2:
                break
            pieces = [reader.read(cursor) for reader in readers]
            assert len({piece.length for piece, _ in pieces}) == 1
            if step < kept:
                counts[cursor.epoch] += sum((seen(piece) for piece, _ in pieces), Counter())
                saved = pieces[0][1].to_json()
            cursor = pieces[0][1]
    assert counts == [TARGETS, TARGETS]


def test_a_reader_restored_at_every_position_gives_the_same_from_there(dataset: Dataset) -> None:
    reader = sentences(dataset)
    cursor, trace = reader.start(), []
    while cursor.epoch < 2:
        batch, after = reader.read(cursor)
        trace.append((cursor, batch, after))
        cursor = after
    for start in range(len(trace)):
        restored = sentences(dataset)
        cursor = Cursor.from_json(json.loads(json.dumps(trace[start][0].to_json())))
        restored.check(cursor)
        for expected_cursor, expected, after in trace[start : start + 6]:
            assert cursor == expected_cursor
            batch, cursor = restored.read(cursor)
            assert same(batch, expected)
            assert cursor == after


def test_left_out_batches_are_not_read_and_nothing_else_changes(dataset: Dataset) -> None:
    reader = sentences(dataset)
    plain, cursor = {}, reader.start()
    while cursor.position < 30:
        batch, cursor = reader.read(cursor)
        plain[batch.cursor.position] = batch
    cursor = reader.start().leave_out(0, 2).leave_out(5, 12)
    for position in (2, 3, 4, 12, 13):
        batch, cursor = reader.read(cursor)
        assert batch.cursor.position == position
        np.testing.assert_array_equal(batch.targets, plain[position].targets)
        assert same(reader.read(batch.cursor)[0], batch)


def test_the_order_of_sentences_holds_for_ever(dataset: Dataset) -> None:
    """A failure means that every run's data would change: make a new ALGORITHM instead."""
    reader = sentences(dataset)
    batches = epoch_of(reader, reader.start())[0]
    assert [batch.targets[0, 0] for batch in batches] == GOLDEN_FIRST_TARGETS


GOLDEN_FIRST_TARGETS = [340, 316, 194, 133, 374, 151, 287, 289, 460, 462, 372, 77, 109]


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": 0},
        {"pool_chunks": 0},
        {"seed": -1},
        {"buckets": ()},
        {"buckets": (0, 4)},
        {"buckets": (4, 4)},
        {"first_row": 7},
        {"stop_row": 8},
        {"pad_rows_to": 6},
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(dataset: Dataset, wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        sentences(dataset, **wrong)


def test_rows_of_one_token_only_are_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    single = counting_dataset(tmp_path_factory.mktemp("data") / "d", [1] * 40)
    with pytest.raises(UserError, match="no target"):
        sentences(single)


def test_cursors_of_other_readers_and_beyond_the_epoch_are_refused(dataset: Dataset) -> None:
    reader = sentences(dataset)
    with pytest.raises(UserError, match="layout: the cursor has"):
        reader.check(sentences(dataset, rows=8).start())
    with pytest.raises(UserError, match="not one pool and batch"):
        reader.check(replace(reader.start(), parts=()))
    for place in ((99, 0), (0, 999)):
        with pytest.raises(UserError, match="has no batch"):
            reader.read(replace(reader.start(), parts=(place,)))
