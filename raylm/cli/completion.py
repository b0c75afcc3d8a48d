"""`raylm completion SHELL`: a script that completes raylm's commands and options; it is printed, nothing is installed.

The options are those that each command's help names, so that a new one is completed without a line here.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
from collections.abc import Mapping, Sequence

from raylm.cli.main import COMMANDS
from raylm.cli.words import options_of
from raylm.config import SHORTCUTS, RunConfig

SUMMARY = "Print a script that completes commands and options in bash, zsh or fish."

_INSTALL = {
    "bash": "raylm completion bash > ~/.local/share/bash-completion/completions/raylm",
    "zsh": "raylm completion zsh > ~/.zfunc/_raylm        (with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc)",
    "fish": "raylm completion fish > ~/.config/fish/completions/raylm.fish",
}

_Words = Mapping[str, Sequence[str]]


def main(arguments: Sequence[str], program: str = "raylm completion") -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        program,
        description=SUMMARY,
        epilog="\n".join(["examples, which install it:", *(f"  {line}" for line in _INSTALL.values())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=_INSTALL, help="the shell that the script is for")
    shell = parser.parse_args(arguments).shell
    commands = {name: what for group in COMMANDS.values() for name, what in group.items()}
    words = {name: _words(name) for name in commands}
    script = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](commands, words)
    print(f"# raylm's commands and options. To install it:\n#   {_INSTALL[shell]}\n{script}")
    return 0


def _words(command: str) -> Sequence[str]:
    """What may follow a command: its subcommands and its options, out of its help."""
    module = importlib.import_module(f"raylm.cli.{command.replace('-', '_')}")
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        module.main(["--help"], f"raylm {command}")
    text = said.getvalue()
    found = [*module.ACTIONS] if command == "data" else []
    found += re.findall(r"(?<!\S)\[?(--[a-z][a-z0-9.-]*[a-z0-9])", text)
    return list(dict.fromkeys([*found, *(_training() if "raylm train" in text else ())]))


def _training() -> Sequence[str]:
    """The options of `raylm train`, which follow those of some other commands."""
    return [f"--{option}" for option in ("recipe", "config", *SHORTCUTS.values(), *options_of(RunConfig))]


def _bash(commands: Mapping[str, str], words: _Words) -> str:
    cases = "\n".join(f'    {name}) words="{" ".join(each)}" ;;' for name, each in words.items())
    return f"""_raylm() {{
  local words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join(commands)} --help --version" -- "$2"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$2"))
}}
complete -o default -F _raylm raylm"""


def _zsh(commands: Mapping[str, str], words: _Words) -> str:
    cases = "\n".join(f"    {name}) compadd -- {' '.join(each)}; _files ;;" for name, each in words.items())
    listed = "\n".join(f"    '{name}:{_quoted(what)}'" for name, what in commands.items())
    return f"""#compdef raylm
local -a commands=(
{listed}
)
if (( CURRENT == 2 )); then
  _describe command commands
else
  case "$words[2]" in
{cases}
  esac
fi"""


def _fish(commands: Mapping[str, str], words: _Words) -> str:
    lines = ["complete -c raylm -n __fish_use_subcommand -f"]
    for name, what in commands.items():
        lines.append(f"complete -c raylm -n __fish_use_subcommand -a {name} -d '{_quoted(what)}'")
        within = f"complete -c raylm -n '__fish_seen_subcommand_from {name}'"
        for word in words[name]:
            lines.append(f"{within} -l {word[2:]}" if word.startswith("--") else f"{within} -a {word}")
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """For single quotes, where zsh takes a colon for its own."""
    return text.replace("'", "").replace(":", ",")
