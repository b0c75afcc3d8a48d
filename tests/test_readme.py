"""The README: each command in it is one that its own parser takes or that a named test runs; nothing is missing."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import io
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from raylm.cli import completion, options
from raylm.cli.main import COMMANDS
from raylm.cli.words import fields_of
from raylm.config import RunConfig
from raylm.errors import UserError
from raylm.guard.drills import parse_drills
from raylm.recipes import RECIPES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
NAMES = [name for group in COMMANDS.values() for name in group]
PROGRAMS = ("raylm", "python", "ray", "pip", "pytest", "curl")

RUN_ELSEWHERE = {
    "ray get-auth-token --generate": ("tests/test_cluster_aws.py", '"ray", "get-auth-token", "--generate"'),
    "ray up cluster.yaml": ("tests/test_cluster_aws.py", '"ray", "up", "-y", "cluster.yaml"'),
    "ray dashboard cluster.yaml": ("tests/test_cluster_aws.py", '"ray", "dashboard", "cluster.yaml"'),
    "ray down cluster.yaml": ("tests/test_cluster_aws.py", '"ray", "down", "-y", "cluster.yaml"'),
    "ray job submit -- ": ("tests/test_cluster_aws.py", '"ray", "job", "submit", "--"'),
    "ray job submit --working-dir . -- ": ("tests/test_cluster_up.py", '"ray", "job", "submit", "--working-dir"'),
    "ray job stop ID": ("tests/test_cluster_up.py", '"ray", "job", "stop"'),
    "ray drain-node": ("tests/ray_cluster.py", '"ray", "drain-node"'),
    "ray start": ("tests/ray_cluster.py", '"ray", "start"'),
    "curl localhost:8000/score": ("tests/test_serve.py", "/score"),
    "curl localhost:8000/next": ("tests/test_serve.py", "/next"),
    "curl -N localhost:8000/generate": ("tests/test_serve.py", "/generate"),
}
"""Commands that are not raylm's own, by how they begin: who runs them, and the words there."""


