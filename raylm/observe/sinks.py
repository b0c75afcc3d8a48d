"""Where a run's figures go beside its own files: Weights & Biases and MLflow, where they are asked for.

A sink is fed with the run's events, as TensorBoard's files are. Its package is imported only when it is named in
`report.sinks`; where to, and as whom, the package's own environment variables say (WANDB_PROJECT, WANDB_MODE,
MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME...). What it cannot take costs the sink, not the run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from raylm.config import RunConfig
from raylm.errors import UserError
from raylm.observe.events import Event
from raylm.observe.run_folder import to_be_kept
from raylm.observe.story import flat
from raylm.observe.tensorboard import scalars


class Sink(Protocol):
    """Fed with the events of a run, in their order."""

    def record(self, event: Event) -> None:
        """Take in one event."""

    def close(self) -> None:
        """Send what is left."""


def open_sinks(config: RunConfig, run_folder: Path, say: Callable[[str], None]) -> Sequence[Sink]:
    """The sinks that a configuration names. Raises: UserError: a package is missing."""
    return [_Guarded(name, _SINKS[name](_module(name), config, run_folder), say) for name in config.report.sinks]


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"--report.sinks {name}: the package {error.name or name} is missing on the worker: pip install {name}, or "
            "leave the option out"
        ) from None


class _Guarded:
    """A sink that ends at its first fault, told of once. It is made with the first event, and so are its faults."""

    def __init__(self, name: str, sink: _Wandb | _MLflow, say: Callable[[str], None]) -> None:
        self._name, self._sink, self._say = name, sink, say
        self._open: bool | None = None

    def record(self, event: Event) -> None:
        if self._open is not False:
            self._try(self._begin_with, event)

    def close(self) -> None:
        if self._open:
            self._try(self._sink.finish)
            self._open = False

    def _begin_with(self, event: Event) -> None:
        if self._open is None:
            self._sink.begin()
            self._open = True
        self._sink.log(event)

    def _try(self, act: Callable[..., None], *arguments: Any) -> None:
        try:
            act(*arguments)
        except Exception as error:  # the packages raise what they like, networks too
            self._open = False
            why = next(iter(str(error).splitlines()), type(error).__name__)
            self._say(f"nothing more goes to {self._name}: {why}")


class _Wandb:
    """One W&B run of the run's name, gone on with after a resume. Steps that are taken back are no fault there: the
    updates are an axis of their own."""

    def __init__(self, wandb: Any, config: RunConfig, run_folder: Path) -> None:
        self._wandb, self._config, self._folder = wandb, config, run_folder
        self._run: Any = None

    def begin(self) -> None:
        name = self._folder.name
        self._run = self._wandb.init(
            name=name, id=name, resume="allow", dir=str(self._folder), config=to_be_kept(self._config)
        )
        self._run.define_metric("*", step_metric="update")

    def log(self, event: Event) -> None:
        if figures := scalars(event):
            self._run.log({"update": event["step"], **figures})

    def finish(self) -> None:
        self._run.finish()


class _MLflow:
    """One MLflow run, whose id is kept in the run's folder so that a resume goes on with it."""

    def __init__(self, mlflow: Any, config: RunConfig, run_folder: Path) -> None:
        self._mlflow, self._config, self._folder = mlflow, config, run_folder

    def begin(self) -> None:
        kept = self._folder / "mlflow-run.txt"
        if kept.exists():
            self._mlflow.start_run(run_id=kept.read_text().strip())
            return
        run = self._mlflow.start_run(run_name=self._folder.name)
        kept.write_text(run.info.run_id + "\n")
        self._mlflow.log_params({key: value[:500] for key, value in flat(to_be_kept(self._config)).items()})

    def log(self, event: Event) -> None:
        if figures := scalars(event):
            self._mlflow.log_metrics(figures, step=event["step"])

    def finish(self) -> None:
        self._mlflow.end_run()


_SINKS: Mapping[str, type[_Wandb] | type[_MLflow]] = {"wandb": _Wandb, "mlflow": _MLflow}
