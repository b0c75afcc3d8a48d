"""What lies in one checkpoint folder: written file by file, read back with every byte verified.

model.safetensors  optimizer.safetensors  carry-00000-00019.safetensors (first and last lane)
state.json         step, cursor, ledger, rng, and the order of the arrays
MANIFEST.json      written last: size and SHA-256 of every other file (`raylm.checkpoint.manifest`)
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raylm.checkpoint import files, tensors
from raylm.checkpoint.manifest import NAME as MANIFEST
from raylm.checkpoint.manifest import FileRecord, Manifest, read_manifest, without_nonfinite
from raylm.checkpoint.snapshot import Arrays, Json, Snapshot, go_on, in_pieces, plain, state_sha256
from raylm.errors import UserError

FOLDER_NAME = re.compile(r"step-(\d{8,})(\.new)?")


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint as it lies on the disk, judged by its manifest and its files' sizes."""

    step: int
    path: Path | str
    """Its folder, or its URI."""
    bytes: int
    saved: float | None
    """Seconds since 1970, UTC; None where the manifest cannot be read."""
    state_sha256: str | None
    extra: Json
    problem: str | None
    """What is wrong with it, in one line."""

    @property
    def complete(self) -> bool:
        return self.problem is None


def step_of(checkpoint: Path) -> int | None:
    """The step that a checkpoint folder's name says; None for any other name."""
    match = FOLDER_NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else None


def write_checkpoint(
    folder: Path,
    snapshot: Snapshot,
    config: Json,
    dataset_id: str,
    saved: float,
    rest: Callable[[], None] = go_on,
) -> None:
    """Write and sync all files of a checkpoint into the new folder `folder`, the manifest last.

    rest: called after each piece of the work, which may sleep there.

    Raises OSError, and ValueError where the snapshot holds what the files cannot.
    """
    files.make_folder(folder)
    records = {name: _write(folder / name, pieces, rest) for name, pieces in _contents(snapshot)}
    manifest = Manifest(
        step=snapshot.step,
        saved=saved,
        dataset_id=dataset_id,
        state_sha256=state_sha256(snapshot, rest),
        config=without_nonfinite(config),
        extra=without_nonfinite(snapshot.extra),
        files=records,
    )
    _write(folder / MANIFEST, [memoryview(manifest.to_bytes())], rest)
    files.sync_folder(folder)


def read_checkpoint(folder: Path) -> Snapshot:
    """The state in a checkpoint folder; UserError naming the file, what was expected and what was found."""
    manifest = read_manifest(folder)
    _check_name(folder, manifest)
    contents = {name: _read(folder / name, record) for name, record in manifest.files.items()}
    try:
        state = json.loads(contents["state.json"])
        carries = [name for name in contents if name.startswith("carry-")]
        snapshot = Snapshot(
            step=state["step"],
            weights=_arrays(contents["model.safetensors"], state["weights"]),
            slots=_arrays(contents["optimizer.safetensors"], state["slots"]),
            carry=_arrays(contents[carries[0]], state["carry"]) if carries else {},
            cursor=state["cursor"],
            ledger=state["ledger"],
            rng=state["rng"],
            extra=manifest.extra,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} cannot be read as a checkpoint: {error!r}") from error
    found = state_sha256(snapshot)
    if found != manifest.state_sha256:
        raise UserError(f"{folder}: state_sha256 expected {manifest.state_sha256}, found {found}")
    return snapshot


def look_at_checkpoint(folder: Path) -> CheckpointInfo:
    """What a checkpoint folder's manifest and sizes say, its arrays unread."""
    step = step_of(folder)
    assert step is not None, folder
    sizes: dict[str, int] = {}
    try:
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
        manifest = read_manifest(folder)
        _check_name(folder, manifest)
        check_sizes(folder, manifest, sizes)
    except OSError as error:
        problem = f"cannot read {folder}: {error.strerror}"
    except UserError as error:
        problem = str(error)
    else:
        size = sum(sizes.values())
        return CheckpointInfo(step, folder, size, manifest.saved, manifest.state_sha256, manifest.extra, None)
    return CheckpointInfo(step, folder, sum(sizes.values()), None, None, {}, problem)


def check_sizes(place: Path | str, manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """Raises UserError naming the first file of a checkpoint that has not the size it was written with."""
    for name, record in manifest.files.items():
        if sizes.get(name) != record.bytes:
            found = f"{sizes[name]}" if name in sizes else "no such file"
            raise UserError(f"{place}/{name} is damaged: expected {record.bytes} bytes, found {found}")


def _check_name(folder: Path, manifest: Manifest) -> None:
    if step_of(folder) not in (None, manifest.step):
        raise UserError(f"{folder} holds step {manifest.step}, not the one in its name")


def _contents(snapshot: Snapshot) -> Iterator[tuple[str, Iterable[memoryview]]]:
    state = {
        "step": snapshot.step,
        "cursor": snapshot.cursor,
        "ledger": snapshot.ledger,
        "rng": snapshot.rng,
        "weights": list(snapshot.weights),
        "slots": list(snapshot.slots),
        "carry": list(snapshot.carry),
    }
    yield "state.json", [memoryview(json.dumps(plain(state), indent=2).encode() + b"\n")]
    yield "model.safetensors", tensors.encode(snapshot.weights)
    yield "optimizer.safetensors", tensors.encode(snapshot.slots)
    if snapshot.carry:
        lanes = {np.shape(array)[0] if np.ndim(array) == 2 else 0 for array in snapshot.carry.values()}
        if len(lanes) != 1 or 0 in lanes:
            raise ValueError("the carry's arrays must be [lanes, width], all with the same lanes, at least one")
        yield f"carry-00000-{lanes.pop() - 1:05d}.safetensors", tensors.encode(snapshot.carry)


def _write(path: Path, parts: Iterable[memoryview], rest: Callable[[], None]) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    descriptor = files.create(path)
    try:
        for part in parts:
            for piece in in_pieces(part):
                digest.update(piece)
                files.write(descriptor, piece)
                size += len(piece)
                rest()
        files.sync(descriptor)
    finally:
        os.close(descriptor)
    return FileRecord(size, digest.hexdigest())


def _read(path: Path, record: FileRecord) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if len(data) != record.bytes:
        raise UserError(f"{path} is damaged: expected {record.bytes} bytes, found {len(data)}")
    found = hashlib.sha256(data).hexdigest()
    if found != record.sha256:
        raise UserError(f"{path} is damaged: expected SHA-256 {record.sha256}, found {found}")
    return data


def _arrays(data: bytes, order: Iterable[str]) -> Arrays:
    found = tensors.decode(data)
    names = [*order]
    if set(names) != set(found):
        raise ValueError(f"state.json names {sorted(names)}, the arrays are {sorted(found)}")
    return {name: found[name] for name in names}
