"""The progress of a run on a terminal: a spinner while it waits, then one compact screen redrawn in place."""

import time
from collections.abc import Callable

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from raylm.observe import figures
from raylm.observe.events import Event
from raylm.observe.progress import Progress, advance, resume_line


class LiveView:
    """Redraws four times a second from the last known progress; drawing never waits for training."""

    def __init__(
        self,
        console: Console,
        steps_total: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._progress = Progress(steps_total=steps_total)
        self._waiting: tuple[str, float, Spinner] | None = None
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=4)
        self._live.start()

    def show(self, event: Event) -> None:
        """Take in one event; it ends a wait."""
        self._progress = advance(self._progress, event)
        self._waiting = None
        if event.get("kind") == "resume":
            self.note(resume_line(event))
        if event.get("kind") != "step":
            self._live.refresh()

    def wait(self, what: str) -> None:
        """Show a spinner with the seconds gone by, until the next event or wait."""
        self._waiting = (what, self._clock(), Spinner("dots"))
        self._live.refresh()

    def note(self, line: str) -> None:
        """Print a line above the screen, where it stays."""
        self._live.console.print(Text(figures.one_line(line)))

    def close(self) -> None:
        """Stop redrawing; the last state stays on the terminal. A second time does nothing."""
        self._waiting = None
        self._live.stop()

    def render(self) -> RenderableType:
        """The screen as it stands."""
        parts: list[RenderableType] = []
        if self._progress.step or self._progress.title:
            parts.append(screen(self._progress))
        if self._waiting is not None:
            what, since, spinner = self._waiting
            spinner.update(text=Text(f"{what} ... {figures.duration(self._clock() - since)}"))
            parts.append(spinner)
        return Group(*parts)


def screen(progress: Progress) -> RenderableType:
    """One screen that fits any width: bar, figures, and a line for each of what happened last."""
    lines: list[RenderableType] = []
    if progress.title:
        lines.append(_line(Text(progress.title, style="bold")))
    if progress.steps_total:
        lines.append(_bar(progress))
    lines.append(Columns([_figure(name, value) for name, value in _figures(progress)], padding=(0, 3)))
    for evaluation in progress.evaluations:
        lines.append(_line(Text(evaluation, style="green")))
    if progress.floors and progress.evaluations:
        lines.append(_line(Text(f"floors: {progress.floors}", style="dim")))
    if progress.sample:
        lines.append(_line(Text(f"“{progress.sample}”", style="italic")))
    if progress.trouble:
        lines.append(Text(f"{_troubles(progress)}: {progress.trouble}", style="yellow"))
    if progress.ended:
        lines.append(Text(progress.ended, style="bold"))
    return Group(*lines)


def _bar(progress: Progress) -> RenderableType:
    total = progress.steps_total or 1
    left = f"  {figures.duration(progress.seconds_left)} left" if progress.seconds_left else ""
    row = Table.grid(expand=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True)
    bar = ProgressBar(total=total, completed=min(progress.step, total))
    row.add_row(bar, Text(f"  {progress.step}/{total}{left}"))
    return row


def _figures(progress: Progress) -> list[tuple[str, str]]:
    pairs = [
        ("epoch", figures.compact(progress.epoch)),
        ("loss", f"{figures.nats(progress.loss)} nats"),
        ("perplexity", figures.perplexity(progress.perplexity)),
        ("tokens/s", figures.count(progress.tokens_per_second)),
        ("lr", figures.compact(progress.learning_rate)),
        ("gradient norm", figures.compact(progress.gradient_norm)),
    ]
    if progress.checkpoint is not None:
        pairs.append(("checkpoint", f"step {progress.checkpoint}"))
    return pairs if progress.steps_total else [("step", str(progress.step)), *pairs]


def _figure(name: str, value: str) -> Text:
    return Text.assemble((f"{name} ", "dim"), (value, "bold"), no_wrap=True, overflow="ellipsis")


def _line(text: Text) -> Text:
    text.no_wrap = True
    text.overflow = "ellipsis"
    return text


def _troubles(progress: Progress) -> str:
    counts = [
        f"{amount} {name}{'' if amount == 1 else 's'}"
        for amount, name in ((progress.incidents, "incident"), (progress.rollbacks, "rollback"))
        if amount
    ]
    return ", ".join(counts) or "warning"
