"""`raylm`: chooses the command and turns errors into one line and an exit code.

Exit codes: 0 done · 1 the run failed · 2 a mistake that the user can mend · 128 + n ended by signal n.
"""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from raylm import __version__
from raylm.errors import UserError

COMMANDS: dict[str, dict[str, str]] = {
    "Train": {
        "train": "train a language model; --help lists every option",
        "resume": "go on where a run stopped: raylm resume --from-checkpoint PATH",
    },
    "Use a trained model": {
        "generate": 'sample text: raylm generate RUN --prompt "the company said"',
        "eval": "its perplexity on a text, with --cache or --dynamic on request",
        "score": "the log probability of every token of text files, to Parquet or JSON",
        "export": "its weights as safetensors, or a TensorFlow SavedModel",
    },
    "Prepare data": {
        "prepare": "turn text into a dataset: raylm prepare FILE... --output FOLDER",
        "data": "verify, show, sample a dataset, or say what each lane reads where",
    },
    "Look before": {
        "plan": "memory, hours and money that a run will take; refuses what cannot fit",
        "doctor": "what a run needs on every node, what is missing, and what to do",
        "config": "print the configuration that a recipe, a file and options make",
        "lr-find": "find a learning rate on a copy of the state: raylm lr-find --recipe quick",
        "drill": "list the faults that --drill can inject, to see the recovery",
    },
    "Look while it trains": {
        "watch": "the live view of a run, from another terminal: raylm watch RUN",
        "dashboard": "a Grafana dashboard of the gauges that runs export: raylm dashboard > raylm.json",
    },
    "Look after": {
        "diagnose": "is something wrong with a training, and what to do: raylm diagnose RUN",
        "report": "a run's curves, incidents and samples as one page: raylm report RUN",
        "compare": "what differs between runs, then their results: raylm compare RUN RUN",
        "explain": "say what printed numbers mean: raylm explain --vocab 10000 --loss 0=9.2 100=496.8",
        "checkpoints": "list, verify or prune a run's checkpoints: raylm checkpoints RUN",
        "replay": "compute a step that failed again: raylm replay RUN/incidents/step-N",
    },
    "Your shell": {
        "completion": "complete commands and options: raylm completion bash (or zsh, fish)",
    },
}


def main() -> None:
    """The `raylm` command."""
    arguments = sys.argv[1:]
    names = [name for group in COMMANDS.values() for name in group]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        sys.exit(0)
    if arguments[0] == "--version":
        print(f"raylm {__version__}")
        sys.exit(0)
    command = arguments[0]
    if command not in names:
        near = difflib.get_close_matches(command, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}"
        print(f"raylm: there is no command {command!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    leave(guarded(_run, arguments[1:], f"raylm {command}"))


def _run(arguments: Sequence[str], program: str) -> int:
    """Imports the command's module and runs it."""
    code: int = importlib.import_module(f"raylm.cli.{program.split()[-1].replace('-', '_')}").main(arguments, program)
    return code


def guarded(run: Callable[[Sequence[str], str], int], arguments: Sequence[str], program: str) -> int:
    """The exit code of a command; a user's mistake is one line on standard error, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal has not is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        code = run(arguments, program)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # nobody reads any more, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def leave(code: int) -> NoReturn:
    """Ends the process with an exit code. Where a connection to Ray was left open (`raylm.cluster.connection`), at
    once: taken apart, the process would die of it."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def overview() -> str:
    """The commands, grouped by what a person wants to do."""
    lines = ["raylm trains LSTM language models on Ray. Usage: raylm COMMAND [OPTIONS]"]
    for group, commands in COMMANDS.items():
        lines += ["", f"{group}:", *(f"  {name:<11} {what}" for name, what in commands.items())]
    lines += ["", "Exit codes: 0 done · 1 the run failed, or what was looked at is bad · 2 a mistake that you can mend"]
    lines += ["· 130 and 143 ended by Ctrl-C or SIGTERM."]
    lines += ["", "raylm COMMAND --help says more. raylm --version tells the version."]
    return "\n".join(lines)
