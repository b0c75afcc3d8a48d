"""The checkpoints of a run in an object store: saved in the working folder and sent; listed, verified, pruned there.

A checkpoint's manifest is sent last and commits it, and is removed first. One of the same step is sent to
`step-NNNNNNNN.new`, or back to the plain name, before the other one goes: there is no instant without a whole one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from raylm.checkpoint.layout import CheckpointInfo, check_sizes, step_of
from raylm.checkpoint.manifest import NAME as MANIFEST
from raylm.checkpoint.manifest import parse_manifest
from raylm.checkpoint.mirror import FOLDER, Mirror, complete, files_of
from raylm.checkpoint.retention import FEWEST, Retention
from raylm.checkpoint.snapshot import Json, Snapshot, go_on
from raylm.checkpoint.store import CheckpointNotSaved, CheckpointStore, ignore
from raylm.errors import UserError


def checkpoints_of(run_folder: Path, mirror: Mirror | None) -> CheckpointStore:
    """A run's checkpoints: in its folder, or in the object store that `mirror` is of."""
    return MirroredStore(mirror) if mirror else CheckpointStore(run_folder / FOLDER)


class MirroredStore(CheckpointStore):
    """The checkpoints of a run in an object store: saved in the working folder and sent, listed and pruned there."""

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror.folder / FOLDER)
        self._mirror, self._remote = mirror, mirror.remote
        self._here = CheckpointStore(self.folder)

    def save(self, snapshot: Snapshot, *, config: Json, dataset_id: str, rest: Callable[[], None] = go_on) -> Path:
        """As `CheckpointStore.save`; it is safe once it is in the store, too."""
        saved = self._here.save(snapshot, config=config, dataset_id=dataset_id, rest=rest)
        try:
            self._send(saved)
        except UserError as problem:
            shutil.rmtree(saved, ignore_errors=True)
            raise CheckpointNotSaved(f"the checkpoint of step {snapshot.step} was not saved: {problem}") from problem
        self._here.prune(Retention(FEWEST), {})
        return saved

    def place(self, path: Path) -> str:
        """Where a checkpoint of the working folder is in the store."""
        return f"{self._mirror.place}/{FOLDER}/{path.name}"

    def newest(self) -> Path | None:
        """As `CheckpointStore.newest`, of those in the store; where it is, or would be, in the working folder."""
        found = [info.path for info in self.list() if info.complete]
        return self.folder / str(found[-1]).rpartition("/")[2] if found else None

    def list(self) -> Sequence[CheckpointInfo]:
        there = self._remote.sizes(FOLDER)
        return [self._look(name, there) for name in complete(there)]

    def verify_all(self) -> Sequence[CheckpointInfo]:
        there = self._remote.sizes(FOLDER)
        return [self._verify_there(self._look(name, there), name, there) for name in complete(there)]

    def prune(
        self, keep: Retention, validation: Mapping[int, float], say: Callable[[str], None] = ignore
    ) -> Sequence[CheckpointInfo]:
        removed = []
        for info in self.superfluous(keep, validation):
            try:
                self._remove(str(info.path).rpartition("/")[2])
            except UserError as problem:
                say(str(problem))
            else:
                removed.append(info)
        return removed

    def set_aside_after(self, step: int) -> str | None:
        super().set_aside_after(step)
        there = self._remote.sizes(FOLDER)
        newer = [name for name in complete(there) if (step_of(Path(name)) or 0) > step]
        for name in reversed(newer):
            for file in files_of(there, name):
                self._remote.copy(file, file.replace(f"{FOLDER}/", f"{FOLDER}/set-aside/", 1))
            self._remove(name)
        return f"{self._mirror.place}/{FOLDER}/set-aside" if newer else None

    def _send(self, saved: Path) -> None:
        there = self._remote.sizes(FOLDER)
        plain, new = saved.name, f"{saved.name}.new"
        if f"{FOLDER}/{new}/{MANIFEST}" in there:
            self._remove(plain)  # where both are there, readers take the new one
        target = new if _held(there, plain) and not _held(there, new) else plain
        for file in sorted(saved.iterdir(), key=lambda file: file.name == MANIFEST):
            self._remote.send(file, f"{FOLDER}/{target}/{file.name}")
        other = plain if target == new else new
        torn = {file.split("/")[1] for file in there} - {*complete(there), target, "set-aside"}
        for name in torn | ({other} if _held(there, other) else set()):
            self._remove(name)

    def _remove(self, name: str) -> None:
        self._remote.remove(f"{FOLDER}/{name}/{MANIFEST}")
        self._remote.remove(f"{FOLDER}/{name}")

    def _look(self, name: str, there: Mapping[str, int]) -> CheckpointInfo:
        place, step = f"{self._mirror.place}/{FOLDER}/{name}", step_of(Path(name))
        assert step is not None, name
        start = f"{FOLDER}/{name}/"
        sizes = {file.removeprefix(start): size for file, size in there.items() if file.startswith(start)}
        try:
            manifest = parse_manifest(self._remote.read(f"{start}{MANIFEST}"), f"{place}/{MANIFEST}")
            check_sizes(place, manifest, sizes)
        except UserError as problem:
            return CheckpointInfo(step, place, sum(sizes.values()), None, None, {}, str(problem))
        facts = (manifest.saved, manifest.state_sha256, manifest.extra, None)
        return CheckpointInfo(step, place, sum(sizes.values()), *facts)

    def _verify_there(self, info: CheckpointInfo, name: str, there: Mapping[str, int]) -> CheckpointInfo:
        with _removed_after(self._mirror.fetch_checkpoint(name, there)) as folder:
            try:
                self.load(folder)
            except UserError as problem:
                return replace(info, problem=str(problem).replace(str(folder), str(info.path)))
        return info


def _held(there: Mapping[str, int], name: str) -> bool:
    return f"{FOLDER}/{name}/{MANIFEST}" in there


@contextmanager
def _removed_after(folder: Path) -> Iterator[Path]:
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
