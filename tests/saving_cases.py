"""Runs on disks that are slow, stuck or full, for processes of their own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training_cases import Attempt, attempt

from raylm.checkpoint import files
from raylm.checkpoint.mirror import Mirror
from raylm.config import RunConfig


def attempt_on_a_slow_disk(config: RunConfig, data: Path, folder: Path, seconds: float) -> Attempt:
    """Each sync of a file of a checkpoint takes so many seconds."""

    def sync(descriptor: int) -> None:
        time.sleep(seconds)
        os.fsync(descriptor)

    files.sync = sync
    return attempt(config, data, folder)


def attempt_on_a_disk_that_waits(config: RunConfig, data: Path, folder: Path, step: int) -> Attempt:
    """From `step` on, the disk takes a checkpoint when the run has gone a step further or evaluated, after 10 s at the
    latest."""
    gone_on = threading.Event()
    gone_on.set()

    def sync(descriptor: int) -> None:
        gone_on.wait(10)
        os.fsync(descriptor)

    def hear(event: Mapping[str, Any]) -> None:
        if (event["kind"], event.get("step")) == ("step", step):
            gone_on.clear()
        elif event["kind"] in ("step", "eval"):
            gone_on.set()

    files.sync = sync
    return attempt(config, data, folder, hear=hear)


def attempt_on_a_disk_that_fills(config: RunConfig, data: Path, folder: Path, first: int, last: int) -> Attempt:
    """The disk has no room left from the checkpoint of step `first` to that of step `last`.

    `folder` lies in a small file system of its own.
    """
    filler = folder / "filler"

    def hear(event: Mapping[str, Any]) -> None:
        match event["kind"], event.get("step"):
            case "checkpoint", step if step == first:
                fill(filler)
            case "checkpoint", step if step == last:
                filler.unlink()

    return attempt(config, data, folder, hear=hear)


def attempt_in_a_store(config: RunConfig, data: Path, uri: str, cache: Path, stop_at: int | None = None) -> Attempt:
    """An attempt at a run that is kept in an object store, on a machine whose cache is in `cache`."""
    os.environ["XDG_CACHE_HOME"] = str(cache)
    mirror = Mirror(uri, "rank-0", waits=())
    mirror.pull()
    return attempt(config, data, mirror.folder, stop_at=stop_at, mirror=mirror)


def fill(path: Path) -> None:
    """Writes until the disk is full."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return
