"""From the path a person gives to the run and the checkpoint it means."""

from pathlib import Path

from raylm.checkpoint import manifest
from raylm.checkpoint.store import CheckpointStore, step_of
from raylm.errors import UserError

_WANTED = "give a run's folder, its checkpoints folder or one checkpoint in it"


def locate(path: str) -> tuple[Path, Path | None]:
    """The run folder and, where `path` names one, the checkpoint; None stands for the newest good one.

    `path` is a run folder, its `checkpoints` folder or one checkpoint folder in it. Raises UserError where
    it is none of these, or holds no checkpoint at all.
    """
    if "://" in path:
        raise UserError(f"{path}: a checkpoint is read from a local folder; copy the run here first")
    try:
        folder = Path(path).expanduser().resolve()
        if folder.is_dir():
            return _locate(folder)
        there = folder.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path!r} cannot be looked at: {error}") from error
    if there:
        raise UserError(f"{folder} is a file; {_WANTED}")
    raise UserError(f"{folder} does not exist; {_WANTED}")


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
