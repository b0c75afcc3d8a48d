"""Where a run is that a person wants to look at: a folder, or an object store whose small files are fetched first."""

from __future__ import annotations

from pathlib import Path

from raylm.checkpoint.mirror import Mirror
from raylm.data.upload import is_uri
from raylm.errors import UserError
from raylm.observe.events import NAME as EVENTS
from raylm.observe.run_folder import NAME as CONFIG


def look_at(place: str, role: str) -> tuple[Path, Mirror | None]:
    """The folder of a run, and what fetches it again where it is a copy of one in a store.

    role: who looks, so that two of them do not share a copy.

    Raises:
        UserError: there is no run there, or the store cannot be read.
    """
    mirror = Mirror(place, role) if is_uri(place) else None
    folder = Path(place) if mirror is None else mirror.folder
    if mirror is not None:
        mirror.pull_files()
    elif not folder.is_dir():
        raise UserError(f"{place}: there is no such folder; name a run's, as in runs/NAME")
    if not (folder / CONFIG).exists() and not (folder / EVENTS).exists():
        shown = place if mirror is None else mirror.place
        raise UserError(f"{shown} holds neither {CONFIG} nor {EVENTS}: it is no run's folder")
    return folder, mirror
