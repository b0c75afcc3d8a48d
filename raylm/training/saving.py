"""The checkpoints of one attempt of a run: captured between two steps, written behind the training's back.

Every rank has a `Saver`, since a capture is a collective; rank 0's alone writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from raylm.checkpoint.background import BackgroundWriter
from raylm.checkpoint.manifest import Manifest
from raylm.checkpoint.mirror import Mirror
from raylm.checkpoint.mirrored import checkpoints_of
from raylm.checkpoint.retention import Retention
from raylm.checkpoint.snapshot import Snapshot
from raylm.checkpoint.store import CheckpointNotSaved
from raylm.config import RunConfig
from raylm.errors import UserError
from raylm.observe.run_folder import to_be_kept
from raylm.training.incident import FOLDER as INCIDENTS
from raylm.training.record import Recorder
from raylm.training.state import HostState, Replicas, State, capture


class Saver:
    """Saves the state of a run, at most one in flight, and removes what is not to be kept.

    newest: the newest checkpoint known to be safe, None before the first. saved_at: the step last captured.
    """

    def __init__(
        self,
        config: RunConfig,
        replicas: Replicas,
        run_folder: Path,
        record: Recorder,
        dataset_id: str,
        mirror: Mirror | None,
    ) -> None:
        """mirror: of a run that is kept in an object store; `run_folder` is its working folder."""
        self.newest: Path | None = None
        self.saved_at = -1
        self._config, self._replicas, self._record, self._dataset_id = config, replicas, record, dataset_id
        self._mirror = mirror
        self._store = checkpoints_of(run_folder, mirror)
        keep = config.checkpoint
        self._keep = Retention(keep.keep_last, keep.keep_every, keep.keep_best)
        self._writer = BackgroundWriter()

    def load_newest(self) -> tuple[Snapshot, Manifest] | None:
        """The newest good checkpoint and what it says of itself; None where the run has no checkpoint yet.

        Raises:
            UserError: there are checkpoints, and none is good.
        """
        if not self._store.candidates():
            return None
        self.newest, snapshot = self._store.load_newest(self._record.note)
        self.saved_at = snapshot.step
        return snapshot, self._store.manifest(self.newest)

    def save(self, state: State, extra: Mapping[str, Any], kept: HostState | None) -> None:
        """Captures a state that is sound, and begins to write it. A collective.

        kept: the same state in host memory, where it is there already: its arrays are taken and not copied again.
        Waits for the write in flight.
        """
        snapshot = capture(self._replicas, state, self._config.seed, dict(extra), kept)
        self.saved_at = state.step
        if self._record.writes:
            self._writer.begin(partial(self._write, snapshot, dict(self._record.validation)))

    def wait(self) -> None:
        """Waits for the write in flight: before a rollback and at the end."""
        self._writer.wait()

    def close(self) -> None:
        """Lets the write in flight come to its end where the run does not; what it meets is told elsewhere."""
        with suppress(Exception):
            self._writer.wait()

    def end_at(self, step: int) -> None:
        """The run was asked to stop at a step, and will go on from it: later checkpoints, of a stretch that was being
        computed again, are set aside."""
        if not self._record.writes:
            return
        self.wait()
        try:
            aside = self._store.set_aside_after(step)
        except UserError as problem:  # then it goes on from them, to the same end
            self._record.note(str(problem))
        else:
            if aside is not None:
                self._record.note(f"the steps after {step} were being computed again; those saved are in {aside}")

    def back_to(self, step: int, set_aside: bool) -> None:
        """The run goes back to a step: later ones will be saved again. `set_aside` where they would not be the same.

        Raises:
            UserError: they cannot be set aside.
        """
        self.saved_at = min(self.saved_at, step)
        if self._record.writes:
            self.wait()
            if set_aside:
                self._store.set_aside_after(step)

    def publish(self, behind: bool = False) -> None:
        """Sends the run's small files to its object store, where it has one; `behind` the training's back."""
        if self._mirror is None or not self._record.writes:
            return
        if behind:
            if not self._writer.busy:  # a writing ends with it
                self._writer.begin(self.publish)
            return
        try:
            self._mirror.push()
            if (self._mirror.folder / INCIDENTS).exists():
                self._mirror.prune(INCIDENTS, self._config.guard.keep_incidents)
        except UserError as problem:  # they are sent the next time
            self._record.note(str(problem))

    def _write(self, snapshot: Snapshot, validation: Mapping[int, float]) -> None:
        """In the thread. What the disk refuses is told, and training goes on."""
        began, position = self._record.clock(), snapshot.cursor["position"]
        config = to_be_kept(self._config)
        try:
            path = self._store.save(snapshot, config=config, dataset_id=self._dataset_id, rest=self._writer.rest)
        except CheckpointNotSaved as problem:
            self._record.emit("checkpoint", snapshot.step, position, problem=str(problem))
            return
        self.newest = path
        seconds = self._record.clock() - began
        self._record.emit("checkpoint", snapshot.step, position, path=self._store.place(path), seconds=seconds)
        try:
            self._store.prune(self._keep, validation, self._record.note)
        except UserError as problem:  # the folder cannot be read: nothing is removed
            self._record.note(str(problem))
        self.publish()
