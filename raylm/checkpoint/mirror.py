"""A run that is kept in an object store (`s3://`, `gs://`) and worked on in a folder of this machine.

The store is the truth. Each rank has a working folder of its own; `pull` makes it what the store has, before anything
reads it. Rank 0 sends what it writes there (`raylm.checkpoint.mirrored` its checkpoints).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from raylm.checkpoint.layout import FOLDER_NAME, step_of
from raylm.checkpoint.manifest import NAME as MANIFEST
from raylm.checkpoint.store import CheckpointStore
from raylm.data.caching import default_cache_dir, storing
from raylm.data.remote import WAITS, without_secrets
from raylm.data.upload import Destination
from raylm.errors import UserError
from raylm.guard.watchdog import FolderMarks, Marks

SMALL = ("config.json", "events.jsonl", "summary.json", "guard.json")
"""The small files of a run that those who go on with it need."""

FOLDER = "checkpoints"
"""Where in a run its checkpoints are."""
_OURS = (FOLDER, "alive", "ray")  # of the working folder, but not to be sent as they are


class Mirror:
    """A run's URI, and the working folder of one process. Raises UserError wherever the store cannot be used."""

    def __init__(self, uri: str, role: str, waits: tuple[float, ...] = WAITS) -> None:
        """role: who works there (`driver`, `rank-0`): processes of one machine do not share a folder."""
        base, question, options = uri.partition("?")
        uri = f"{base.rstrip('/')}{question}{options}"
        self.uri, self.place = uri, without_secrets(uri)
        key = hashlib.sha256(self.place.encode()).hexdigest()[:16]
        self.folder = default_cache_dir() / "runs" / key / role / self.place.rpartition("/")[2]
        self.remote = Destination(uri, waits)
        self._sent: dict[str, tuple[int, int]] = {}

    def check_writable(self) -> None:
        """Finds out, before anything is started, that there is no such bucket or that we may not write to it."""
        self.remote.write("writable", b"")
        self.remote.remove("writable")

    def pull(self, checkpoint: str | None = None) -> None:
        """Makes the working folder what the store has: small files, and the newest good checkpoint or the named one.

        Bad ones that are newer are kept beside it, for `load_newest` to name.
        """
        there = self.pull_files()
        names = complete(there)
        store = CheckpointStore(self.folder / FOLDER)
        shutil.rmtree(store.folder, ignore_errors=True)  # what the store lacks never was; all ranks see the same
        for name in [checkpoint] if checkpoint else reversed(names):
            if _good(store, self.fetch_checkpoint(name, there)):
                return

    def pull_files(self) -> Mapping[str, int]:
        """The small files alone; the sizes of all that the store has."""
        with storing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        there = self.remote.sizes()
        for name in SMALL:
            self._pull_small(name, name in there)
        return there

    def push(self, only: Sequence[str] = ()) -> None:
        """Sends every small file that changed since it was sent or came, or of these those named."""
        for file in sorted(self.folder.rglob("*")):
            name = file.relative_to(self.folder).as_posix()
            skipped = name.split("/")[0] in _OURS or any(part.startswith(".") for part in name.split("/"))
            if skipped or not file.is_file() or (only and name not in only):
                continue
            state = _state(file)
            if self._sent.get(name) != state:
                self.remote.send(file, name)
                self._sent[name] = state

    def remove(self) -> None:
        """Removes the run from the store, and its working folders from this machine."""
        for name in self.remote.sizes():
            self.remote.remove(name)
        shutil.rmtree(self.folder.parents[1], ignore_errors=True)

    def prune(self, folder: str, keep: int) -> None:
        """Removes from a folder of the store all but the `keep` that were written to last."""
        for name in self.remote.last_written(folder)[:-keep]:
            self.remote.remove(f"{folder}/{name}")

    def fetch_checkpoint(self, name: str, there: Mapping[str, int]) -> Path:
        """Copies a checkpoint to the working folder, its manifest last."""
        folder = self.folder / FOLDER / name
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for file in files_of(there, name):
            self.remote.fetch(file, self.folder / file)
        return folder

    def fetch_folder(self, name: str) -> Path:
        """Copies a folder of the run to the working folder, as it is there; it is empty where the run has none."""
        folder = self.folder / name
        with storing(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        for file in self.remote.sizes(name):
            copy = self.folder / file
            with storing(copy):
                copy.parent.mkdir(parents=True, exist_ok=True)
            self.remote.fetch(file, copy)
            self._sent[file] = _state(copy)
        return folder

    def _pull_small(self, name: str, there: bool) -> None:
        file = self.folder / name
        with storing(file):
            if not there:
                file.unlink(missing_ok=True)
                return
            data = self.remote.read(name)
            if not (file.is_file() and file.read_bytes().startswith(data)):  # else its end was not sent yet
                file.write_bytes(data)
                self._sent[name] = _state(file)


class StoreMarks:
    """The watchdog's marks in a store; what fails is passed over."""

    every = 15.0  # requests are not free

    def __init__(self, uri: str) -> None:
        self._remote = Destination(uri, waits=())

    def say(self, rank: int, text: str, kind: str = "busy") -> None:
        with contextlib.suppress(UserError):
            self._remote.write(f"alive/{kind}-{rank}", text.encode())

    def read(self, kind: str = "busy") -> Mapping[str, str]:
        with contextlib.suppress(UserError), ThreadPoolExecutor(16) as pool:
            names = [name for name in self._remote.sizes("alive") if name.startswith(f"alive/{kind}-")]
            return dict(zip(names, pool.map(lambda name: self._remote.read(name).decode(), names), strict=True))
        return {}


def marks_of(run_folder: Path, mirror: Mirror | None) -> Marks:
    """Where all ranks of a run leave their marks: in its folder, or in the object store that `mirror` is of."""
    return StoreMarks(mirror.uri) if mirror else FolderMarks(run_folder / "alive")


def complete(there: Mapping[str, int]) -> list[str]:
    """Names of the committed checkpoints among a store's files, oldest step first, a replacement after the plain."""
    names = {file.split("/")[1] for file in there if file.startswith(f"{FOLDER}/") and file.endswith(f"/{MANIFEST}")}
    return sorted((name for name in names if FOLDER_NAME.fullmatch(name)), key=lambda name: (step_of(Path(name)), name))


def files_of(there: Mapping[str, int], name: str) -> list[str]:
    """A checkpoint's files in the store, the manifest last."""
    files = [file for file in there if file.startswith(f"{FOLDER}/{name}/")]
    return sorted(files, key=lambda file: file.endswith(MANIFEST))


def _state(file: Path) -> tuple[int, int]:
    facts = os.stat(file)
    return facts.st_mtime_ns, facts.st_size


def _good(store: CheckpointStore, checkpoint: Path) -> bool:
    try:
        store.load(checkpoint)
    except UserError:
        return False
    return True
