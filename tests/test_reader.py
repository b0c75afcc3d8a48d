"""Promises of reading ahead: the same windows, the cursor of what was taken, a clean end."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from made_datasets import counting_dataset

from raylm.data.cursor import Cursor
from raylm.data.dataset import Dataset, open_dataset
from raylm.data.reader import Reader
from raylm.data.streams import Streams, Window
from raylm.errors import UserError


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return counting_dataset(tmp_path / "d", [5] * 60)


def streams(dataset: Dataset) -> Streams:
    return Streams(dataset, lanes=3, window=7, seed=5, order="chunk", superbatch=4)


class Counted:
    """Streams that count how many windows were read, and can be slow."""

    def __init__(self, source: Streams, seconds: float = 0.0) -> None:
        self.source, self.seconds, self.reads = source, seconds, 0

    def read(self, cursor: Cursor) -> tuple[Window, Cursor]:
        self.reads += 1
        time.sleep(self.seconds)
        return self.source.read(cursor)

    def settle(self, cursor: Cursor) -> Cursor:
        return self.source.settle(cursor)


@pytest.mark.parametrize("ahead", [0, 1, 2, 7, 64])
def test_windows_and_cursors_are_those_of_the_source(dataset: Dataset, ahead: int) -> None:
    plain = streams(dataset)
    cursor = plain.start()
    with Reader(streams(dataset), cursor, ahead) as reader:
        for _ in range(100):
            expected, cursor = plain.read(cursor)
            window = reader.read()
            np.testing.assert_array_equal(window.targets, expected.targets)
            assert (window.cursor, reader.cursor) == (expected.cursor, cursor)


def test_the_cursor_is_of_what_was_taken_and_not_of_what_lies_ready(dataset: Dataset) -> None:
    source = Counted(streams(dataset))
    with Reader(source, source.source.start(), ahead=20) as reader:
        reader.read()
        reader.read()
        end = time.monotonic() + 10
        while source.reads < 20 and time.monotonic() < end:
            time.sleep(0.001)
        assert source.reads >= 20
        assert reader.cursor.position == 2


def test_no_more_is_read_ahead_than_was_said(dataset: Dataset) -> None:
    source = Counted(streams(dataset))
    with Reader(source, source.source.start(), ahead=8) as reader:
        reader.read()
        time.sleep(0.1)
        assert source.reads <= 9


def test_a_slow_source_is_waited_for_and_the_wait_counted(dataset: Dataset) -> None:
    source = Counted(streams(dataset), seconds=0.02)
    with Reader(source, source.source.start(), ahead=2) as reader:
        for _ in range(5):
            reader.read()
        assert reader.waited > 0.04


def test_seeking_throws_away_what_was_read_ahead(dataset: Dataset) -> None:
    plain = streams(dataset)
    with Reader(streams(dataset), plain.start(), ahead=10) as reader:
        for _ in range(9):
            reader.read()
        back = plain.at(4).leave_out(4, 5).leave_out(6, 7)
        reader.seek(back)
        assert reader.cursor == plain.settle(back)
        assert [reader.read().cursor.position for _ in range(3)] == [5, 7, 8]


def test_a_fault_comes_after_the_windows_before_it(dataset: Dataset, tmp_path: Path) -> None:
    plain = streams(dataset)
    cursor, good = plain.start(), 0
    path = tmp_path / "d/shards/00003.arrow"
    data = bytearray(path.read_bytes())
    data[int(dataset.index.offset[np.flatnonzero(dataset.index.shard == 3)[0]]) + 20] ^= 1
    path.write_bytes(data)
    fresh = streams(open_dataset(tmp_path / "d"))
    expected = None
    while expected is None:
        try:
            _, cursor = fresh.read(cursor)
            good += 1
        except UserError as error:
            expected = error
    with Reader(streams(open_dataset(tmp_path / "d")), plain.start(), ahead=16) as reader:
        for _ in range(good):
            reader.read()
        for _ in range(2):
            with pytest.raises(UserError, match="expected CRC-32") as found:
                reader.read()
            assert str(found.value) == str(expected)


def test_closing_ends_the_thread_even_in_the_middle(dataset: Dataset) -> None:
    before = threading.active_count()
    readers = [Reader(Counted(streams(dataset), 0.005), streams(dataset).start(), ahead) for ahead in (1, 3, 50)]
    readers[0].read()
    for reader in readers:
        reader.close()
        reader.close()
        with pytest.raises(RuntimeError, match="closed"):
            reader.read()
    assert threading.active_count() == before
