"""Promises of the streams: every target exactly once per epoch, for any workers, from any cursor."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_datasets import counting_dataset

from raylm.data.cursor import MOST_SKIPS, Cursor
from raylm.data.dataset import Dataset
from raylm.data.lengths import JitteredLengths
from raylm.data.segments import Order
from raylm.data.streams import Streams, Window
from raylm.errors import UserError

ORDERS: list[Order] = ["sequential", "chunk"]
JITTERS = [None, JitteredLengths(base=6, short_base=3, shortest=2, deviation=1.0)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """199 tokens 0, 1, 2, ... in 15 chunks and 6 shards."""
    lengths = [1 + (7 * row) % 11 for row in range(34)]
    return counting_dataset(tmp_path_factory.mktemp("data") / "d", lengths)


def epoch_of(streams: Streams, cursor: Cursor) -> tuple[list[Window], Cursor]:
    windows = []
    epoch = cursor.epoch
    while cursor.epoch == epoch:
        window, cursor = streams.read(cursor)
        windows.append(window)
    return windows, cursor


def same(left: Window, right: Window) -> bool:
    arrays = ("inputs", "targets", "weights", "reset_lanes")
    values = ("reset", "targets_total", "cursor", "length")
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in arrays) and all(
        getattr(left, name) == getattr(right, name) for name in values
    )


def seen(windows: list[Window]) -> Counter[int]:
    """How often each token was a target; also checks that it was predicted from the one before it."""
    counts: Counter[int] = Counter()
    for window in windows:
        real = window.weights > 0
        np.testing.assert_array_equal(window.targets[real], window.inputs[real] + 1)
        counts.update(window.targets[real].tolist())
    return counts


def test_sequential_lanes_are_contiguous_and_nothing_is_trimmed(dataset: Dataset) -> None:
    streams = Streams(dataset, lanes=4, window=9, seed=0)
    windows, _ = epoch_of(streams, streams.start())
    for lane in range(4):
        first, last = lane * 198 // 4, (lane + 1) * 198 // 4
        real = np.concatenate([window.weights[lane] for window in windows]) > 0
        inputs = np.concatenate([window.inputs[lane] for window in windows])[real]
        np.testing.assert_array_equal(inputs, np.arange(first, last))
    assert [window.reset for window in windows] == [True] + [False] * (len(windows) - 1)
    assert sum(window.targets_total for window in windows) == 198 == streams.targets_per_epoch
    assert len(windows) == streams.windows_per_epoch(0) == 6
    assert windows[0].inputs.shape == windows[-1].inputs.shape == (4, 9)


@pytest.mark.parametrize("jitter", JITTERS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("lanes", [1, 3, 20, 198])
def test_every_target_is_seen_exactly_once_per_epoch(
    dataset: Dataset, lanes: int, order: Order, jitter: JitteredLengths | None
) -> None:
    streams = Streams(dataset, lanes=lanes, window=7, seed=3, order=order, jitter=jitter, superbatch=5)
    cursor = streams.start()
    orders = []
    for epoch in range(3):
        windows, cursor = epoch_of(streams, cursor)
        assert seen(windows) == Counter(range(1, 199))
        assert cursor == replace(cursor, epoch=epoch + 1, window=0, offset=0)
        orders.append([window.targets.tolist() for window in windows])
    if lanes == 3:
        assert (orders[0] == orders[1]) == (order == "sequential" and jitter is None)


@pytest.mark.parametrize("jitter", JITTERS)
@pytest.mark.parametrize("order", ORDERS)
def test_lanes_go_on_where_they_were_unless_they_are_reset(
    dataset: Dataset, order: Order, jitter: JitteredLengths | None
) -> None:
    """And no time step without a target comes before a lane that goes on: the carry is that of the last word."""
    streams = Streams(dataset, lanes=3, window=5 if jitter is None else 7, seed=1, order=order, jitter=jitter)
    cursor = streams.start()
    joins = 0
    last = np.zeros(3, np.int64)
    whole = np.ones(3, bool)
    for _ in range(3):
        for window in epoch_of(streams, cursor)[0]:
            assert window.inputs.shape == (3, window.length)
            for lane in range(3):
                real = window.weights[lane] > 0
                if not real.any():
                    continue
                if not window.reset_lanes[lane]:
                    assert whole[lane]
                    assert window.inputs[lane][real][0] == last[lane]
                last[lane], whole[lane] = window.targets[lane][real][-1], real.all()
            joins += int(window.reset_lanes.any() and not window.reset)
    assert (joins > 10) == (order == "chunk")


@pytest.mark.parametrize("order", ORDERS)
def test_a_jittered_window_is_no_longer_than_what_is_read_in_it(dataset: Dataset, order: Order) -> None:
    """Whichever lanes a worker has: an epoch's last window is as long as what is left, and so weighs as much."""
    parts = [
        Streams(dataset, lanes=3, window=10, seed=2, order=order, jitter=JITTERS[1], first_lane=first, stop_lane=stop)
        for first, stop in ((0, 3), (0, 1), (1, 3))
    ]
    cursor, cut = parts[0].start(), 0
    for _ in range(20):
        (windows, after), *others = (epoch_of(part, cursor) for part in parts)
        assert all(window.weights[:, -1].any() for window in windows)
        for other, _ in others:
            assert [window.length for window in other] == [window.length for window in windows]
        if order == "sequential":
            assert sum(window.length for window in windows) == 198 // 3
        cut += windows[-1].length < 3  # shorter than any that is drawn but for the short base
        cursor = after
    assert cut


