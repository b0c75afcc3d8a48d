"""Checkpoints on a local disk that a kill at any instant cannot spoil.

A save writes everything under a hidden temporary name, syncs it, and renames: a reader sees a checkpoint
whole or not at all. A checkpoint of the same step is replaced by way of `step-NNNNNNNN.new`, which readers
prefer to the plain name, so that there is no instant without a complete one. Removal hides first and deletes
then.
"""

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from raylm.checkpoint import files
from raylm.checkpoint.layout import (
    FOLDER_NAME,
    CheckpointInfo,
    look_at_checkpoint,
    read_checkpoint,
    step_of,
    write_checkpoint,
)
from raylm.checkpoint.manifest import Manifest, read_manifest
from raylm.checkpoint.retention import Retention, superfluous
from raylm.checkpoint.snapshot import Json, Snapshot, go_on, state_sha256
from raylm.errors import UserError

__all__ = ["CheckpointInfo", "CheckpointNotSaved", "CheckpointStore", "Snapshot", "state_sha256", "step_of"]

_HIDDEN = re.compile(r"\.step-\d{8,}\.(partial|removed)-\d+")


class CheckpointNotSaved(OSError):  # noqa: N818 - an outcome that the caller goes on from
    """A save that the disk refused, told in one line; the older checkpoints are untouched."""


def ignore(line: str) -> None:
    """Nobody listens."""


