"""config.json reads back as the run it records; folders that cannot be a run's are refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raylm import __version__
from raylm.config import RunConfig
from raylm.errors import UserError
from raylm.observe.run_folder import RunRecord, create_run_folder, read_record, remove_unstarted, write_record

RECORD = RunRecord(
    RunConfig(seed=7, name="mine", optimizer={"clip_norm": None}, data={"corpus": ("a.txt", "ü.txt")}),
    "a.txt and ü.txt",
    "not PTB's",
    {"train": "/data/train", "valid": "/data/valid", "test": "/data/test"},
)


def test_a_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    create_run_folder(tmp_path / "runs" / "mine", RECORD)
    assert read_record(tmp_path / "runs" / "mine") == RECORD
    assert [path.name for path in (tmp_path / "runs" / "mine").iterdir()] == ["config.json"]


def test_a_record_is_replaced_whole(tmp_path: Path) -> None:
    create_run_folder(tmp_path / "run", RECORD)
    later = RunRecord(RunConfig(), "ptb", "", RECORD.datasets)
    write_record(tmp_path / "run", later)
    assert read_record(tmp_path / "run") == later
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_the_record_holds_every_setting_and_the_versions_of_everything(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["config"] == RECORD.config.model_dump(mode="json")
    assert content["versions"]["raylm"] == __version__
    assert {"python", "platform", "ray", "tensorflow", "numpy", "pyarrow", "pydantic"} <= set(content["versions"])
    assert "missing" not in content["versions"].values()


def test_a_folder_that_holds_something_is_not_a_new_run_s(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"is not empty: choose another --name, or go on with `raylm resume"):
        create_run_folder(tmp_path, RECORD)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_place_that_cannot_hold_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/raylm")):
        with pytest.raises(UserError, match="choose another --storage-path"):
            create_run_folder(folder, RECORD)


def test_the_folder_of_a_run_that_never_began_is_removed_and_one_that_began_is_not(tmp_path: Path) -> None:
    for name in ("never", "begun"):
        create_run_folder(tmp_path / name, RECORD)
    (tmp_path / "begun" / "checkpoints").mkdir()
    remove_unstarted(tmp_path / "never")
    remove_unstarted(tmp_path / "begun")
    assert [path.name for path in tmp_path.iterdir()] == ["begun"]
    assert read_record(tmp_path / "begun") == RECORD


def test_a_folder_without_a_record_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config.json: it is no run's folder"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"3", b'{"config": {}}', b"\xff\xfe", b"[" * 100_000, b'{"config": 3}']
)
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json") as refusal:
        read_record(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("model", "hidden", -3, "model.hidden: Input should be greater than 0"),
        ("schedule", "learning_rate", "fast", "schedule.learning_rate"),
    ],
)
def test_the_field_of_another_version_s_record_is_named(
    tmp_path: Path, section: str, key: str, value: Any, said: str
) -> None:
    write_record(tmp_path, RECORD)
    content = json.loads((tmp_path / "config.json").read_text())
    content["config"][section][key] = value
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as refusal:
        read_record(tmp_path)
    assert said in str(refusal.value)
