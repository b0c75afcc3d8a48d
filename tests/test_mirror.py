"""Runs in an object store: the manifest commits, what is committed loads elsewhere, whatever was cut off on the way."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_examples import save, snapshot_at
from saving_cases import attempt_in_a_store
from tiny_runs import make_texts, tiny
from training_cases import attempt
from training_runner import call

from raylm.checkpoint.locate import find, locate
from raylm.checkpoint.mirror import Mirror, StoreMarks
from raylm.checkpoint.mirrored import MirroredStore
from raylm.checkpoint.retention import Retention
from raylm.checkpoint.snapshot import state_sha256
from raylm.checkpoint.store import CheckpointNotSaved, CheckpointStore
from raylm.cli import checkpoints, replay
from raylm.config import RunConfig
from raylm.data.remote import with_credentials_of
from raylm.data.upload import Destination
from raylm.errors import UserError
from raylm.observe.events import read_events
from raylm.observe.run_folder import RunRecord, create_in_store, read_record, remove_unstarted, write_record
from raylm.training.incident import read_incident

RECORD = RunRecord(RunConfig(seed=7), "mine", "", dict.fromkeys(("train", "valid", "test"), "/data"))


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Moves to another machine: one with another cache."""

    def move(name: str) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    move("here")
    return move


@pytest.fixture
def uri(bucket: str, request: pytest.FixtureRequest) -> str:
    """Of a run of each test's own."""
    return bucket.format(f"runs/{request.node.name.replace('[', '-').strip(']')}")


def begin(uri: str, *steps: int) -> MirroredStore:
    mirror = Mirror(uri, "rank-0", waits=())
    mirror.folder.mkdir(parents=True, exist_ok=True)
    write_record(mirror.folder, RECORD)
    mirror.push()
    store = MirroredStore(mirror)
    for step in steps:
        save(store, snapshot_at(step))
    return store


def newest(uri: str, role: str = "rank-1") -> tuple[str, list[str]]:
    """The digest of the state that another rank goes on from, and what it says of others."""
    said: list[str] = []
    mirror = Mirror(uri, role, waits=())
    mirror.pull()
    _, snapshot = MirroredStore(mirror).load_newest(said.append)
    return state_sha256(snapshot), said


def test_what_one_rank_saves_another_loads(uri: str) -> None:
    store = begin(uri, 1, 2, 3)
    assert newest(uri) == (state_sha256(snapshot_at(3)), [])
    assert [(info.step, info.complete) for info in store.list()] == [(1, True), (2, True), (3, True)]
    assert str(store.list()[0].path).startswith("s3://bucket/runs/")
    assert len(CheckpointStore(store.folder).list()) == 2  # in the working folder, no more than needed
    save(store, snapshot_at(4))
    assert newest(uri) == (state_sha256(snapshot_at(4)), [])


@pytest.mark.parametrize("step", [pytest.param(2, id="replacing"), pytest.param(3, id="new", marks=pytest.mark.slow)])
def test_a_save_cut_off_anywhere_leaves_the_newest_complete_checkpoint(bucket: str, step: int) -> None:
    new, old = (state_sha256(snapshot_at(step, variant=1)), state_sha256(snapshot_at(2)))
    seen = set()
    for cut in itertools.count():
        uri = bucket.format(f"cut-{step}/{cut}")
        store = begin(uri, 1, 2)
        whole = _cut_off_after(cut, lambda store=store: save(store, snapshot_at(step, variant=1)))
        found, said = newest(uri)
        assert said == []
        assert found in ({new} if whole else {new, old})
        seen.add(found)
        save(store, snapshot_at(4))
        assert newest(uri) == (state_sha256(snapshot_at(4)), [])
        torn = {name.split("/")[1] for name in Destination(uri).sizes("checkpoints")} - set(names(store))
        assert torn == set()
        if whole:
            break
    assert cut >= 5
    assert seen == {new, old}


