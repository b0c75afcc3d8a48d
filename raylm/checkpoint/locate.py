"""From the path a person gives to the run and the checkpoint it means."""

from pathlib import Path
from typing import NamedTuple

from raylm.checkpoint import manifest
from raylm.checkpoint.mirror import FOLDER, Mirror, complete
from raylm.checkpoint.mirrored import checkpoints_of
from raylm.checkpoint.store import CheckpointStore, step_of
from raylm.data.upload import is_uri
from raylm.errors import UserError

_WANTED = "give a run's folder or URI, its checkpoints folder or one checkpoint in it"


class Located(NamedTuple):
    """The run's folder, or the working folder of one in an object store, which `mirror` is of then; and the checkpoint
    that was named, None for the newest good one."""

    folder: Path
    checkpoint: Path | None
    mirror: Mirror | None

    @property
    def place(self) -> str:
        """The run's folder or URI."""
        return self.mirror.place if self.mirror else str(self.folder)

    @property
    def store(self) -> CheckpointStore:
        """The run's checkpoints."""
        return checkpoints_of(self.folder, self.mirror)


def locate(path: str) -> tuple[Path, Path | None]:
    """The run folder and, where `path` names one, the checkpoint; None stands for the newest good one.

    `path` is a run folder, its `checkpoints` folder or one checkpoint folder in it, or a URI of one of these, which is
    copied to a working folder. Raises UserError where it is none of these, or holds no checkpoint at all.
    """
    found = find(path, "reader")
    if found.mirror is not None:
        found.mirror.pull(found.checkpoint.name if found.checkpoint else None)
    return found.folder, found.checkpoint


def find(path: str, role: str) -> Located:
    """As `locate`; of a run at a URI, the small files alone are copied. role: who works in the working folder."""
    if is_uri(path):
        return _find_in_store(path, role)
    try:
        folder = Path(path).expanduser().resolve()
        if folder.is_dir():
            return Located(*_locate(folder), None)
        there = folder.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path!r} cannot be looked at: {error}") from error
    if there:
        raise UserError(f"{folder} is a file; {_WANTED}")
    raise UserError(f"{folder} does not exist; {_WANTED}")


def _find_in_store(uri: str, role: str) -> Located:
    base, question, options = uri.partition("?")
    base = base.rstrip("/")
    parent, _, last = base.rpartition("/")
    checkpoint = last if step_of(Path(last)) is not None else None
    run = parent if checkpoint else base
    run = run.removesuffix(f"/{FOLDER}")
    mirror = Mirror(f"{run}{question}{options}", role)
    names = complete(mirror.pull_files())
    if not names:
        raise UserError(f"{mirror.place} holds no checkpoint; {_WANTED}")
    if checkpoint is not None and checkpoint not in names:
        raise UserError(f"{mirror.place} holds no checkpoint {checkpoint}; there are: {', '.join(names)}")
    return Located(mirror.folder, mirror.folder / FOLDER / checkpoint if checkpoint else None, mirror)


def _locate(folder: Path) -> tuple[Path, Path | None]:
    if step_of(folder) is not None or (folder / manifest.NAME).exists():
        if folder.parent.name != "checkpoints":
            raise UserError(f"{folder} lies outside a run; put it into RUN/checkpoints/ and give that")
        return folder.parent.parent, folder
    store = folder if folder.name == "checkpoints" else folder / "checkpoints"
    if not store.is_dir():
        raise UserError(f"{folder} is not a run: it has no checkpoints folder; {_WANTED}")
    if not CheckpointStore(store).candidates():
        raise UserError(f"{store} holds no checkpoint: the run stopped before its first; start it anew")
    return store.parent, None
