"""The folder of a run and its config.json: the resolved configuration, the data it means, versions of everything."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raylm import __version__
from raylm.checkpoint.mirror import FOLDER, Mirror, complete
from raylm.config import RunConfig
from raylm.data.caching import write_file
from raylm.data.remote import without_credentials
from raylm.errors import UserError
from raylm.observe.migration import read_config

NAME = "config.json"
_PACKAGES = ("ray", "tensorflow", "numpy", "pyarrow", "rich", "pydantic", "safetensors")


@dataclass(frozen=True)
class RunRecord:
    """What config.json holds beside the versions.

    datasets: folder of each split. corpus: its name. note: a line to show with every table where it is not PTB.
    """

    config: RunConfig
    corpus: str
    note: str
    datasets: dict[str, str]


def create_run_folder(folder: Path, record: RunRecord) -> None:
    """Makes the folder of a new run and writes its config.json.

    Raises:
        UserError: the folder holds something already, or cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot hold the run ({error.strerror}): choose another --storage-path") from None
    if taken:
        raise UserError(
            f"{folder} is not empty: choose another --name, or go on with `raylm resume --from-checkpoint {folder}`"
        )
    write_record(folder, record)


def create_in_store(mirror: Mirror) -> None:
    """Begins a run in an object store: its name is free, and we may write there.

    Raises:
        UserError: it is not, there is no such bucket, or we may not.
    """
    mirror.check_writable()
    if mirror.remote.sizes():
        raise UserError(
            f"{mirror.place} is not empty: choose another --name, or go on with `raylm resume --from-checkpoint "
            f"{mirror.place}`"
        )
    shutil.rmtree(mirror.folder, ignore_errors=True)


def remove_unstarted(folder: Path, mirror: Mirror | None = None) -> bool:
    """Removes the folder of a run that never began, so that its name is free again; whether it never did."""
    begun = complete(mirror.remote.sizes(FOLDER)) if mirror else (folder / FOLDER).exists()
    if not begun:
        shutil.rmtree(folder, ignore_errors=True)
        if mirror is not None:
            mirror.remove()
    return not begun


def write_record(folder: Path, record: RunRecord) -> None:
    """Writes config.json whole or not at all. Raises: UserError: the folder cannot be written to."""
    content = {
        "config": to_be_kept(record.config),
        "corpus": record.corpus,
        "note": record.note,
        "datasets": {split: without_credentials(place) for split, place in record.datasets.items()},
        "versions": versions(),
    }
    write_file(folder / NAME, (json.dumps(content, indent=2) + "\n").encode())


def _no_one(line: str) -> None:
    """Nobody listens."""


def to_be_kept(config: RunConfig) -> dict[str, Any]:
    """A configuration for files: without the credentials of the URIs in it."""
    tree = config.model_dump(mode="json")
    tree["storage_path"] = without_credentials(tree["storage_path"])
    if tree["start_from"] is not None:
        tree["start_from"] = without_credentials(tree["start_from"])
    tree["data"]["corpus"] = [without_credentials(place) for place in tree["data"]["corpus"]]
    return tree


def read_record(folder: Path, say: Callable[[str], None] = _no_one) -> RunRecord:
    """The record of a run; options of another raylm that are left out are named through `say`.

    Raises:
        UserError: there is no config.json, or it is damaged or of a raylm that this one cannot stand in for
            (`raylm.observe.migration`); says which field.
    """
    path = folder / NAME
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        return RunRecord(
            read_config(content["config"], str(content.get("versions", {}).get("raylm", "")), say),
            str(content["corpus"]),
            str(content["note"]),
            {split: str(content["datasets"][split]) for split in ("train", "valid", "test")},
        )
    except FileNotFoundError:
        raise UserError(f"{folder} has no {NAME}: it is no run's folder") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {place}: {first['msg']}; it was written by another raylm, or changed") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error!r}); put it back from a copy") from None


def versions() -> dict[str, str]:
    """Versions of raylm, Python and the packages that compute."""
    found = {"raylm": __version__, "python": sys.version.split()[0], "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found
