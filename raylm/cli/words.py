"""Divides the words of a command line among the options of a model, and names those options.

Words are taken as they stand, commas and brackets too.
"""

from __future__ import annotations

import argparse
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raylm.errors import UserError

Tree = dict[str, Any]


def fields_of(model: type[BaseModel], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, field) of every leaf of a config tree."""
    leaves: list[tuple[str, Any]] = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            leaves += fields_of(field.annotation, f"{prefix}{name}.")
        else:
            leaves.append((prefix + (field.alias or name), field))
    return leaves


def divide(
    arguments: Sequence[str], model: type[BaseModel], shortcuts: Mapping[str, str]
) -> tuple[list[str], Tree, list[str]]:
    """The arguments of options that take one value or none; the values of options that take several, as a tree, each
    word as it stands; and the words that belong to no option."""
    fields = dict(fields_of(model))
    keys = {f"--{option}": key for option, key in zip(options_of(model), fields, strict=True)}
    keys |= {f"--{option}": key for key, option in shortcuts.items()}
    flags = {"-h", "--help", *(option for option, key in keys.items() if fields[key].annotation is bool)}
    rest: list[str] = []
    lists: dict[str, list[str]] = {}
    words: list[str] = []
    ahead = deque(arguments)
    while ahead:
        word = ahead.popleft()
        option, equals, value = word.partition("=")
        if word == "--":
            words += ahead
            break
        if not word.startswith("-") or word == "-":
            words.append(word)
        elif option in keys and takes_many(fields[keys[option]]):
            values = [value] if equals else _values(ahead)
            if not values:
                raise UserError(f"{option}: expected at least one value after it")
            lists.setdefault(keys[option], []).extend(values)
        else:
            rest.append(word)
            if not equals and option not in flags and ahead and not ahead[0].startswith("--"):
                rest.append(ahead.popleft())
    tree: Tree = {}
    for key, many in lists.items():
        branch: Any = many
        for part in reversed(key.split(".")):
            branch = {part: branch}
        tree = merged(tree, branch)
    return rest, tree, words


def _values(ahead: deque[str]) -> list[str]:
    """Takes words up to the next option."""
    values = []
    while ahead and not ahead[0].startswith("--"):
        values.append(ahead.popleft())
    return values


def options_of(model: type[BaseModel]) -> list[str]:
    """The option of every leaf of a model, without dashes before it: what is on is turned off by `no-` and its name."""
    return [("no-" if field.default is True else "") + key.replace("_", "-") for key, field in fields_of(model)]


def takes_many(field: FieldInfo) -> bool:
    """Whether a field holds several values."""
    return str(field.annotation).startswith("tuple[")


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """A tree over another one: what both have is taken from `over`."""
    tree = dict(base)
    for key, value in over.items():
        known = tree.get(key)
        tree[key] = merged(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return tree


def positive(text: str) -> float:
    """An option's value that is a number above 0, and finite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