def names(store: MirroredStore) -> list[str]:
    return [str(info.path).rpartition("/")[2] for info in store.list()]


class Cut(BaseException):
    """The process ends here."""


def _cut_off_after(requests: int, act: Callable[[], object]) -> bool:
    """Whether `act` came to its end with so many requests that change the store."""
    counted = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("send", "remove"):
            real = getattr(Destination, name)

            def request(self: Destination, *words: object, real: Callable[..., None] = real) -> None:
                if next(counted) >= requests:
                    raise Cut
                real(self, *words)

            patch.setattr(Destination, name, request)
        try:
            act()
        except Cut:
            return False
    return True


def test_saving_a_step_again_and_again_goes_to_and_fro_between_two_names(uri: str) -> None:
    store = begin(uri, 1, 2)
    for variant in (1, 2, 3):
        save(store, snapshot_at(2, variant=variant))
        assert newest(uri) == (state_sha256(snapshot_at(2, variant=variant)), [])
        assert names(store) == ["step-00000001", "step-00000002" + (".new" if variant % 2 else "")]


def spoil(uri: str, file: str) -> None:
    remote = Destination(uri)
    data = bytearray(remote.read(file))
    data[-1] ^= 1
    remote.write(file, bytes(data))


def test_a_damaged_checkpoint_in_the_store_is_named_and_the_one_before_is_used(
    uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = begin(uri, 1, 2, 3)
    spoil(uri, "checkpoints/step-00000003/model.safetensors")
    found, said = newest(uri)
    assert found == state_sha256(snapshot_at(2))
    assert "step-00000003/model.safetensors is damaged" in said[0]
    assert [info.complete for info in store.list()] == [True] * 3
    assert [info.complete for info in store.verify_all()] == [True, True, False]
    assert checkpoints.main([uri, "--verify", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert "hidden" not in json.dumps(told)
    assert [each["verified"] for each in told["checkpoints"]] == [True, True, False]
    assert "s3://bucket/" in told["checkpoints"][2]["problem"]
    for step in (1, 2):
        spoil(uri, f"checkpoints/step-0000000{step}/state.json")
    with pytest.raises(UserError, match="holds 3 checkpoints, none of them good"):
        newest(uri)


def test_a_file_that_is_missing_in_the_store_is_noticed_without_reading_the_arrays(uri: str) -> None:
    store = begin(uri, 1, 2)
    Destination(uri).remove("checkpoints/step-00000002/state.json")
    (bad,) = (info for info in store.list() if not info.complete)
    assert "state.json is damaged" in str(bad.problem)
    assert newest(uri)[0] == state_sha256(snapshot_at(1))


def test_pruning_and_setting_aside_happen_in_the_store(uri: str) -> None:
    store = begin(uri, 1, 2, 3, 4, 5)
    removed = store.prune(Retention(2, best=1), {2: 4.0, 3: 5.0})
    assert [info.step for info in removed] == [1, 3]
    assert names(store) == ["step-00000002", "step-00000004", "step-00000005"]
    assert store.set_aside_after(2) == f"{Mirror(uri, 'x').place}/checkpoints/set-aside"
    assert names(store) == ["step-00000002"]
    assert newest(uri) == (state_sha256(snapshot_at(2)), [])
    assert "checkpoints/set-aside/step-00000005/MANIFEST.json" in Destination(uri).sizes()
    assert store.set_aside_after(2) is None


def test_of_a_folder_in_the_store_those_written_last_stay(uri: str) -> None:
    remote = Destination(uri)
    for step in (1, 2, 3):
        remote.write(f"incidents/step-{step}/verdict.json", b"{}")
        remote.write(f"incidents/step-{step}/state/model.safetensors", b"")
    Mirror(uri, "rank-0").prune("incidents", 2)
    assert {name.split("/")[1] for name in remote.sizes("incidents")} == {"step-2", "step-3"}
    Mirror(uri, "rank-0").prune("incidents", 2)
    Mirror(uri, "rank-0").prune("nothing", 2)
    assert len(remote.sizes("incidents")) == 4


def test_small_files_come_and_go_and_what_a_rank_did_not_change_is_not_sent(
    uri: str, caches: Callable[[str], None]
) -> None:
    store = begin(uri, 1)
    first = Mirror(uri, "rank-0", waits=())
    (first.folder / "events.jsonl").write_text("one\n")
    (first.folder / "incidents" / "step-1").mkdir(parents=True)
    (first.folder / "incidents" / "step-1" / "verdict.json").write_text("{}")
    (first.folder / "alive").mkdir()
    (first.folder / "alive" / "busy-0").touch()
    (first.folder / ".summary.json.partial-1").touch()
    first.push()
    there = set(Destination(uri).sizes())
    assert {"config.json", "events.jsonl", "incidents/step-1/verdict.json"} <= there
    assert not {name for name in there if "busy" in name or "partial" in name}
    with (first.folder / "events.jsonl").open("a") as log:
        log.write("two\n")
    first.pull()
    assert (first.folder / "events.jsonl").read_text() == "one\ntwo\n"  # not sent yet, and not lost
    caches("elsewhere")
    second = Mirror(uri, "rank-0", waits=())
    second.pull()
    assert second.folder != first.folder
    assert read_record(second.folder) == RECORD
    assert (second.folder / "events.jsonl").read_text() == "one\n"
    first.push()
    second.push()
    assert Destination(uri).read("events.jsonl") == b"one\ntwo\n"
    assert store.list()[0].complete


def test_a_place_that_cannot_hold_a_run_is_found_out_at_once(bucket: str, uri: str) -> None:
    missing = bucket.replace("@bucket/", "@nowhere/").format("runs/x")
    with pytest.raises(UserError, match=r"s3://nowhere/runs/x: .*bucket does not exist") as refusal:
        create_in_store(Mirror(missing, "driver"))
    assert "hidden" not in str(refusal.value)
    begin(uri, 1)
    with pytest.raises(UserError, match=r"is not empty: choose another --name, or go on with"):
        create_in_store(Mirror(uri, "driver"))


def test_a_run_that_never_began_leaves_its_name_free(uri: str) -> None:
    mirror = begin(uri)._mirror
    assert remove_unstarted(mirror.folder, mirror)
    assert not mirror.folder.parents[1].exists()
    create_in_store(mirror)
    begin(uri, 1)
    assert not remove_unstarted(mirror.folder, mirror)
    assert newest(uri)[0] == state_sha256(snapshot_at(1))


def test_a_store_that_refuses_costs_one_checkpoint(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = begin(uri, 1)

    def refuse(*words: object) -> None:
        raise UserError("the store cannot be used (ACCESS_DENIED)")

    with monkeypatch.context() as patch:
        patch.setattr(Destination, "send", refuse)
        with pytest.raises(CheckpointNotSaved, match="step 2 was not saved: the store cannot be used"):
            save(store, snapshot_at(2))
    assert newest(uri) == (state_sha256(snapshot_at(1)), [])
    save(store, snapshot_at(3))
    assert names(store) == ["step-00000001", "step-00000003"]


def test_no_file_keeps_credentials_and_a_resume_has_them_from_its_uri(uri: str, tmp_path: Path) -> None:
    record = replace(RECORD, config=RunConfig(storage_path=uri), datasets=dict.fromkeys(RECORD.datasets, uri))
    write_record(tmp_path, record)
    assert "key:hidden" not in (tmp_path / "config.json").read_text()
    kept = read_record(tmp_path)
    for place in (kept.config.storage_path, *kept.datasets.values()):
        assert with_credentials_of(place, uri) == uri
    assert with_credentials_of("/data/train", uri) == "/data/train"


def test_a_uri_is_located_as_a_folder_is(uri: str) -> None:
    begin(uri, 1, 2)
    base, _, options = uri.partition("?")
    folder, checkpoint = locate(uri)
    assert checkpoint is None
    assert [path.name for path in CheckpointStore(folder / "checkpoints").candidates()] == ["step-00000002"]
    assert locate(f"{base}/checkpoints/?{options}") == (folder, None)
    folder, checkpoint = locate(f"{base}/checkpoints/step-00000001?{options}")
    assert checkpoint == folder / "checkpoints" / "step-00000001"
    assert state_sha256(CheckpointStore(checkpoint.parent).load(checkpoint)) == state_sha256(snapshot_at(1))
    with pytest.raises(UserError, match="holds no checkpoint step-00000009; there are: step-00000001, step-00000002"):
        find(f"{base}/checkpoints/step-00000009?{options}", "reader")
    with pytest.raises(UserError, match="holds no checkpoint; give a run's folder or URI"):
        find(f"{base}-nowhere?{options}", "reader")


def test_ranks_that_share_a_store_alone_see_each_other_s_marks(uri: str) -> None:
    StoreMarks(uri).say(0, "1 1")
    StoreMarks(uri).say(1, "2 7")
    assert StoreMarks(uri).read() == {"alive/busy-0": "1 1", "alive/busy-1": "2 7"}
    StoreMarks(uri).say(0, "1 2")
    StoreMarks(uri).say(0, "trains", "worker")
    assert StoreMarks(uri).read() == {"alive/busy-0": "1 2", "alive/busy-1": "2 7"}
    assert StoreMarks(uri).read("worker") == {"alive/worker-0": "trains"}


def test_a_run_in_a_store_goes_on_elsewhere_to_the_same_end(uri: str, tmp_path: Path) -> None:
    data = make_texts(tmp_path / "data")
    drills, keep = ("nan-loss@3", "nan-loss@16"), {"keep_incidents": 1}
    config = tiny(checkpoint={"every": 7, "keep_last": 2}, drill=drills, guard=keep)
    stopped = call(attempt_in_a_store, config, data, uri, tmp_path / "first", 9)
    assert stopped.summary.status == "interrupted"
    told = call(attempt_in_a_store, config, data, uri, tmp_path / "second")
    whole = call(attempt, config, data, tmp_path / "whole")
    assert told.summary.state_sha256 == whole.summary.state_sha256
    assert told.summary.resumes == 1
    paths = [event["path"] for event in told.published if event["kind"] == "checkpoint"]
    assert all(path.startswith("s3://bucket/runs/") for path in paths)
    mirror = Mirror(uri, "reader")
    mirror.pull()
    assert [event["kind"] for event in read_events(mirror.folder)].count("end") == 2
    assert json.loads((mirror.folder / "summary.json").read_text())["status"] == "completed"
    assert {name.split("/")[0] for name in Destination(uri).sizes()} >= {"tensorboard", "events.jsonl", "checkpoints"}
    assert [info.step for info in MirroredStore(mirror).verify_all()] == [12, 21, 24]
    kept = {name.split("/")[1] for name in Destination(uri).sizes("incidents")}
    assert kept == {"step-00000016"}  # the first was written on the other machine
    assert_an_incident_is_replayed_from(uri)


def assert_an_incident_is_replayed_from(uri: str) -> None:
    base, _, options = uri.partition("?")
    with replay.folder_of(f"{base}/incidents/step-00000016?{options}") as folder:
        names = {file.relative_to(folder.parents[1]).as_posix() for file in folder.rglob("*") if file.is_file()}
        assert names == {*Destination(uri).sizes("incidents")}
        assert read_incident(folder).last.step == 16
        (folder / "suggested.toml").write_text("# found anew\n")
    assert Destination(uri).read("incidents/step-00000016/suggested.toml") == b"# found anew\n"
    with pytest.raises(UserError, match="names no incident: give RUN/incidents/step-"), replay.folder_of(uri):
        pass
    with (
        pytest.raises(UserError, match="name a folder in a run's incidents"),
        replay.folder_of(f"{base}/incidents/step-00000099?{options}") as folder,
    ):
        read_incident(folder)
