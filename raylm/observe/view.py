"""What a person sees of a run while it goes: the interface, and which of its two forms suits a stream."""

import os
from collections.abc import Sequence
from typing import Protocol, TextIO

from rich.console import Console

from raylm.observe.crew import Worker
from raylm.observe.events import Event
from raylm.observe.live import LiveView
from raylm.observe.plain import PlainView


class View(Protocol):
    """Fed with a run's events and with what it waits for."""

    def show(self, event: Event) -> None:
        """Take in one event of the run."""

    def wait(self, what: str) -> None:
        """Say what the run waits for ("starting Ray"), until the next event."""

    def crew(self, workers: Sequence[Worker]) -> None:
        """Take in what the workers do now."""

    def note(self, line: str) -> None:
        """Say one line."""

    def close(self) -> None:
        """Leave the last state readable; the stream stays open."""


def choose_view(
    stream: TextIO, steps_total: int | None = None, every_seconds: float = 10.0, own_screen: bool = False
) -> View:
    """The live screen on a terminal that can move its cursor, plain lines anywhere else."""
    if stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        return LiveView(Console(file=stream), steps_total, own_screen=own_screen)
    return PlainView(stream, steps_total, every_seconds)