def commands(text: str) -> Iterator[str]:
    """The commands of code blocks, and those in the midst of a sentence, without comments, redirections and `&&`."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = []
    for block in blocks:
        joined = block.replace("\\\n", " ").splitlines()
        prompted = [line[2:] for line in joined if line.startswith("$ ")]
        lines += prompted or [line for line in joined if line.split(" ")[0] in PROGRAMS]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    inline = [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", prose)]
    alone = {f"raylm {name}" for name in NAMES}  # a command that is spoken of, not a line to type
    lines += [line for line in inline if " " in line and line.split(" ")[0] in PROGRAMS and line not in alone]
    for line in lines:
        words = shlex.split(line, comments=True)
        words = words[: words.index(">")] if ">" in words else words
        yield from " ".join(word if word == "&&" else shlex.quote(word) for word in words).split(" && ")


class Parsed(BaseException):
    """Raised where a command has parsed its line, with what it found; it starts nothing."""


@pytest.fixture
def _stops_once_parsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parse, known = options._parse, argparse.ArgumentParser.parse_known_args
    of_the_config = options.parse_run_config

    def parsed(*given: Any) -> None:
        raise Parsed(parse(*given))

    def all_parsed(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        found, rest = known(self, args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        if type(self) is argparse.ArgumentParser:
            raise Parsed(found)
        return found

    def part_parsed(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        found, rest = known(self, args, namespace)
        if type(self) is argparse.ArgumentParser:
            of_the_config(rest, program=self.prog)
        return found, rest

    monkeypatch.setattr(options, "_parse", parsed)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", all_parsed)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", part_parsed)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text("epochs = 2\n")


def fault(words: Sequence[str]) -> str | None:
    """Why a command line cannot be, or None."""
    if words[0] == "raylm" or list(words[:2]) == ["python", "jobs/train_ptb.py"]:
        name, rest = ("train", words[2:]) if words[0] == "python" else (words[1], words[2:])
        if name.startswith("-"):
            return None if name in ("--help", "--version") else f"raylm has no {name}"
        return _parse(f"raylm.cli.{name.replace('-', '_')}", rest) if name in NAMES else f"no command {name}"
    if words[0] == "python" and words[1] == "jobs/tune_ptb.py":
        return _of_a_job(words[1], [word for word in words[2:] if word in ("--toy", "--trials")])
    if words[0] == "python" and words[1].startswith("jobs/"):
        return _of_a_job(words[1], words[2:])
    if words[0] == "pip" and words[1] == "install":
        return _of_pip(words[2:])
    if words[0] == "pytest":
        return _of_pytest(words[1:])
    if list(words[:3]) == ["ray", "job", "submit"] and "--" in words:
        inner = fault(words[words.index("--") + 1 :])
        if inner:
            return inner
    line = " ".join(words)
    for begin, (file, said) in RUN_ELSEWHERE.items():
        if line.startswith(begin):
            return None if said in (ROOT / file).read_text(encoding="utf-8") else f"{file} does not run {begin}"
    return "no parser and no test looks at it"


def _parse(module: str, rest: Sequence[str]) -> str | None:
    try:
        importlib.import_module(module).main(list(rest))
    except Parsed as found:
        return _drilled(found.args[0])
    except UserError as error:
        return str(error)
    except SystemExit as end:
        return "the parser refuses it" if end.code else None
    return None


def _drilled(parsed: Any) -> str | None:
    """What `raylm train` refuses once it has parsed its options."""
    try:
        if isinstance(parsed, RunConfig):
            parse_drills(parsed.drill)
    except UserError as error:
        return str(error)
    return None


def _of_a_job(path: str, rest: Sequence[str]) -> str | None:
    """Jobs import TensorFlow: their parsers are read, not run."""
    if not (ROOT / path).is_file():
        return f"there is no {path}"
    calls = [node for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.Call)]
    added = [call.args for call in calls if getattr(call.func, "attr", "") == "add_argument"]
    known = {word.value for words in added for word in words if isinstance(word, ast.Constant)}
    if path == "jobs/reproduce.py":  # it hands on what is `raylm train`'s
        known |= {f"--{key.replace('_', '-')}" for key, _ in fields_of(RunConfig)}
    unknown = [word for word in rest if word.startswith("--") and word not in known]
    return f"{path} has no {', '.join(unknown)}" if unknown else None


def _of_pip(rest: Sequence[str]) -> str | None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    words = [word.strip("'") for word in rest]
    extras = {name for word in words for name in re.findall(r"\[(.+)\]", word)}
    unknown = extras - set(project["optional-dependencies"])
    missing = [words[at + 1] for at, word in enumerate(words) if word == "-c" and not (ROOT / words[at + 1]).is_file()]
    return f"no extra or file {unknown or missing}" if unknown or missing else None


def _of_pytest(rest: Sequence[str]) -> str | None:
    words = list(rest)
    marks = [words[at + 1] for at, word in enumerate(words) if word == "-m"]
    files = [word for word in words if word.endswith(".py") and not (ROOT / word).is_file()]
    unknown = [mark for mark in marks if mark not in ("ray", "slow")]
    return f"no marker or file {unknown + files}" if unknown or files else None


@pytest.mark.usefixtures("_stops_once_parsed")
def test_every_command_is_one_that_its_parser_takes_or_a_test_runs() -> None:
    found = list(dict.fromkeys(commands(README)))
    assert len(found) > 60
    faults = {line: why for line in found if (why := fault(shlex.split(line)))}
    assert faults == {}
    assert [begin for begin in RUN_ELSEWHERE if not any(line.startswith(begin) for line in found)] == []


@pytest.mark.slow
def test_every_command_of_raylm_s_own_ends_well_one_after_another_from_an_empty_directory(tmp_path: Path) -> None:
    times = tmp_path / "times.md"
    program = [sys.executable, ROOT / "jobs/time_readme.py", "--output", times, "--total", "3000"]
    subprocess.run(program, check=True, timeout=3600)
    ends = re.findall(r"^\| `(.+)` \| [\d.]+ \| (.+) \|$", times.read_text(), re.MULTILINE)
    assert len(ends) > 35
    unwell = {command: end for command, end in ends if not end.endswith(("exit code 0", "exit code 130"))}
    assert unwell == {"raylm diagnose RUN --apply mended.toml": "exit code 2"}  # of a healthy run, there is nothing to


def test_the_page_of_what_they_print_has_them_all_and_names_no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    page = (ROOT / "jobs/tour.md").read_text(encoding="utf-8")
    wanted = list(importlib.import_module("time_readme").commands(README))
    assert len(wanted) > 35
    assert re.findall(r"^\| `(.+)` \| [\d.]+ \| ", page, re.MULTILINE) == wanted
    assert [command for command in wanted if f"\n$ {command}\n" not in page] == []
    assert "Traceback" not in page
    assert not any(str(place) in page for place in (ROOT, Path.home(), tempfile.gettempdir()))


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """What `raylm NAME --help` prints, on a wide terminal."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "1000")
        for name in NAMES:
            with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
                importlib.import_module(f"raylm.cli.{name.replace('-', '_')}").main(["--help"])
            found[name] = said.getvalue()
    return found


