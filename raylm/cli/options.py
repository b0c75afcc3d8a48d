"""From a command line to a `RunConfig` (recipe, then TOML file, then options, each over the one before; below all the
storage path that a cluster names), or to the options of another command.

The options derive from the fields' types (pydantic-settings); what is added here are one-line errors that name the
nearest valid option or key.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError, create_model
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliPositionalArg,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from raylm.cli.words import Tree, divide, fields_of, merged, options_of, takes_many
from raylm.config import SHORTCUTS, RunConfig
from raylm.errors import UserError
from raylm.recipes import RECIPES

Model = TypeVar("Model", bound=BaseModel)

SYNONYMS = {
    "lr": "learning-rate",
    "batch-size": "data.lanes",
    "bptt": "data.window",
    "hidden-size": "model.hidden",
    "clip": "optimizer.clip-norm",
    "output": "storage-path",
}
"""What other programs call an option of ours."""


def parse_run_config(arguments: Sequence[str], *, program: str, base: Mapping[str, Any] | None = None) -> RunConfig:
    """The run that a command line asks for, over `base` (default: the recipe it names).

    `--recipe NAME` and `--config FILE` choose what the other options change. Ends the process with the help where
    the line asks for it.

    Raises:
        UserError: an unknown option, recipe or key, or a bad value; names the nearest valid one.
    """
    rest, recipe = _take(list(arguments), "--recipe")
    rest, file = _take(rest, "--config")
    from_file = _read_toml(Path(file)) if file is not None else {}
    if base is None:
        name = recipe or from_file.get("recipe") or RunConfig.model_fields["recipe"].default
        base = {**_named_by_the_cluster(), **_recipe(name), "recipe": name}
    elif recipe is not None:
        raise UserError(f"--recipe {recipe}: a run that goes on keeps its recipe; leave the option out")
    _refuse_sections(rest, RunConfig)
    rest, lists, words = divide(rest, RunConfig, SHORTCUTS)
    about = "--recipe NAME, then --config FILE (TOML), then the other options, each over the one before.\n\n"
    about += f"example: {program} --recipe ptb-small --steps 400 --learning-rate 0.5"
    try:
        model = _with_defaults_of(merged(base, from_file)) if {"-h", "--help"} & set(rest) else RunConfig
        return _parse(model, [*rest, *words], merged(merged(base, from_file), lists), program, about, SHORTCUTS)
    except ValidationError as error:
        raise UserError(explain(error, RunConfig)) from None
    except SettingsError as error:
        known = [*options_of(RunConfig), *SHORTCUTS.values(), "recipe", "config"]
        raise UserError(_explain_option(str(error), known, SYNONYMS)) from None


def _with_defaults_of(tree: Tree) -> type[RunConfig]:
    """A run's options whose help tells what a recipe and a file make of them."""
    values, fields = RunConfig.model_validate(tree), {}
    for name, field in RunConfig.model_fields.items():
        fields[name] = (field.annotation, copy(field))
        fields[name][1].default = getattr(values, name)
    return create_model("RunConfig", __base__=RunConfig, **fields)  # type: ignore[call-overload, no-any-return]


def parse_options(model: type[Model], arguments: Sequence[str], *, program: str, about: str) -> Model:
    """The options of a command. The field marked `CliPositionalArg`, one word or many, takes the words that belong to
    no option, wherever they stand; it has a default, and whether that will do is for the command to say.

    Ends the process with the help, which begins with `about`, where the line asks for it.

    Raises:
        UserError: an unknown option or a bad value; names the nearest valid one.
    """
    rest, base, words = divide(arguments, model, {})
    for name, field in model.model_fields.items():
        if CLI_WORDS in field.metadata and words:
            many = takes_many(field)
            base[name] = words if many else words[0]
            if not many and len(words) > 1:
                raise UserError(f"{words[1]!r} is a word too many: {name.upper()} is {words[0]!r} already")
    try:
        return _parse(model, rest, base, program, about, {})
    except ValidationError as error:
        raise UserError(explain(error, model)) from None
    except SettingsError as error:
        raise UserError(_explain_option(str(error), options_of(model), {})) from None


CLI_WORDS = get_args(CliPositionalArg[str])[1]


