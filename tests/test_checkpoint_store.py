"""A damaged checkpoint is named and passed over; listing, retention and looking up a path say what is there."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_examples import CONFIG, DATASET, save, snapshot_at

from raylm.checkpoint.locate import locate
from raylm.checkpoint.manifest import read_manifest
from raylm.checkpoint.retention import Retention
from raylm.checkpoint.store import CheckpointStore, state_sha256
from raylm.errors import UserError

_FILES = (
    "MANIFEST.json",
    "carry-00000-00019.safetensors",
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    for step in (400, 500):
        save(store, snapshot_at(step))
    return store


def _loads_the_older_naming(store: CheckpointStore, name: str) -> str:
    said: list[str] = []
    path, snapshot = store.load_newest(said.append)
    assert path.name == "step-00000400"
    assert state_sha256(snapshot) == state_sha256(snapshot_at(400))
    assert len(said) == 1
    assert "\n" not in said[0]
    assert name in said[0]
    return said[0]


@pytest.mark.parametrize("name", _FILES)
def test_one_flipped_bit_in_any_byte_of_any_file_is_noticed(store: CheckpointStore, name: str) -> None:
    path = store.folder / "step-00000500" / name
    good = path.read_bytes()
    bits = random.Random(name)
    for position in range(len(good)):
        flipped = bytearray(good)
        flipped[position] ^= 1 << bits.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"step-00000500.*(damaged|of format)"):
            store.load(path.parent)
    _loads_the_older_naming(store, f"step-00000500/{name}")


@pytest.mark.parametrize("name", _FILES)
def test_a_truncated_or_longer_or_missing_file_is_noticed_without_reading_the_arrays(
    store: CheckpointStore, name: str
) -> None:
    path = store.folder / "step-00000500" / name
    good = path.read_bytes()
    for bad in (b"", good[:1], good[: len(good) // 2], good[:-1], good + b"\0"):
        path.write_bytes(bad)
        said = _loads_the_older_naming(store, "step-00000500")
        assert "damaged" in said
        assert store.newest() == store.folder / "step-00000400"
    path.unlink()
    _loads_the_older_naming(store, "step-00000500")
    assert store.newest() == store.folder / "step-00000400"


def test_what_was_expected_and_found_is_said(store: CheckpointStore) -> None:
    path = store.folder / "step-00000500" / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=rf"model.safetensors is damaged: expected {size} bytes, found {size - 3}"):
        store.load(path.parent)


def test_a_file_that_may_not_be_read_is_named(store: CheckpointStore) -> None:
    path = store.folder / "step-00000500" / "model.safetensors"
    path.unlink()
    path.mkdir()
    _loads_the_older_naming(store, f"cannot read {path}: Is a directory")


def test_an_emptied_folder_and_a_file_in_its_place_are_passed_over(store: CheckpointStore) -> None:
    path = store.folder / "step-00000500"
    shutil.rmtree(path)
    path.mkdir()
    _loads_the_older_naming(store, "has no MANIFEST.json: not a complete checkpoint")
    path.rmdir()
    path.write_text("not a folder")
    _loads_the_older_naming(store, "Not a directory")
    save(store, snapshot_at(500))
    assert store.newest() == path


def test_a_checkpoint_under_a_wrong_name_is_not_taken_for_that_step(store: CheckpointStore) -> None:
    (store.folder / "step-00000500").rename(store.folder / "step-00000900")
    infos = store.list()
    assert [(info.step, info.complete) for info in infos] == [(400, True), (900, False)]
    assert infos[1].problem is not None
    assert "holds step 500, not the one in its name" in infos[1].problem
    _loads_the_older_naming(store, "step-00000900 holds step 500, not the one in its name")


def test_a_manifest_of_a_newer_format_asks_for_an_update(store: CheckpointStore) -> None:
    path = store.folder / "step-00000500" / "MANIFEST.json"
    path.write_text(json.dumps({"format": 2, "manifest_sha256": "?"}))
    _loads_the_older_naming(store, "is of format 2; this raylm reads up to 1: update raylm")


def test_a_manifest_that_points_outside_its_folder_is_refused(store: CheckpointStore) -> None:
    path = store.folder / "step-00000500"
    manifest = read_manifest(path)
    outside = replace(manifest, files={"../../../secret": manifest.files["state.json"]})
    (path / "MANIFEST.json").write_bytes(outside.to_bytes())
    _loads_the_older_naming(store, "not a file of the checkpoint's own folder")


@pytest.mark.parametrize("missing", ["state.json", "model.safetensors"])
def test_a_manifest_that_lacks_a_file_is_refused(store: CheckpointStore, missing: str) -> None:
    path = store.folder / "step-00000500"
    manifest = read_manifest(path)
    files = {name: record for name, record in manifest.files.items() if name != missing}
    (path / "MANIFEST.json").write_bytes(replace(manifest, files=files).to_bytes())
    _loads_the_older_naming(store, "cannot be read as a checkpoint")


def test_a_manifest_of_another_state_is_refused(store: CheckpointStore) -> None:
    path = store.folder / "step-00000500"
    (path / "MANIFEST.json").write_bytes(replace(read_manifest(path), state_sha256="0" * 64).to_bytes())
    _loads_the_older_naming(store, "state_sha256 expected 0000")


def test_all_bad_and_none_at_all_are_clear_errors(store: CheckpointStore) -> None:
    for path in store.candidates():
        (path / "state.json").write_bytes(b"")
    said: list[str] = []
    with pytest.raises(UserError, match="holds 2 checkpoints, none of them good"):
        store.load_newest(said.append)
    assert len(said) == 2
    assert store.newest() is None
    with pytest.raises(UserError, match="holds no checkpoint"):
        CheckpointStore(store.folder / "nowhere").load_newest(said.append)


def test_the_list_is_oldest_first_with_sizes_times_and_figures(tmp_path: Path) -> None:
    times = iter([10.0, 20.0, 30.0])
    store = CheckpointStore(tmp_path, clock=lambda: next(times))
    for step in (99_999_999, 100_000_000, 5):
        save(store, snapshot_at(step))
    infos = store.list()
    assert [(info.step, info.saved) for info in infos] == [(5, 30.0), (99_999_999, 10.0), (100_000_000, 20.0)]
    assert store.newest() == tmp_path / "step-100000000"
    for info in infos:
        assert info.complete
        assert info.bytes == sum(path.stat().st_size for path in info.path.iterdir())
        assert info.state_sha256 == state_sha256(snapshot_at(info.step))
        assert info.extra == snapshot_at(info.step).extra


def test_saving_a_step_again_replaces_it(store: CheckpointStore) -> None:
    save(store, snapshot_at(500, variant=1))
    _, snapshot = store.load_newest(pytest.fail)
    assert state_sha256(snapshot) == state_sha256(snapshot_at(500, variant=1))
    assert [info.step for info in store.list()] == [400, 500]


def _saved(folder: Path, *steps: int) -> CheckpointStore:
    store = CheckpointStore(folder)
    for step in steps:
        save(store, snapshot_at(step))
    return store


def test_pruning_removes_what_retention_does_not_keep(tmp_path: Path) -> None:
    store = _saved(tmp_path, *range(1, 8))
    removed = store.prune(Retention(last=2, every=4, best=1), {2: 5.0, 3: 4.0, 5: 4.5})
    assert [info.step for info in store.list()] == [3, 4, 6, 7]
    assert [info.path.name for info in removed] == [f"step-{step:08d}" for step in (1, 2, 5)]


def test_pruning_counts_only_complete_ones_and_leaves_the_damaged_to_be_looked_at(tmp_path: Path) -> None:
    store = _saved(tmp_path, *range(1, 6))
    for step in (1, 4, 5):
        (tmp_path / f"step-{step:08d}" / "state.json").unlink()
    assert store.prune(Retention(2), {}) == []
    assert [info.step for info in store.list() if info.complete] == [2, 3]


def test_a_checkpoint_that_cannot_be_removed_is_named_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _saved(tmp_path, *range(1, 5))

    def refuse(old: object, new: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("raylm.checkpoint.files.rename", refuse)
    said: list[str] = []
    assert store.prune(Retention(2), {}, said.append) == []
    assert said == [f"{tmp_path}/step-0000000{step} could not be removed: Permission denied" for step in (1, 2)]
    assert len(store.list()) == 4


def test_going_back_to_a_step_sets_aside_what_came_after(tmp_path: Path) -> None:
    store = _saved(tmp_path, 100, 200, 300, 400)
    aside = store.set_aside_after(200)
    assert aside is not None
    assert sorted(path.name for path in Path(aside).iterdir()) == ["step-00000300", "step-00000400"]
    assert [info.step for info in store.list()] == [100, 200]
    assert store.set_aside_after(200) is None


def test_a_path_may_name_a_run_its_checkpoints_or_one_of_them(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = store.folder.parent
    monkeypatch.chdir(run.parent)
    assert locate(str(run)) == (run, None)
    assert locate("run") == (run, None)
    assert locate("run/checkpoints/") == (run, None)
    assert locate("run/checkpoints/step-00000400") == (run, run / "checkpoints" / "step-00000400")
    monkeypatch.setenv("HOME", str(run.parent))
    assert locate("~/run") == (run, None)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "nowhere does not exist; give a run's folder"),
        ("run/checkpoints/step-00000400/state.json", "state.json is a file; give a run's folder"),
        ("empty", "empty is not a run: it has no checkpoints folder"),
        ("unsaved", "checkpoints holds no checkpoint: the run stopped before its first"),
        ("unsaved/checkpoints", "checkpoints holds no checkpoint: the run stopped before its first"),
        ("step-00000400", "step-00000400 lies outside a run; put it into RUN/checkpoints/"),
        ("loop", "cannot be looked at|does not exist"),
        ("a\0b", "cannot be looked at"),
        ("s3:///run", "there is no bucket in it"),
    ],
)
def test_a_path_that_is_none_of_these_is_one_clear_line(
    store: CheckpointStore, path: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = store.folder.parent.parent
    monkeypatch.chdir(here)
    (here / "empty").mkdir()
    (here / "unsaved" / "checkpoints" / ".step-00000001.partial-1").mkdir(parents=True)
    (here / "loop").symlink_to("loop")
    shutil.copytree(store.folder / "step-00000400", here / "step-00000400")
    with pytest.raises(UserError, match=message) as raised:
        locate(path)
    assert "\n" not in str(raised.value)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match=r"cannot read .*checkpoints: Not a directory"):
        CheckpointStore(tmp_path / "checkpoints").candidates()


def test_a_manifest_that_cannot_be_read_is_named(store: CheckpointStore) -> None:
    path = store.folder / "step-00000500" / "MANIFEST.json"
    path.unlink()
    path.mkdir()
    _loads_the_older_naming(store, f"cannot read {path}: Is a directory")


def test_checkpoints_that_cannot_be_set_aside_are_one_clear_line(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(old: object, new: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("raylm.checkpoint.files.rename", refuse)
    with pytest.raises(UserError, match=r"newer than step 400 cannot be moved to .*: Permission denied"):
        store.set_aside_after(400)
    assert [info.step for info in store.list()] == [400, 500]


def test_what_the_run_was_is_kept_beside_its_state(store: CheckpointStore) -> None:
    manifest = read_manifest(store.folder / "step-00000500")
    assert manifest.config == json.loads(json.dumps(CONFIG))
    assert (manifest.step, manifest.dataset_id) == (500, DATASET)
