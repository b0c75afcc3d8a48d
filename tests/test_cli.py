"""The command line: help, exit codes, and mistakes told in one line before anything is started."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from checkpoint_examples import snapshot_at
from made_datasets import make_dataset, random_rows

from raylm import __version__
from raylm.checkpoint.store import CheckpointStore
from raylm.cli import main as command_line
from raylm.cli.main import COMMANDS, guarded, overview
from raylm.config import RunConfig
from raylm.errors import UserError
from raylm.observe.run_folder import RunRecord, create_run_folder

NAMES = [name for group in COMMANDS.values() for name in group]


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of `raylm WORDS`."""
    monkeypatch.setattr(sys, "argv", ["raylm", *words])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    return int(end.value.code or 0)


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """What `raylm WORDS` says on standard error before it ends with exit code 2; it starts and leaves nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def refused(*words: str) -> str:
        known = set(sys.modules)
        assert run(monkeypatch, *words) == 2
        assert not {"ray", "tensorflow"} & (set(sys.modules) - known)
        said = capsys.readouterr().err
        assert said.startswith(f"raylm {words[0]}: ")
        assert said.count("\n") == 1
        return said

    return refused


# Commands and their help


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_the_overview_names_every_command(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *words) == 0
    said = capsys.readouterr().out
    assert said.strip() == overview()
    assert [name for name in NAMES if f"\n  {name} " not in said] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_its_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, name, "--help") == 0
    assert f"usage: raylm {name}" in capsys.readouterr().out
    assert importlib.import_module(f"raylm.cli.{name.replace('-', '_')}").SUMMARY.endswith(".")


@pytest.mark.parametrize("name", ["train", "config"])
def test_the_help_names_the_recipe_the_file_and_every_section(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, name, "--help")
    said = capsys.readouterr().out
    for part in ("--recipe", "--config FILE", "--model.hidden", "--workers", "--drill", "Parallel streams"):
        assert part in said


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"raylm {__version__}\n"


@pytest.mark.parametrize(
    ("word", "said"), [("trian", "did you mean train?"), ("xyz", "there are: train, resume"), ("--hlep", "there is no")]
)
def test_an_unknown_command_is_refused_with_the_nearest(
    word: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, word) == 2
    assert said in capsys.readouterr().err


def test_the_drills_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "drill") == 0
    said = capsys.readouterr().out
    assert [kind for kind in ("nan-loss", "nan-gradient", "kill-worker") if f"{kind} " not in said] == []
    assert run(monkeypatch, "drill", "--json") == 0
    assert "nan-loss" in json.loads(capsys.readouterr().out)


def test_the_printed_configuration_is_read_back_by_the_command_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("config", "--recipe", "ptb-medium", "--report.sample-prompt", 'ein \N{DOG} "sagt"', "--steps", "9")
    assert run(monkeypatch, *words) == 0
    printed = capsys.readouterr().out
    (tmp_path / "run.toml").write_text(printed, encoding="utf-8")
    assert run(monkeypatch, "config", "--config", str(tmp_path / "run.toml")) == 0
    assert capsys.readouterr().out == printed
    assert "hidden = 650" in printed


# What is imported


def test_help_and_the_lower_floors_import_neither_tensorflow_nor_ray() -> None:
    """They take seconds. In a process of its own: this one may hold them already."""
    script = """
import contextlib, importlib, io, pkgutil, sys
def check(what):
    for heavy in ("tensorflow", "ray"):
        assert heavy not in sys.modules, f"{what} imports {heavy}"
import raylm; check("raylm")
from raylm.cli.main import COMMANDS, main; check("raylm.cli.main")
assert "pyarrow" not in sys.modules and "pydantic" not in sys.modules
sys.argv = ["raylm", "--help"]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
check("raylm --help")
for floor in ("config", "recipes", "errors", "data", "checkpoint", "observe", "cli"):
    module = importlib.import_module(f"raylm.{floor}"); check(floor)
    for found in pkgutil.iter_modules(getattr(module, "__path__", ()), f"raylm.{floor}."):
        importlib.import_module(found.name); check(found.name)
