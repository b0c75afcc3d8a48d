"""MANIFEST.json, the record that makes a folder a checkpoint: written last, it proves every other file."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raylm.checkpoint.snapshot import Json, plain
from raylm.errors import UserError

NAME = "MANIFEST.json"
FORMAT = 1
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint as it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    step: int
    saved: float
    """Seconds since 1970, UTC."""
    dataset_id: str
    state_sha256: str
    config: Json
    """The resolved configuration of the run."""
    extra: Json
    files: Mapping[str, FileRecord]

    def to_bytes(self) -> bytes:
        """The file's bytes; a digest over everything in it comes along, so that a flipped bit shows."""
        content = plain({"format": FORMAT, **asdict(self)})
        return _render({**content, "manifest_sha256": _digest(content)})


def read_manifest(checkpoint: Path) -> Manifest:
    """The verified manifest of a checkpoint folder; UserError naming the file and what is wrong with it."""
    path = checkpoint / NAME
    try:
        return parse_manifest(path.read_bytes(), path)
    except FileNotFoundError:
        raise UserError(f"{checkpoint} has no {NAME}: not a complete checkpoint") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def parse_manifest(data: bytes, path: Path | str) -> Manifest:
    """A verified manifest from its bytes; UserError naming its path and what is wrong with it."""
    try:
        content = json.loads(data)
        recorded = content.pop("manifest_sha256")
        if content["format"] > FORMAT:
            raise UserError(f"{path} is of format {content['format']}; this raylm reads up to {FORMAT}: update raylm")
        whole = recorded == _digest(content) and data == _render({**content, "manifest_sha256": recorded})
        if not whole:
            raise UserError(f"{path} is damaged: its own SHA-256 says {recorded}, found {_digest(content)}")
        return _parse(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from error


def without_nonfinite(value: Any) -> Any:
    """`value` with NaN and the infinities as the texts "nan", "inf", "-inf", which JSON can hold."""
    if isinstance(value, Mapping):
        return {key: without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nonfinite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value


def _parse(content: dict[str, Any]) -> Manifest:
    files = {name: FileRecord(record["bytes"], record["sha256"]) for name, record in content["files"].items()}
    for name in files:
        if not _PLAIN_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a file of the checkpoint's own folder")
    return Manifest(
        step=content["step"],
        saved=content["saved"],
        dataset_id=content["dataset_id"],
        state_sha256=content["state_sha256"],
        config=content["config"],
        extra=content["extra"],
        files=files,
    )


def _digest(content: Json) -> str:
    return hashlib.sha256(_render(content)).hexdigest()


def _render(content: Json) -> bytes:
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"
