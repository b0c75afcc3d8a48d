"""A crash planted at every write, fsync, rename and removal: the newest complete checkpoint loads, each time."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkpoint_examples import CONFIG, DATASET, save, snapshot_at

from raylm.checkpoint import files
from raylm.checkpoint.retention import Retention
from raylm.checkpoint.store import CheckpointNotSaved, CheckpointStore, state_sha256
from raylm.errors import UserError

_CALLS = ("make_folder", "create", "write", "sync", "sync_folder", "rename", "unlink", "remove_folder")
_OLD, _NEW = snapshot_at(500), snapshot_at(500, variant=1)


class Crash(BaseException):
    """The process ends here: nothing may catch it."""


class FaultyDisk:
    """Counts the file-system calls of a checkpoint and strikes at one of them.

    `before` and `after` are a kill there, `torn` a kill in the middle of a write. After a kill comes a power cut:
    files that were never synced are emptied. `refuse` is an error of the system instead.
    """

    def __init__(self, strike_at: int, how: str, error: int = errno.ENOSPC) -> None:
        self.calls: list[str] = []
        self.unsynced: set[int] = set()
        self._strike_at, self._how, self._error = strike_at, how, error

    def call(self, name: str, real: Callable[..., int | None], *args: object) -> int | None:
        self.calls.append(name)
        strike = len(self.calls) - 1 == self._strike_at
        if strike and self._how == "refuse":
            raise OSError(self._error, os.strerror(self._error))
        if strike and self._how == "torn" and name == "write":
            descriptor, data = args
            real(descriptor, data[: len(data) // 2])  # type: ignore[index]
        if strike and self._how in ("before", "torn"):
            raise Crash
        if name == "sync":
            self.unsynced.discard(os.fstat(args[0]).st_ino)  # type: ignore[arg-type]
        result = None if name in ("sync", "sync_folder") else real(*args)
        if name == "create":
            self.unsynced.add(os.fstat(result).st_ino)  # type: ignore[arg-type]
        if strike:
            raise Crash
        return result

    def cut_power(self, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file() and path.stat().st_ino in self.unsynced:
                os.truncate(path, 0)


@contextmanager
def faulty_disk(strike_at: int, how: str, error: int = errno.ENOSPC) -> Iterator[FaultyDisk]:
    disk = FaultyDisk(strike_at, how, error)
    with pytest.MonkeyPatch.context() as patch:
        for name in _CALLS:
            real = getattr(files, name)
            patch.setattr(files, name, lambda *args, name=name, real=real: disk.call(name, real, *args))
        yield disk


def _calls_of(folder: Path, act: Callable[[CheckpointStore], object], prepare: Callable[[Path], None]) -> int:
    prepare(folder)
    with faulty_disk(-1, "before") as disk:
        act(CheckpointStore(folder))
    return len(disk.calls)


def _newest_hash(folder: Path) -> str | None:
    said: list[str] = []
    try:
        _, snapshot = CheckpointStore(folder).load_newest(said.append)
    except UserError:
        return None
    assert said == [], "a kill must not leave a visible bad checkpoint"
    return state_sha256(snapshot)


def _nothing(folder: Path) -> None:
    folder.mkdir()


def _two_older(folder: Path) -> None:
    save(CheckpointStore(folder), snapshot_at(300))
    save(CheckpointStore(folder), snapshot_at(400))


def _only_this_step(folder: Path) -> None:
    save(CheckpointStore(folder), _OLD)


_SAVES = [
    pytest.param(_nothing, {None}, id="first"),
    pytest.param(_two_older, {state_sha256(snapshot_at(400))}, id="after-two"),
    pytest.param(_only_this_step, {state_sha256(_OLD)}, id="replacing-the-only-one"),
]


@pytest.mark.parametrize(("prepare", "before"), _SAVES)
def test_a_kill_anywhere_in_a_save_leaves_the_newest_complete_checkpoint(
    tmp_path: Path, prepare: Callable[[Path], None], before: set[str | None]
) -> None:
    def act(store: CheckpointStore) -> object:
        return save(store, _NEW)

    calls = _calls_of(tmp_path / "count", act, prepare)
    assert calls > 15
    seen = set()
    for how in ("before", "torn", "after"):
        for strike_at in range(calls):
            folder = tmp_path / f"{how}-{strike_at}"
            prepare(folder)
            with faulty_disk(strike_at, how) as disk, pytest.raises(Crash):
                act(CheckpointStore(folder))
            disk.cut_power(folder)
            found = _newest_hash(folder)
            assert found in before | {state_sha256(_NEW)}
            seen.add(found)

            save(CheckpointStore(folder), snapshot_at(600))  # the next process saves, and cleans up
            assert _newest_hash(folder) == state_sha256(snapshot_at(600))
            assert all(path.name.startswith("step-") and path.suffix == "" for path in folder.iterdir())
    assert seen == before | {state_sha256(_NEW)}


def test_a_second_kill_while_the_first_is_being_cleaned_up_loses_nothing(tmp_path: Path) -> None:
    def replace_it(store: CheckpointStore) -> object:
        return save(store, _NEW)

    calls = _calls_of(tmp_path / "count", replace_it, _only_this_step)
    for first in range(calls):
        second = 0
        while True:
            folder = tmp_path / f"{first}-{second}"
            _only_this_step(folder)
            with faulty_disk(first, "before"), pytest.raises(Crash):
                replace_it(CheckpointStore(folder))
            newest = _newest_hash(folder)
            with faulty_disk(second, "after") as disk:
                try:
                    CheckpointStore(folder).clean()
                    break
                except Crash:
                    disk.cut_power(folder)
            assert _newest_hash(folder) == newest
            second += 1


def test_a_kill_anywhere_in_a_removal_leaves_every_kept_checkpoint(tmp_path: Path) -> None:
    def four(folder: Path) -> None:
        for step in (100, 200, 300, 400):
            save(CheckpointStore(folder), snapshot_at(step))

    def prune(store: CheckpointStore) -> object:
        return store.prune(Retention(2), {})

    for strike_at in range(_calls_of(tmp_path / "count", prune, four)):
        folder = tmp_path / str(strike_at)
        four(folder)
        with faulty_disk(strike_at, "before"), pytest.raises(Crash):
            prune(CheckpointStore(folder))
        store = CheckpointStore(folder)
        infos = store.list()
        assert all(info.complete for info in infos)
        assert [info.step for info in infos][-2:] == [300, 400]
        store.clean()
        assert all(path.name.startswith("step-") for path in folder.iterdir())


def test_everything_is_synced_before_it_is_published_and_the_folder_after(tmp_path: Path) -> None:
    with faulty_disk(-1, "before") as disk:
        save(CheckpointStore(tmp_path / "checkpoints"), _NEW)
    assert disk.unsynced == set()
    assert disk.calls[-3:] == ["sync_folder", "rename", "sync_folder"]
    assert disk.calls.count("sync") == disk.calls.count("create") == 5


def _refusal(act: Callable[[], object]) -> CheckpointNotSaved | None:
    try:
        act()
    except CheckpointNotSaved as refused:
        return refused
    return None


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize(("prepare", "before"), _SAVES)
def test_a_disk_that_refuses_costs_one_save_and_nothing_else(
    tmp_path: Path, prepare: Callable[[Path], None], before: set[str | None], error: int
) -> None:
    def act(store: CheckpointStore) -> object:
        return save(store, _NEW)

    for strike_at in range(_calls_of(tmp_path / "count", act, prepare)):
        folder = tmp_path / str(strike_at)
        prepare(folder)
        with faulty_disk(strike_at, "refuse", error):
            refused = _refusal(lambda folder=folder: act(CheckpointStore(folder)))
        if refused is None:
            assert _newest_hash(folder) == state_sha256(_NEW)
        else:
            expected = f"the checkpoint of step 500 was not saved in {folder}: {os.strerror(error)}; "
            assert str(refused) == expected + "the older ones are untouched"
        assert not any(".partial-" in path.name for path in folder.iterdir())
        assert _newest_hash(folder) in before | {state_sha256(_NEW)}
        save(CheckpointStore(folder), snapshot_at(600))
        assert _newest_hash(folder) == state_sha256(snapshot_at(600))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a full disk is a small tmpfs, and to mount one needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk_keeps_the_old_and_saves_again_when_there_is_room(small_disk: Path) -> None:
    store = CheckpointStore(small_disk / "checkpoints")
    save(store, snapshot_at(1))
    filler = small_disk / "filler"
    filler.write_bytes(bytes(180 << 10))
    for _ in range(3):
        with pytest.raises(CheckpointNotSaved, match="No space left on device"):
            save(store, snapshot_at(2, size=2000))
        assert [path.name for path in store.folder.iterdir()] == ["step-00000001"]
        assert _newest_hash(store.folder) == state_sha256(snapshot_at(1))
    filler.unlink()
    save(store, snapshot_at(2, size=2000))
    assert _newest_hash(store.folder) == state_sha256(snapshot_at(2, size=2000))


_SAVER = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from checkpoint_examples import save, snapshot_at
from raylm.checkpoint.retention import Retention
from raylm.checkpoint.store import CheckpointStore
store = CheckpointStore(Path(sys.argv[1]))
newest = store.newest()
step = store.load(newest).step if newest else 0
print("ready", flush=True)
while True:
    save(store, snapshot_at(step, size=2000))  # the same step again: replaced in place
    step += 1
    save(store, snapshot_at(step, size=2000))
    store.prune(Retention(2), {{}})
"""


