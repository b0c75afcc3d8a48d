"""The progress of a run as plain lines, for a job's log or a pipe: no colours, no cursor movement."""

import time
from collections.abc import Callable, Sequence
from typing import TextIO

from raylm.observe import figures
from raylm.observe.crew import Worker
from raylm.observe.events import Event
from raylm.observe.progress import (
    Progress,
    advance,
    end_line,
    evaluation_line,
    exchange_figures,
    incident_line,
    resize_line,
    resume_line,
    rollback_line,
    sample_line,
    start_line,
    verdict_line,
)


class PlainView:
    """One line for a step every `every_seconds`, the first and the last step always; one line for all else."""

    def __init__(
        self,
        stream: TextIO,
        steps_total: int | None = None,
        every_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._every = every_seconds
        self._clock = clock
        self._progress = Progress(steps_total=steps_total)
        self._last_step_line = float("-inf")
        self._unsaid_step = False
        self._silent: set[int] = set()

    def show(self, event: Event) -> None:
        """Take in one event and print its line, or keep a step's for later."""
        self._progress = advance(self._progress, event)
        match event.get("kind"):
            case "step":
                self._unsaid_step = True
                done = self._progress.step == self._progress.steps_total
                if done or self._clock() - self._last_step_line >= self._every:
                    self._say_step()
            case "start":
                self._say(f"start: {start_line(event)}")
            case "eval":
                self._say(f"evaluation: {evaluation_line(event)}")
            case "sample":
                self._say(f"sample at step {self._progress.step}: {sample_line(event)}")
            case "checkpoint":
                self._say(event.get("problem") or f"checkpoint at step {event.get('step')}")
            case "incident":
                self._say(f"incident: {incident_line(event)}")
            case "rollback":
                self._unsaid_step = False
                self._say(f"rollback: {rollback_line(event)}")
            case "verdict":
                self._say(f"verdict: {verdict_line(event)}")
            case "resume":
                self._say(resume_line(event))
            case "resize":
                self._say(resize_line(event))
            case "end":
                self._say_step()
                self._say(end_line(event))

    def wait(self, what: str) -> None:
        """Say what the run waits for."""
        self._say(f"{what} ...")

    def crew(self, workers: Sequence[Worker]) -> None:
        """Say once of each worker that falls silent that it did."""
        silent = {worker.rank: worker for worker in workers if worker.silent is not None}
        for rank in silent.keys() - self._silent:
            self._say(f"worker {rank} on {silent[rank].node}: {silent[rank].state}")
        self._silent = set(silent)

    def note(self, line: str) -> None:
        """Say something else."""
        self._say(line)

    def close(self) -> None:
        """Say the last step, where it is not said yet. The stream stays open."""
        self._say_step()

    def _say_step(self) -> None:
        if self._unsaid_step:
            self._say(step_line(self._progress))
            self._last_step_line = self._clock()
            self._unsaid_step = False

    def _say(self, line: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            self._stream.write(figures.one_line(line).encode(encoding, "replace").decode(encoding) + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            return  # nobody reads any more (`| head`): no reason to stop training


def step_line(progress: Progress) -> str:
    """`step 120/400, epoch 1, loss 5.812 nats, perplexity 334.3, 12,345 tokens/s, lr 1, ...`."""
    total = "" if progress.steps_total is None else f"/{progress.steps_total}"
    parts = [
        f"step {progress.step}{total}",
        f"epoch {figures.compact(progress.epoch)}",
        f"loss {figures.nats(progress.loss)} nats",
        f"perplexity {figures.perplexity(progress.perplexity)}",
        f"{figures.count(progress.tokens_per_second)} tokens/s",
        f"lr {figures.compact(progress.learning_rate)}",
        f"gradient norm {figures.compact(progress.gradient_norm)}",
    ]
    parts += [f"{name} {value}" for name, value in exchange_figures(progress)]
    if progress.seconds_left:
        parts.append(f"{figures.duration(progress.seconds_left)} left")
    return ", ".join(parts)
