"""A run's configuration as another version of raylm wrote it, read by this one; and what differs between two.

The rule for options that this raylm does not have (dropped or renamed since):

- a file of a newer raylm is refused: update raylm;
- an option that was off (false, 0, none, empty) is passed over without a word: its absence means the same;
- one that a checkpoint is made of (`raylm.config.FIXED`) is refused: going on without it would compute something else;
- any other is named and left out.

An option that the file lacks has its default: a new option's default is what raylm did before it had it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from raylm import __version__
from raylm.config import RunConfig, is_fixed
from raylm.errors import UserError

Tree = Mapping[str, Any]


def read_config(tree: Tree, written_by: str, say: Callable[[str], None]) -> RunConfig:
    """The configuration in a run's files; what is left out is named through `say`.

    written_by: the version of raylm that wrote it, "" where that is not known.

    Raises:
        UserError: the rule refuses it; names the option.
        pydantic.ValidationError: an option holds what it cannot.
    """
    known = _leaves(_plain(RunConfig()))
    sections = {key.rpartition(".")[0] for key in known}
    for key, value in _leaves(tree).items():
        if key in known or key in sections:
            continue
        if _numbers(written_by) > _numbers(__version__):
            raise UserError(
                f"it was written by raylm {written_by} and has {key}, which this raylm {__version__} does not know: "
                "update raylm"
            )
        if value and value != "none":
            if is_fixed(key):
                raise UserError(
                    f"{key} = {value!r} is no option of this raylm {__version__}, and the run depends on it: go on "
                    f"with the raylm it was started with{f' ({written_by})' if written_by else ''}"
                )
            say(f"the run's {key} = {value!r} is no option any more: left out")
    return RunConfig.model_validate_json(json.dumps(_tree(known, tree)))


def differences(old: Tree, new: Tree) -> dict[str, tuple[Any, Any]]:
    """Old and new value of each option that differs from an older configuration, which may lack some."""
    before = {**_leaves(_plain(RunConfig())), **_leaves(old)}
    return {key: (before[key], value) for key, value in _leaves(new).items() if before[key] != value}


def _tree(known: Mapping[str, Any], tree: Tree, prefix: str = "") -> dict[str, Any]:
    """The tree without the leaves that are not known."""
    sections = {key.rpartition(".")[0] for key in known}
    kept: dict[str, Any] = {}
    for name, value in tree.items():
        key = prefix + name
        if isinstance(value, Mapping) and key in sections:
            kept[name] = _tree(known, value, f"{key}.")
        elif key in known or key in sections:
            kept[name] = value
    return kept


def _plain(config: RunConfig) -> Tree:
    tree: Tree = config.model_dump(mode="json")
    return tree


def _leaves(tree: Tree) -> dict[str, Any]:
    """The values of a tree by their dotted keys."""

    def walk(branch: Tree, prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in branch.items():
            if isinstance(value, Mapping):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    return dict(walk(tree, ""))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))