@pytest.mark.parametrize("jitter", JITTERS)
@pytest.mark.parametrize("order", ORDERS)
def test_a_reader_restored_at_every_position_gives_the_same_from_there(
    dataset: Dataset, order: Order, jitter: JitteredLengths | None
) -> None:
    def reader() -> Streams:
        return Streams(dataset, lanes=3, window=7, seed=5, order=order, jitter=jitter, superbatch=4)

    streams = reader()
    cursor = streams.start()
    trace = []
    while cursor.epoch < 2:
        window, after = streams.read(cursor)
        trace.append((cursor, window, after))
        cursor = after
    for start in range(len(trace)):
        restored = reader()
        cursor = Cursor.from_json(json.loads(json.dumps(trace[start][0].to_json())))
        restored.check(cursor)
        for expected_cursor, expected, after in trace[start : start + 6]:
            assert cursor == expected_cursor
            window, cursor = restored.read(cursor)
            assert same(window, expected)
            assert cursor == after


def test_reading_is_pure_in_the_cursor(dataset: Dataset) -> None:
    streams = Streams(dataset, lanes=3, window=7, seed=5, order="chunk", superbatch=4)
    cursors = [streams.start()]
    for _ in range(30):
        cursors.append(streams.read(cursors[-1])[1])
    first = [streams.read(cursor)[0] for cursor in cursors]
    for place in np.random.default_rng(0).permutation(31):
        assert same(streams.read(cursors[place])[0], first[place])


@pytest.mark.parametrize("workers", range(1, 8))
def test_workers_together_read_what_one_reads(dataset: Dataset, workers: int) -> None:
    lanes, per_worker = 7, -(-7 // workers)
    whole = Streams(dataset, lanes=lanes, window=7, seed=5)
    parts = [
        Streams(
            dataset,
            lanes=lanes,
            window=7,
            seed=5,
            first_lane=worker * lanes // workers,
            stop_lane=(worker + 1) * lanes // workers,
            pad_lanes_to=per_worker,
        )
        for worker in range(workers)
    ]
    cursor = whole.start()
    while cursor.epoch < 1:
        window, after = whole.read(cursor)
        pieces = [part.read(cursor) for part in parts]
        assert all(piece[1] == after for piece in pieces)
        assert all(piece[0].inputs.shape == (per_worker, 7) for piece in pieces)
        assert all(piece[0].targets_total == window.targets_total for piece in pieces)
        for name in ("inputs", "targets", "weights"):
            rows = [
                getattr(piece[0], name)[: (worker + 1) * lanes // workers - worker * lanes // workers]
                for worker, piece in enumerate(pieces)
            ]
            np.testing.assert_array_equal(np.concatenate(rows), getattr(window, name))
            for worker, piece in enumerate(pieces):
                assert not getattr(piece[0], name)[len(rows[worker]) :].any()
        cursor = after


@settings(max_examples=150, deadline=None)
@given(
    lanes=st.integers(5, 40),
    window=st.integers(1, 30),
    order=st.sampled_from(ORDERS),
    jitter=st.sampled_from(JITTERS),
    seed=st.integers(0, 2**64 - 1),
    kills=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), min_size=4, max_size=4),
)
def test_every_target_exactly_once_through_kills_and_other_numbers_of_workers(
    dataset: Dataset,
    lanes: int,
    window: int,
    order: Order,
    jitter: JitteredLengths | None,
    seed: int,
    kills: list[tuple[int, int]],
) -> None:
    """W = 1, 3, 2, 5 in turn, twice over; each ends after its saved windows and some more that are lost."""
    saved = Streams(dataset, lanes=lanes, window=window, seed=seed, order=order, jitter=jitter).start().to_json()
    counts = [Counter[int](), Counter[int]()]
    for workers, (kept, lost) in [*zip((1, 3, 2, 5), kills, strict=True)] * 2 + [(3, (10**6, 0))]:
        cursor = Cursor.from_json(json.loads(json.dumps(saved)))
        readers = [
            Streams(
                dataset,
                lanes=lanes,
                window=window,
                seed=seed,
                order=order,
                jitter=jitter,
                first_lane=worker * lanes // workers,
                stop_lane=(worker + 1) * lanes // workers,
                superbatch=3,
            )
            for worker in range(workers)
        ]
        for step in range(kept + lost):
            if cursor.epoch == 2:
                break
            pieces = [reader.read(cursor) for reader in readers]
            if step < kept:
                for piece, _ in pieces:
                    counts[cursor.epoch] += seen([piece])
                saved = pieces[0][1].to_json()
            cursor = pieces[0][1]
    assert counts == [Counter(range(1, 199))] * 2


