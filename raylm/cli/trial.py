"""A short trial of a run, as it will be: on the same workers and replicas, in a folder of its own that is removed."""

from __future__ import annotations

import secrets
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from raylm.cli.train import run_folder
from raylm.config import RunConfig
from raylm.errors import UserError
from raylm.observe.crew import Worker
from raylm.observe.events import Event, number
from raylm.observe.run_folder import RunRecord, create_in_store, create_run_folder
from raylm.observe.summary import steady_rate

SECONDS = 20.0
"""Of steps, after the first, whose time is the compiler's."""

_FEWEST, _ENOUGH = 5, 500


def measured_pace(record: RunRecord, say: Callable[[str], None]) -> float:
    """Tokens a second of a run, all workers together, from its first steps.

    Raises:
        UserError: the run cannot begin.
        KeyboardInterrupt: somebody else wanted it to end.
    """
    from raylm.cluster.launch import RunFailed, Stopped, fit  # here: importing Ray takes a second that help can save

    config = _short(record.config)
    folder, mirror = run_folder(config)
    view = _TrialView(say)
    try:
        if mirror is not None:
            create_in_store(mirror)
        trial = replace(record, config=config)
        create_run_folder(folder, trial)
        fit(trial, folder, view, mirror)
    except Stopped:
        if not view.enough:
            raise KeyboardInterrupt from None
    except RunFailed as failed:
        raise UserError(f"--measure: the trial failed: {failed}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if mirror is not None:
            mirror.remove()
    pace = steady_rate(view.rates)
    if pace is None:
        raise UserError("--measure: the trial ended before its second step: give it more text, or leave it out")
    return pace


def _short(config: RunConfig) -> RunConfig:
    """The run with a step event for each step, no end of its own, and nothing on the way."""
    often = config.report.model_copy(update={"log_every": 1, "sample_every": 0})
    never = config.checkpoint.model_copy(update={"every": 10**9})
    changes = {
        "name": f"trial-{secrets.token_hex(4)}",
        "steps": 10**9,
        "drill": (),
        "report": often,
        "checkpoint": never,
    }
    return config.model_copy(update=changes)


class _TrialView:
    """Hears the steps of the trial, and ends it as a person would, by Ctrl-C, once it has heard enough."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.rates: list[float | None] = []
        self.enough = False
        self._say = say
        self._began: float | None = None

    def show(self, event: Event) -> None:
        if event["kind"] != "step":
            return
        rate = number(event.get("tokens_per_second"))
        self._began = self._began or time.monotonic()
        self.rates += [] if rate is None else [rate]
        late = time.monotonic() - self._began > SECONDS and len(self.rates) >= _FEWEST
        if not self.enough and (late or len(self.rates) >= _ENOUGH):
            self.enough = True
            signal.raise_signal(signal.SIGINT)

    def wait(self, what: str) -> None:
        self._say(what)

    def crew(self, workers: Sequence[Worker]) -> None:
        """They are not shown."""

    def note(self, line: str) -> None:
        self._say(line)

    def close(self) -> None:
        """There is nothing to leave."""
