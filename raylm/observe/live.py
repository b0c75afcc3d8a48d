"""The progress of a run on a terminal: a spinner while it waits, then one compact screen redrawn in place."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from raylm.observe import figures
from raylm.observe.chart import LEVEL, Level, chart
from raylm.observe.crew import Worker, crew_line
from raylm.observe.events import Event
from raylm.observe.progress import Progress, advance, exchange_figures, floor_words, resume_line, time_shares

_NOTES = 3


class LiveView:
    """Redraws four times a second from the last known progress; drawing never waits for training.

    On a screen of its own it survives every resizing; the last state is left on the terminal when it closes. Below what
    is there already, notes stay above it; but a terminal made narrower breaks its lines and moves some out of reach.
    """

    def __init__(
        self,
        console: Console,
        steps_total: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        own_screen: bool = False,
    ) -> None:
        self._clock = clock
        self._progress = Progress(steps_total=steps_total)
        self._waiting: tuple[str, float, Spinner] | None = None
        self._notes: list[str] | None = [] if own_screen else None
        self._workers: Sequence[Worker] = ()
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=4, screen=own_screen)
        self._live.start()

    def show(self, event: Event) -> None:
        """Take in one event; it ends a wait."""
        self._progress = advance(self._progress, event)
        self._waiting = None
        if event.get("kind") == "resume":
            self.note(resume_line(event))

    def wait(self, what: str) -> None:
        """Show a spinner with the seconds gone by, until the next event or wait."""
        self._waiting = (what, self._clock(), Spinner("dots"))
        self._live.refresh()

    def crew(self, workers: Sequence[Worker]) -> None:
        """Show what the workers do."""
        self._workers = workers

    def note(self, line: str) -> None:
        """Say one line: above the view, where it stays, or on a screen of its own below it."""
        if self._notes is None:
            self._live.console.print(Text(figures.one_line(line)))
        else:
            self._notes = [*self._notes, figures.one_line(line)][-_NOTES:]

    def close(self) -> None:
        """Stop redrawing; the last state stays on the terminal. A second time does nothing."""
        self._waiting = None
        was_open = self._live.is_started
        self._live.stop()
        if was_open and self._notes is not None:
            self._live.console.print(self.render())

    def render(self) -> RenderableType:
        """The screen as it stands."""
        parts: list[RenderableType] = []
        if self._progress.step or self._progress.title:
            parts.append(screen(self._progress, self._live.console.height, self._workers))
        if self._waiting is not None:
            what, since, spinner = self._waiting
            spinner.update(text=Text(f"{what} ... {figures.duration(self._clock() - since)}"))
            parts.append(spinner)
        parts += [Text(line) for line in self._notes or ()]
        return Group(*parts)


def screen(progress: Progress, height: int = 24, workers: Sequence[Worker] = ()) -> RenderableType:
    """One screen that fits any width: bar, figures, the loss against the floors, and what happened last."""
    lines: list[RenderableType] = []
    if progress.title:
        lines.append(_line(Text(progress.title, style="bold")))
    if progress.steps_total:
        lines.append(_bar(progress))
    lines.append(Columns([_figure(name, value) for name, value in _figures(progress)], padding=(0, 3)))
    if shares := time_shares(progress):
        lines.append(_line(Text.assemble(("time ", "dim"), (shares, "bold"))))
    if workers and not progress.ended:
        lost = any(worker.silent is not None for worker in workers)
        lines.append(_line(Text(crew_line(workers), style="bold yellow" if lost else "")))
    below: list[RenderableType] = [_line(Text(evaluation, style="green")) for evaluation in progress.evaluations]
    for step, sample in progress.samples:
        below.append(_line(Text.assemble((f"step {step} ", "dim"), (sample, "italic"))))
    if progress.troubles:
        below.append(Text(_troubles(progress), style="bold yellow"))
        below += [_line(Text(f"  {line}", style="yellow")) for line in progress.troubles[:-1]]
        below.append(Text(f"  {progress.troubles[-1]}", style="yellow"))
    if progress.ended:
        below.append(Text(progress.ended, style="bold"))
    rows = min(_CHART_ROWS, height - len(lines) - len(below) - 4)
    return Group(*lines, _Chart(progress, rows), *below)


_CHART_ROWS = 8


@dataclass(frozen=True)
class _Chart:
    """The loss against the floors, as wide as there is room; where that is too little, the floors as a line."""

    progress: Progress
    rows: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        levels = [Level(nats, floor_words(name, nats)) for name, nats in self.progress.floors]
        beside = max((len(level.label) for level in levels), default=0) + 1
        losses = self.progress.losses
        if len(losses) >= _CURVE_POINTS and options.max_width >= 40 and self.rows >= 3 and not options.ascii_only:
            for row in chart(losses, levels, min(options.max_width - beside, 100), self.rows):
                drawn = Text.assemble(row.drawn, (f" {row.label}" if row.label else "", "dim"), style="cyan")
                drawn.highlight_regex(LEVEL + "+", "bright_black")
                yield _line(drawn)
        elif levels and self.progress.evaluations:
            yield _line(Text(f"floors: {', '.join(level.label for level in levels)}", style="dim"))


_CURVE_POINTS = 3  # fewer make no curve


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
        *(() if progress.limit is None else (("of at most", figures.count(progress.limit)),)),
        ("lr", figures.compact(progress.learning_rate)),
        ("gradient norm", figures.compact(progress.gradient_norm)),
    ]
    if progress.clipped is not None:
        pairs.append(("clipped", f"{progress.clipped:.0%}"))
    pairs += [pair for pair in exchange_figures(progress) if pair[0] != "all-reduce" or not time_shares(progress)]
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
