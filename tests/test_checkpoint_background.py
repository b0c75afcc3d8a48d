"""Training does not wait for a checkpoint being written; what a save met is told, and the end waits for the last."""

import errno
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from checkpoint_examples import save, snapshot_at

from raylm.checkpoint import files
from raylm.checkpoint.background import BackgroundWriter
from raylm.checkpoint.store import CheckpointNotSaved, CheckpointStore, state_sha256


class _Disk:
    """A disk that waits to be let go at each sync, or is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.full, self.saving, self.most_at_once = threading.Event(), False, 0, 0
        real_make, real_rename = files.make_folder, files.rename

        def make_folder(path: Path) -> None:
            self.saving += 1
            self.most_at_once = max(self.most_at_once, self.saving)
            real_make(path)

        def sync(descriptor: int) -> None:
            assert self.go.wait(timeout=10)
            if self.full:
                self.saving -= 1
                raise OSError(errno.ENOSPC, "No space left on device")

        def rename(old: Path, new: Path) -> None:
            self.saving -= 1
            real_rename(old, new)

        for name, replacement in (("make_folder", make_folder), ("sync", sync), ("rename", rename)):
            monkeypatch.setattr(files, name, replacement)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> _Disk:
    return _Disk(monkeypatch)


def test_a_save_goes_on_behind_and_the_end_waits_for_it(tmp_path: Path, disk: _Disk) -> None:
    store = CheckpointStore(tmp_path)
    writer = BackgroundWriter()
    writer.begin(partial(save, store, snapshot_at(1)))
    assert writer.busy
    assert store.newest() is None
    disk.go.set()
    writer.wait()
    writer.wait()
    assert not writer.busy
    _, snapshot = store.load_newest(pytest.fail)
    assert state_sha256(snapshot) == state_sha256(snapshot_at(1))


def test_at_most_one_save_is_in_flight(tmp_path: Path, disk: _Disk) -> None:
    store = CheckpointStore(tmp_path)
    writer = BackgroundWriter()
    threading.Timer(0.05, disk.go.set).start()
    for step in range(1, 6):
        writer.begin(partial(save, store, snapshot_at(step)))
        assert [info.step for info in store.list()][: step - 1] == list(range(1, step))
    writer.wait()
    assert disk.most_at_once == 1
    assert len(store.list()) == 5


def test_a_full_disk_is_told_at_the_next_call_once_and_saving_goes_on_when_there_is_room(
    tmp_path: Path, disk: _Disk
) -> None:
    store = CheckpointStore(tmp_path)
    writer = BackgroundWriter()
    disk.go.set()
    writer.begin(partial(save, store, snapshot_at(1)))
    writer.wait()
    disk.full = True
    writer.begin(partial(save, store, snapshot_at(2)))
    with pytest.raises(CheckpointNotSaved, match="step 2 was not saved"):
        writer.begin(partial(save, store, snapshot_at(3)))
    with pytest.raises(CheckpointNotSaved, match="step 3 was not saved"):
        writer.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001"]
    disk.full = False
    writer.begin(partial(save, store, snapshot_at(4)))
    writer.wait()
    assert [info.step for info in store.list()] == [1, 4]


def test_a_snapshot_that_cannot_be_written_is_told_too(tmp_path: Path) -> None:
    writer = BackgroundWriter()
    writer.begin(partial(save, CheckpointStore(tmp_path), replace(snapshot_at(1), rng={"seed": float("nan")})))
    with pytest.raises(ValueError, match="not plain JSON"):
        writer.wait()


def test_a_process_that_ends_with_a_save_in_flight_finishes_it(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from checkpoint_examples import save, snapshot_at\n"
        "from raylm.checkpoint.background import BackgroundWriter\n"
        "from raylm.checkpoint.store import CheckpointStore\n"
        "store, snapshot = CheckpointStore(Path(sys.argv[1])), snapshot_at(7, size=100_000)\n"
        "BackgroundWriter().begin(lambda: save(store, snapshot))\n"
        "raise SystemExit(3)"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=60, check=False)
    assert ended.returncode == 3
    assert [(info.step, info.complete) for info in CheckpointStore(tmp_path).verify_all()] == [(7, True)]


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has a priority of its own on Linux only")
def test_training_goes_first() -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    seen: list[int] = []
    before = priority()
    writer = BackgroundWriter()
    writer.begin(lambda: seen.append(priority()))
    writer.wait()
    assert seen[0] > before == priority()


def test_a_writing_rests_until_somebody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    writer, pieces = BackgroundWriter(), 0

    def write() -> None:
        nonlocal pieces
        for _ in range(5):
            pieces += 1
            began = time.thread_time()
            while time.thread_time() < began + 0.05:
                pass
            writer.rest()  # 5 s each, at 1 % of a processor

    began = time.monotonic()
    writer.begin(write)
    time.sleep(1)
    assert pieces == 1
    writer.wait()
    assert pieces == 5
    assert time.monotonic() - began < 5


def test_verifying_all_reads_every_byte(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2, 3):
        save(store, snapshot_at(step))
    path = tmp_path / "step-00000002" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert [info.complete for info in store.list()] == [True, True, True]
    infos = store.verify_all()
    assert [info.complete for info in infos] == [True, False, True]
    assert infos[1].problem is not None
    assert "model.safetensors is damaged: expected SHA-256" in infos[1].problem