def _parse(
    model: type[Model],
    arguments: list[str],
    base: Tree,
    program: str,
    about: str,
    shortcuts: Mapping[str, str],
) -> Model:
    class Options(model, BaseSettings):  # type: ignore[valid-type, misc]
        model_config = SettingsConfigDict(
            cli_prog_name=program,
            cli_kebab_case=True,
            cli_shortcuts={key.replace("_", "-"): option for key, option in shortcuts.items()},
            cli_implicit_flags="toggle",
            cli_hide_none_type=True,
            cli_avoid_json=True,
            cli_exit_on_error=False,
        )

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            """Without the environment: a shell's $NAME or $SEED is no option of ours."""
            return (init_settings,)

    Options.__doc__ = about
    options = CliApp.run(Options, cli_args=arguments, **base)
    fields = model.model_fields.items()
    return model.model_validate({field.alias or name: getattr(options, name) for name, field in fields})


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first fault of a configuration in one line, with the nearest valid key."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        return _unknown(".".join(path), [key for key, _ in fields_of(model)], "key")
    message = first["msg"].removeprefix("Value error, ")
    keys = dict(fields_of(model))
    while path and ".".join(path) not in keys:
        path.pop()
    if not path and first["type"] == "value_error":  # of options that do not go together
        return ": ".join([*map(str, first["loc"]), message])
    if not path:
        return f"{first['loc'][0]} is a section with fields of its own, not {first['input']!r}"
    option = "--" + ".".join(path).replace("_", "-")
    if first["type"] == "missing":
        return f"{option} is missing; --help says what it is"
    shortcut = SHORTCUTS.get(".".join(path))
    value = first["input"]
    shown = "none" if value is None else str(value) if not isinstance(value, (dict, list, tuple)) else repr(value)
    message = message[0].lower() + message[1:]
    return f"{option}{f' (--{shortcut})' if shortcut else ''} {shown}: {message.replace('input should', 'should')}"


def _explain_option(message: str, known: Sequence[str], synonyms: Mapping[str, str]) -> str:
    text = message.removeprefix("error parsing CLI: ")
    head, _, unknown = text.partition("unrecognized arguments: ")
    if head or not unknown:
        return text.replace("argument ", "", 1)
    word = unknown.split()[0].split("=")[0]
    if not word.startswith("-"):
        return f"{word!r} is no option and belongs to none; options begin with --"
    return _unknown(word.lstrip("-"), known, "option", "--", synonyms)


def _unknown(
    name: str, known: Sequence[str], what: str, dashes: str = "", synonyms: Mapping[str, str] = SYNONYMS
) -> str:
    near = [synonyms[name]] if name in synonyms else difflib.get_close_matches(name, known, 1, 0.5)
    if not near:  # `dropuot`: compare with the last part of each
        tails = {key.rpartition(".")[2]: key for key in known}
        near = [tails[tail] for tail in difflib.get_close_matches(name.rpartition(".")[2], tails, 1, 0.5)]
    hint = f"; did you mean {dashes}{near[0]}?" if near else "; --help lists them"
    return f"there is no {what} {dashes}{name}{hint}"


def _recipe(name: Any) -> Tree:
    if name not in RECIPES:
        near = difflib.get_close_matches(str(name), RECIPES, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"--recipe {name}: there is no such recipe{hint} There are: {', '.join(RECIPES)}")
    return RECIPES[name]


def _named_by_the_cluster() -> Tree:
    """What a cluster asks of every run on it: cluster.yaml sets $RAYLM_STORAGE_PATH on each node."""
    path = os.environ.get("RAYLM_STORAGE_PATH")
    return {"storage_path": path} if path else {}


def _read_toml(path: Path) -> Tree:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"--config {path} is not TOML: {error}") from None


def _take(arguments: list[str], option: str) -> tuple[list[str], str | None]:
    """The arguments without one option, and its last value."""
    rest, value, words = [], None, iter(arguments)
    for word in words:
        if word == option:
            value = next(words, None)
            if value is None or value.startswith("--"):
                raise UserError(f"{option}: expected a value after it")
        elif word.startswith(option + "="):
            value = word.partition("=")[2]
        else:
            rest.append(word)
    return rest, value


def _refuse_sections(arguments: Sequence[str], model: type[BaseModel]) -> None:
    """Refuses `--model` alone, which the option parser would take for a section in JSON."""
    firsts = {f"--{key.partition('.')[0]}": key for key, _ in reversed(fields_of(model)) if "." in key}
    for word in arguments:
        option = word.partition("=")[0]
        if option in firsts:
            example = firsts[option].replace("_", "-")
            raise UserError(f"{option} is a section: name a field of it, as in --{example}; --help lists them")