@pytest.mark.parametrize("order", ORDERS)
def test_left_out_windows_are_not_read_and_nothing_else_changes(dataset: Dataset, order: Order) -> None:
    streams = Streams(dataset, lanes=3, window=7, seed=5, order=order, superbatch=4)
    plain = {window.cursor.position: window for window in read_positions(streams, streams.start(), 40)}
    cursor = streams.start().leave_out(4, 7).leave_out(9, 10).leave_out(20, 22)
    found = read_positions(streams, cursor, 40)
    left_out = {4, 5, 6, 9, 20, 21}
    assert [window.cursor.position for window in found] == [n for n in range(40) if n not in left_out]
    for window in found:
        expected = plain[window.cursor.position]
        np.testing.assert_array_equal(window.inputs, expected.inputs)
        np.testing.assert_array_equal(window.weights, expected.weights)
        assert same(streams.read(window.cursor)[0], window)
    assert found[-1].cursor.skips == ()


def read_positions(streams: Streams, cursor: Cursor, stop: int) -> list[Window]:
    windows = []
    while cursor.position < stop:
        window, cursor = streams.read(cursor)
        windows.append(window)
    return windows


def test_a_reset_that_is_left_out_comes_with_the_next_window(dataset: Dataset) -> None:
    streams = Streams(dataset, lanes=3, window=7, seed=5)
    per_epoch = streams.windows_per_epoch(0)
    cursor = streams.start().leave_out(0, 2).leave_out(per_epoch - 1, per_epoch + 3)
    windows = read_positions(streams, cursor, per_epoch + 6)
    resets = [window.cursor.position for window in windows if window.reset]
    assert resets == [2, per_epoch + 3]
    assert all(window.reset_lanes.all() == window.reset for window in windows)
    again, _ = streams.read(windows[0].cursor)
    assert again.reset


def test_a_join_that_is_left_out_resets_its_lane_in_the_next_window(dataset: Dataset) -> None:
    streams = Streams(dataset, lanes=3, window=5, seed=1, order="chunk")
    windows = read_positions(streams, streams.start(), 20)
    join = next(window for window in windows if window.reset_lanes.any() and not window.reset)
    position = join.cursor.position
    after, _ = streams.read(replace(join.cursor).leave_out(position, position + 1))
    expected = windows[position + 1].reset_lanes | join.reset_lanes
    np.testing.assert_array_equal(after.reset_lanes, expected)


def test_ranges_to_leave_out_merge_and_those_behind_are_dropped() -> None:
    cursor = Cursor("0" * 64, "layout", 1, position=10)
    assert cursor.leave_out(0, 5).skips == ()
    assert cursor.leave_out(5, 12).skips == ((10, 12),)
    assert cursor.leave_out(15, 17).leave_out(12, 14).leave_out(14, 15).skips == ((12, 17),)
    assert cursor.leave_out(12, 14).leave_out(20, 30).leave_out(13, 22).skips == ((12, 30),)
    for first, last in ((3, 3), (5, 2), (-1, 2)):
        with pytest.raises(UserError, match="to leave out"):
            cursor.leave_out(first, last)