def _kill_savers(folder: Path, kills: int) -> int:
    delays = random.Random(0)
    last = 0
    for _ in range(kills):
        with subprocess.Popen([sys.executable, "-c", _SAVER, str(folder)], stdout=subprocess.PIPE) as saver:
            assert saver.stdout is not None
            assert saver.stdout.readline() == b"ready\n"
            time.sleep(delays.uniform(0, 0.1))
            saver.send_signal(signal.SIGKILL)
        if CheckpointStore(folder).candidates():
            said: list[str] = []
            _, snapshot = CheckpointStore(folder).load_newest(said.append)
            assert said == []
            assert state_sha256(snapshot) == state_sha256(snapshot_at(snapshot.step, size=2000))
            assert snapshot.step >= last
            last = snapshot.step
    return last


def test_sigkill_at_random_instants_never_loses_the_newest_checkpoint(tmp_path: Path) -> None:
    assert _kill_savers(tmp_path / "checkpoints", kills=8) > 0


@pytest.mark.slow
def test_two_hundred_sigkills_never_lose_the_newest_checkpoint(tmp_path: Path) -> None:
    assert _kill_savers(tmp_path / "checkpoints", kills=200) > 0


def test_saving_goes_on_in_a_folder_that_another_process_left_dirty(tmp_path: Path) -> None:
    (tmp_path / ".step-00000007.partial-1").mkdir()
    (tmp_path / ".step-00000007.partial-1" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".step-00000003.removed-1").write_bytes(b"not even a folder")
    (tmp_path / "step-00000007.new").mkdir()
    (tmp_path / "notes.txt").write_text("the user's own")
    CheckpointStore(tmp_path).save(snapshot_at(7), config=CONFIG, dataset_id=DATASET)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "step-00000007"]