for command in [name for group in COMMANDS.values() for name in group]:
    sys.argv = ["raylm", command, "--help"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main()
    check(f"raylm {command} --help")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr


def test_the_job_script_says_its_help_from_any_folder(tmp_path: Path) -> None:
    job = Path(__file__).parents[1] / "jobs" / "train_ptb.py"
    ended = subprocess.run(
        [sys.executable, str(job), "--help"], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "usage: python jobs/train_ptb.py" in ended.stdout
    assert os.listdir(tmp_path) == []


# Ends


def raising(error: BaseException) -> Callable[[Sequence[str], str], int]:
    def command(arguments: Sequence[str], program: str) -> int:
        raise error

    return command


def test_a_user_s_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(raising(UserError("no such place: mend it")), [], "raylm train") == 2
    assert capsys.readouterr() == ("", "raylm train: no such place: mend it\n")


def test_ctrl_c_ends_as_a_shell_expects() -> None:
    assert guarded(raising(KeyboardInterrupt()), [], "raylm train") == 128 + 2


def test_a_fault_of_the_program_is_not_taken_for_a_user_s() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded(raising(ZeroDivisionError()), [], "raylm train")


def test_a_reader_that_goes_away_is_no_error() -> None:
    """`raylm config | head -1`, with a pipe that is closed before anything is printed."""
    command = f"{sys.executable} -c 'from raylm.cli.main import main; main()' config; echo $? >&2"
    ended = subprocess.run(
        ["bash", "-c", f"({command}) | true"], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.stderr == "0\n"


def test_a_terminal_that_lacks_a_character_shows_it_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", terminal)

    def command(arguments: Sequence[str], program: str) -> int:
        print("±")
        return 0

    assert guarded(command, [], "raylm") == 0
    assert terminal.buffer.getvalue() == b"\\xb1\n"  # type: ignore[attr-defined]


# Mistakes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--learning-rat", "3"], "did you mean --learning-rate?"),
        (["--workers", "0"], "(--workers) 0: expected a number of workers above 0"),
        (["--replicas", "-1"], "(--replicas) -1: should be greater than 0"),
        (["--recipe", "ptb-smal"], "did you mean ptb-small?"),
        (["--config", "nowhere.toml"], "nowhere.toml cannot be read"),
        (["--drill", "nan-los@3"], "did you mean nan-loss?"),
        (["--drill", "zzz@3"], "there is no drill 'zzz'. There are: nan-"),
        (["--drill", "nan-loss"], "needs the step to strike at"),
        (["--drill", "nan-loss@soon"], "needs the step to strike at"),
        (["--storage-path", "s3:///runs"], "there is no bucket in it"),
        (["--corpus", "nowhere.txt"], "nowhere.txt does not exist"),
        (["--data-dir", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_of_train_s_is_refused_at_once(refusal: Callable[..., str], words: list[str], said: str) -> None:
    assert said in refusal("train", *words)


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def test_texts_that_cannot_be_trained_on_are_refused(refusal: Callable[..., str], tmp_path: Path) -> None:
    runs = ["--storage-path", str(tmp_path / "runs")]
    empty = write(tmp_path / "empty.txt", b"")
    assert "empty.txt" in refusal("train", "--corpus", empty, *runs)
    latin = write(tmp_path / "latin.txt", b"un caf\xe9 noir\n" * 100)
    assert "latin.txt" in refusal("train", "--corpus", latin, *runs)
    ptb = tmp_path / "ptb"
    ptb.mkdir()
    assert "lacks" in refusal("train", "--corpus", "ptb", "--data-dir", str(ptb), *runs)
    for name in ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"):
        write(ptb / name, b" no , it was n't black monday \n")
    assert "ptb.t" in refusal("train", "--corpus", "ptb", "--data-dir", str(ptb), *runs)
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run that stopped after three updates, as far as `raylm resume` looks before it starts anything."""
    data = tmp_path / "data"
    make_dataset(data, *random_rows(20, vocabulary=30), 30)
    folder = tmp_path / "runs" / "begun"
    config = RunConfig(name="begun", storage_path=str(tmp_path / "runs"))
    create_run_folder(folder, RunRecord(config, "mine", "", dict.fromkeys(("train", "valid", "test"), str(data))))
    store = CheckpointStore(folder / "checkpoints")
    store.save(snapshot_at(3), config=config.model_dump(mode="json"), dataset_id="0")
    return folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.hidden", "5"], "--model.hidden: the checkpoint was made with 200, not 5"),
        (["--data.lanes", "5"], "--data.lanes: the checkpoint was made with 20, not 5"),
        (
            ["--cache-dir", "elsewhere", "--model.hidden", "5"],
            "--model.hidden: the checkpoint was made with 200, not 5",
        ),
        (["--optimizer.name", "adam"], "--optimizer.name: the checkpoint was made with sgd"),
        (["--seed", "5"], "--seed: the checkpoint was made with 0, not 5"),
        (["--recipe", "ptb-small"], "a run that goes on keeps its recipe"),
        (["--workers", "0"], "expected a number of workers above 0"),
        (["--worker", "2"], "did you mean --workers?"),
        (["--steps", "3"], "--steps 3: the checkpoint is of step 3, and steps count from the start of the run"),
    ],
)
def test_what_a_checkpoint_is_made_of_cannot_be_changed_by_a_resume(
    refusal: Callable[..., str], begun: Path, words: list[str], said: str
) -> None:
    before = (begun / "config.json").read_bytes()
    assert said in refusal("resume", "--from-checkpoint", str(begun), *words)
    assert (begun / "config.json").read_bytes() == before


def test_a_path_that_is_no_run_or_checkpoint_is_refused(
    refusal: Callable[..., str], begun: Path, tmp_path: Path
) -> None:
    def said(path: Path) -> str:
        return refusal("resume", "--from-checkpoint", str(path))

    assert "does not exist" in said(tmp_path / "nowhere")
    assert "is a file" in said(begun / "config.json")
    assert "is not a run" in said(tmp_path)
    assert "does not exist" in said(begun / "checkpoints" / "step-00000009")
    assert "s3://" in refusal("resume", "--from-checkpoint", "s3:///run")
    weights = begun / "checkpoints" / "step-00000003" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "model.safetensors" in said(begun / "checkpoints" / "step-00000003")
    (begun / "config.json").write_text(json.dumps({"config": {}}))
    assert "config.json" in said(begun)


def test_resume_needs_to_know_from_where(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "resume") == 2
    assert "--from-checkpoint" in capsys.readouterr().err