def test_a_cursor_is_under_a_kilobyte() -> None:
    position = 10**12
    cursor = Cursor("0" * 64, "layout", 2**64 - 1, epoch=10**6, window=10**9, offset=10**10, position=position)
    for number in range(MOST_SKIPS):
        cursor = cursor.leave_out(position + 10 * number, position + 10 * number + 5)
    assert len(json.dumps(cursor.to_json())) < 1024
    with pytest.raises(UserError, match="make them wider"):
        cursor.leave_out(position + 1000, position + 1001)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"window": 1.5},
        {"epoch": True},
        {"skips": [[5, 3]]},
        {"skips": [[1, 2, 3]]},
        {"skips": [[1, 3], [2, 5]]},
        {"skips": "x"},
        {"parts": [[1]]},
        {"dataset_id": "x"},
        {"layout": 3},
        {"surprise": 1},
        {"position": 7, "skips": [[1, 3]]},
    ],
    ids=str,
)
def test_a_malformed_cursor_is_refused(change: dict[str, object]) -> None:
    document = Cursor("0" * 64, "layout", 1).to_json()
    with pytest.raises(UserError, match="cursor"):
        Cursor.from_json({**document, **change})


@pytest.mark.parametrize("document", [None, [], {}, {"seed": 1}], ids=str)
def test_json_that_is_no_cursor_is_refused(document: object) -> None:
    with pytest.raises(UserError, match="cursor"):
        Cursor.from_json(document)


def test_a_cursor_of_other_data_is_refused_and_the_difference_named(dataset: Dataset) -> None:
    streams = Streams(dataset, lanes=3, window=7, seed=5)
    cursor = streams.start()
    streams.check(replace(cursor, epoch=3, window=2, position=40))
    for name, value in (("dataset_id", "0" * 64), ("algorithm", 9), ("seed", 6), ("layout", "other")):
        with pytest.raises(UserError, match=f"{name}: the cursor has {value!r}, this run"):
            streams.check(replace(cursor, **{name: value}))
    other = Streams(dataset, lanes=4, window=7, seed=5)
    with pytest.raises(UserError, match=r"lanes=3 .* this run .*lanes=4"):
        other.check(cursor)


def test_a_cursor_beyond_its_epoch_is_refused(dataset: Dataset) -> None:
    streams = Streams(dataset, lanes=3, window=7, seed=5)
    with pytest.raises(UserError, match="window 999 of epoch 0"):
        streams.read(replace(streams.start(), window=999))


@pytest.mark.parametrize(
    "wrong",
    [
        {"lanes": 0},
        {"window": 0},
        {"lanes": 199},
        {"seed": -1},
        {"first_lane": 4},
        {"first_lane": 2, "stop_lane": 1},
        {"stop_lane": 4},
        {"pad_lanes_to": 2},
        {"superbatch": 0},
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(dataset: Dataset, wrong: dict[str, int]) -> None:
    with pytest.raises(UserError):
        Streams(dataset, **{"lanes": 3, "window": 7, "seed": 5, **wrong})  # type: ignore[arg-type]


def test_a_worker_without_lanes_reads_lanes_without_targets(dataset: Dataset) -> None:
    streams = Streams(dataset, lanes=3, window=7, seed=5, first_lane=3, pad_lanes_to=1)
    window, _ = streams.read(streams.start())
    assert window.weights.tolist() == [[0] * 7]
    assert window.targets_total == 21


def test_a_window_that_is_kept_keeps_its_numbers(dataset: Dataset) -> None:
    """The arrays of windows that nobody holds are used again; those of others are not."""
    streams = Streams(dataset, lanes=3, window=7, seed=5, superbatch=2)
    cursor = streams.start()
    kept = []
    for _ in range(100):
        window, cursor = streams.read(cursor)
        kept.append((window.inputs, window.inputs.copy(), window.weights, window.weights.copy()))
    for inputs, inputs_then, weights, weights_then in kept:
        np.testing.assert_array_equal(inputs, inputs_then)
        np.testing.assert_array_equal(weights, weights_then)


def test_memory_is_used_again(dataset: Dataset) -> None:
    streams = Streams(dataset, lanes=3, window=7, seed=5, superbatch=2)
    cursor = streams.start()
    addresses = set()
    for _ in range(100):
        window, cursor = streams.read(cursor)
        addresses.add(window.inputs.ctypes.data)
    assert len(addresses) <= 4


def test_windows_cannot_be_written_to(dataset: Dataset) -> None:
    streams = Streams(dataset, lanes=3, window=7, seed=5)
    window, _ = streams.read(streams.start())
    with pytest.raises(ValueError, match="read-only"):
        window.inputs[0, 0] = 1