@pytest.mark.usefixtures("helps", "_stops_once_parsed")
@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_every_command_has_examples_that_their_parsers_take(name: str, helps: dict[str, str]) -> None:
    _, told, examples = helps[name].partition("example")
    assert told
    lines = re.findall(r"raylm [a-z-]+[^·|(>\n]*", examples.split("\noptions:")[0])
    assert any(line.startswith((f"raylm {name}", "raylm train")) for line in lines)
    assert {line: why for line in lines if (why := fault(shlex.split(line)))} == {}


@pytest.mark.usefixtures("_stops_once_parsed")
@pytest.mark.parametrize(
    "line",
    [
        "raylm plam",
        "raylm plan --recipe nine",
        "raylm watch",
        "raylm eval RUN --cahce",
        "raylm data verify data/train --jason",
        "raylm resume --from-checkpoint RUN --wrokers 2",
        "python jobs/train_ptb.py --drill nan-lost@120",
        "python jobs/nothing.py",
        "python jobs/soak.py --deaths 3",
        "pip install -e '.[gpus]'",
        "pytest tests/test_nothing.py",
        "ray job submit -- raylm tarin",
        "ray upp cluster.yaml",
    ],
)
def test_a_command_that_cannot_be_is_found(line: str) -> None:
    found = list(commands(f"```\n{line}   # why\n```\n"))
    assert [why is None for why in map(fault, map(shlex.split, found))] == [False]


def test_every_file_that_is_named_is_there() -> None:
    named = re.findall(r"(?:tests|jobs|raylm|\.ci)/[\w/.-]*\w\.(?:py|svg|json|toml|yaml)", README)
    named += re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(named) > 30
    assert sorted({name for name in named if not (ROOT / name).exists()}) == []


def test_every_option_and_every_key_that_is_spoken_of_exists(capsys: pytest.CaptureFixture[str]) -> None:
    spoken = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE))
    named = {words.split()[0] for words in spoken if words.startswith("--")}
    completion.main(["bash"])  # it knows every command's options
    assert len(named) > 25
    assert named - set(re.findall(r"--[\w.-]+", capsys.readouterr().out)) == set()
    sections = "|".join(name for name in RunConfig.model_fields)
    keys = {words for words in spoken if re.fullmatch(rf"(?:{sections})\.\w+", words)} - {"cluster.yaml"}
    assert len(keys) > 5
    assert keys - {key for key, _ in fields_of(RunConfig)} == set()


def test_every_command_and_every_recipe_is_mentioned() -> None:
    assert [name for name in NAMES if f"raylm {name}" not in " ".join(README.split())] == []
    assert [name for name in RECIPES if f"`{name}`" not in README and f"--recipe {name}" not in README] == []


def test_the_picture_is_small_and_asks_nothing_of_the_network() -> None:
    picture = (ROOT / "jobs/screenshot.svg").read_text(encoding="utf-8")
    assert len(picture.encode()) < 60_000
    assert "NaN" in picture or "nan" in picture
    assert not re.search(r"url\(\W?http|href=.http", picture)
    assert not any(str(place) in picture for place in (ROOT, tempfile.gettempdir()))