class CheckpointStore:
    """The checkpoints of one run, in `folder` (`RUN/checkpoints`). One process writes, any number read."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._clock = clock

    def save(self, snapshot: Snapshot, *, config: Json, dataset_id: str, rest: Callable[[], None] = go_on) -> Path:
        """Write a checkpoint and return its folder once it is safe on the disk.

        rest: called after each piece of the work, which may sleep there.

        Raises CheckpointNotSaved where the disk refuses (full, read-only, failing): nothing partial stays.
        Raises ValueError where the snapshot holds what cannot be written (see `state_sha256`).
        """
        final = self.folder / f"step-{snapshot.step:08d}"
        partial = self.folder / f".{final.name}.partial-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.clean()
            write_checkpoint(partial, snapshot, config, dataset_id, self._clock(), rest)
            self._publish(partial, final)
        except ValueError:
            _remove_quietly(partial)
            raise
        except OSError as error:
            _remove_quietly(partial)
            raise CheckpointNotSaved(
                f"the checkpoint of step {snapshot.step} was not saved in {self.folder}: "
                f"{error.strerror or error}; the older ones are untouched"
            ) from error
        return final

    def candidates(self) -> Sequence[Path]:
        """The folders that may hold a checkpoint, newest step first; of one step, the replacement first."""
        try:
            found = [path for path in _entries(self.folder) if FOLDER_NAME.fullmatch(path.name)]
        except OSError as error:
            raise UserError(f"cannot read {self.folder}: {error.strerror}") from error
        return sorted(found, key=lambda path: (step_of(path), path.name), reverse=True)

    def list(self) -> Sequence[CheckpointInfo]:
        """All checkpoints, oldest step first, looked at without reading the arrays."""
        return [look_at_checkpoint(path) for path in reversed(self.candidates())]

    def verify_all(self) -> Sequence[CheckpointInfo]:
        """All checkpoints, oldest step first, every byte of each verified."""
        return [self._verify(info) for info in self.list()]

    def newest(self) -> Path | None:
        """The newest checkpoint whose manifest is whole and whose files have the right sizes."""
        return next((path for path in self.candidates() if look_at_checkpoint(path).complete), None)

    def load(self, path: Path) -> Snapshot:
        """The state in one checkpoint, every byte of it verified.

        Raises UserError naming the file, what was expected and what was found.
        """
        return read_checkpoint(path)

    def place(self, path: Path) -> str:
        """What a checkpoint's folder is called where others look for it."""
        return str(path)

    def manifest(self, path: Path) -> Manifest:
        """What one checkpoint says of itself. Raises UserError where that is damaged."""
        return read_manifest(path)

    def load_newest(self, say: Callable[[str], None]) -> tuple[Path, Snapshot]:
        """The newest checkpoint that verifies; each bad one passed over is named through `say`.

        Raises UserError where there is none, or none is good.
        """
        paths = self.candidates()
        if not paths:
            raise UserError(f"{self.folder} holds no checkpoint")
        for path in paths:
            try:
                return path, self.load(path)
            except UserError as problem:
                say(f"{problem}; passed over for the one before")
        raise UserError(f"{self.folder} holds {len(paths)} checkpoints, none of them good: start the run anew")

    def superfluous(self, keep: Retention, validation: Mapping[int, float]) -> Sequence[CheckpointInfo]:
        """The complete checkpoints that `keep` does not keep, oldest step first (`raylm.checkpoint.retention`).

        Damaged ones are none of them: they are left to be looked at, and the save of the same step replaces them.
        """
        complete = [info for info in self.list() if info.complete]
        gone = superfluous((info.step for info in complete), validation, keep)
        return [info for info in complete if info.step in gone]

    def prune(
        self, keep: Retention, validation: Mapping[int, float], say: Callable[[str], None] = ignore
    ) -> Sequence[CheckpointInfo]:
        """Remove what is superfluous and return it; what could not be removed is named through `say`."""
        removed = []
        for info in self.superfluous(keep, validation):
            try:
                self._hide_and_remove(Path(info.path))
            except OSError as error:
                say(f"{info.path} could not be removed: {error.strerror}")
            else:
                removed.append(info)
        return removed

    def set_aside_after(self, step: int) -> str | None:
        """Move all checkpoints newer than `step` into a folder of their own, newest first, and return its place.

        A run that goes back to `step` must not take them up again; they are kept for who wants them. None where
        there is none. Raises UserError where they cannot be moved.
        """
        newer = [path for path in self.candidates() if (step_of(path) or 0) > step]
        if not newer:
            return None
        aside = self.folder / f"set-aside-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(self._clock()))}"
        try:
            aside.mkdir(exist_ok=True)
            for path in newer:
                files.rename(path, aside / path.name)
                files.sync_folder(self.folder)
        except OSError as error:
            raise UserError(
                f"checkpoints newer than step {step} cannot be moved to {aside}: {error.strerror}"
            ) from None
        return str(aside)

    def clean(self) -> None:
        """Finish or remove what a killed save or removal left; called by every save. Raises OSError."""
        for path in _entries(self.folder):
            if _HIDDEN.fullmatch(path.name):
                _remove_quietly(path)
        for path in _entries(self.folder):
            if FOLDER_NAME.fullmatch(path.name) and path.suffix == ".new":
                if look_at_checkpoint(path).complete:
                    self._settle(path)
                else:
                    self._hide_and_remove(path)

    def _verify(self, info: CheckpointInfo) -> CheckpointInfo:
        try:
            self.load(Path(info.path))
        except UserError as problem:
            return replace(info, problem=str(problem))
        return info

    def _publish(self, partial: Path, final: Path) -> None:
        if final.exists():
            replacement = final.with_name(f"{final.name}.new")
            files.rename(partial, replacement)
            files.sync_folder(self.folder)
            self._settle(replacement)
        else:
            files.rename(partial, final)
            files.sync_folder(self.folder)

    def _settle(self, replacement: Path) -> None:
        final = replacement.with_suffix("")
        if final.exists():
            self._hide_and_remove(final)
        files.rename(replacement, final)
        files.sync_folder(self.folder)

    def _hide_and_remove(self, path: Path) -> None:
        hidden = path.with_name(f".{path.name.removesuffix('.new')}.removed-{os.getpid()}")
        files.rename(path, hidden)
        files.sync_folder(self.folder)
        _remove_quietly(hidden)


def _entries(folder: Path) -> Sequence[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def _remove_quietly(path: Path) -> None:
    try:
        files.remove_tree(path)
    except OSError:
        return  # the next save removes it
