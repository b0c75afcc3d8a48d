"""`raylm completion`: scripts that shells take, with every command and its options."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from raylm.cli.completion import main
from raylm.cli.main import COMMANDS


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    code = "import sys; from raylm.cli.completion import main; main([sys.argv[1]])"
    shells = ("bash", "zsh", "fish")
    command = [sys.executable, "-c", code]
    return {shell: subprocess.check_output([*command, shell], text=True) for shell in shells}


def completed(script: str, *words: str) -> list[str]:
    """What bash offers after some words, of which the last is begun."""
    ask = f'COMP_WORDS=(raylm {" ".join(words)}); COMP_CWORD={len(words)}; _raylm raylm "{words[-1]}"'
    ask += '; printf "%s\\n" "${COMPREPLY[@]}"'
    return subprocess.check_output(["bash", "-c", f"{script}\n{ask}"], text=True).split()


def test_bash_completes_commands_options_and_subcommands(scripts: dict[str, str]) -> None:
    script = scripts["bash"]
    assert completed(script, "re") == ["resume", "report", "replay"]
    assert completed(script, "train", "--model.hid") == ["--model.hidden"]
    assert completed(script, "lr-find", "--learning-r") == ["--learning-rate"]
    assert "--confirm" in completed(script, "diagnose", "--co")
    assert completed(script, "data", "ve") == ["verify"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_script_names_every_command_and_parses(shell: str, scripts: dict[str, str]) -> None:
    for group in COMMANDS.values():
        assert all(name in scripts[shell] for name in group)
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=scripts[shell], text=True, check=True)


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tcsh"])
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err
