"""`raylm config`: print a run's resolved configuration, as TOML that `--config` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from raylm.cli.options import parse_run_config

SUMMARY = "Print the configuration that a recipe, a file and options make."


def main(arguments: Sequence[str], program: str = "raylm config") -> int:
    """The exit code. Raises: UserError: a mistake of the user's."""
    config = parse_run_config(arguments, program=program)
    print("\n".join(toml_lines(config.model_dump(mode="json"))))
    return 0


def toml_lines(tree: Mapping[str, Any]) -> list[str]:
    """A config tree as TOML, which has no null: "none" stands for it."""
    plain = [(key, value) for key, value in tree.items() if not isinstance(value, Mapping)]
    lines = [f"{key} = {_toml('none' if value is None else value)}" for key, value in plain]
    for key, value in tree.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{key}]", *toml_lines(value)]
    return lines


def _toml(value: Any) -> str:
    """JSON's numbers, lists and true/false are TOML's as well; its texts too, but for DEL and for escaped pairs."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
