"""Runs a training job on Ray Train and shows it: the driver's side of a run."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, ScalingConfig
from ray.train import RunConfig as TrainRunConfig
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from raylm.cluster.backend import TensorFlowConfig
from raylm.cluster.board import Board
from raylm.cluster.capacity import Demand, plan
from raylm.cluster.connection import connected, gist, output_to
from raylm.cluster.worker import Job, run_worker
from raylm.config import RunConfig
from raylm.errors import UserError
from raylm.observe.events import EventLog
from raylm.observe.run_folder import RunRecord
from raylm.observe.summary import Summary, write_summary
from raylm.observe.view import View
from raylm.training.topology import Topology

_POLL_SECONDS = 0.2


class Stopped(Exception):  # noqa: N818 - an end that was asked for
    """A signal ended the run. `summary` is None where the run was not given the time to save its last step."""

    def __init__(self, number: int, summary: Summary | None) -> None:
        super().__init__(f"signal {number}")
        self.number, self.summary = number, summary


class RunFailed(Exception):  # noqa: N818 - an end of the run
    """The run ended without its result; the message is one line for the person who started it."""


def fit(record: RunRecord, run_folder: Path, view: View) -> Summary:
    """Trains on Ray Train, from the newest checkpoint in `run_folder` or from the start, and shows it in `view`.

    Raises:
        UserError: the cluster cannot be reached or cannot hold the run, or a worker found a mistake of the user's.
        Stopped: a signal asked for the end.
        RunFailed: a worker failed more often than the run allows.
    """
    config = record.config
    view.wait("starting Ray")
    with output_to(run_folder / "logs" / "driver.log"), connected(config.cluster.address):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        demand = plan(config.cluster, nodes)
        Topology(0, demand.workers, demand.replicas, config.data.lanes)  # refuses more replicas than lanes
        view.wait(_placing(demand))
        board = Board.remote()  # type: ignore[attr-defined]
        datasets = (record.datasets["train"], record.datasets["valid"], record.datasets["test"])
        job = Job(config, record.corpus, datasets, demand.replicas, str(run_folder), board)
        fitting = _Fitting(_trainer(job, demand, config, run_folder))
        steps = _follow(fitting, board, view)
        return _result(fitting, run_folder, steps)


def _trainer(job: Job, demand: Demand, config: RunConfig, run_folder: Path) -> DataParallelTrainer:
    return DataParallelTrainer(
        run_worker,
        train_loop_config=job,
        backend_config=TensorFlowConfig(),
        scaling_config=ScalingConfig(
            num_workers=demand.workers, use_gpu=demand.gpus > 0, resources_per_worker=demand.resources
        ),
        run_config=TrainRunConfig(
            name=time.strftime(
                "%Y%m%d-%H%M%S"
            ),  # a fresh one for each attempt: Ray's records of an old one can be torn
            storage_path=str(run_folder / "ray"),
            failure_config=FailureConfig(max_failures=config.cluster.max_failures),
            callbacks=[_TellOfLosses(job.board)],
        ),
    )


class _TellOfLosses(UserCallback):
    """Runs in Ray Train's controller: says on the board which worker was lost."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for rank, error in worker_exceptions.items():
            text = f"worker {rank} was lost: {gist(error)}"
            self._board.post.remote([{"kind": "note", "text": text}, {"kind": "wait", "what": "starting the workers"}])


class _Fitting:
    """`trainer.fit()` in a thread, so that signals and the view stay ours."""

    def __init__(self, trainer: DataParallelTrainer) -> None:
        self.returned: Any = None
        self.error: BaseException | None = None
        self.stop_signal: int | None = None
        self._trainer = trainer
        self.thread = threading.Thread(target=self._run, name="fit", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.returned = self._trainer.fit().return_value
        except BaseException as error:
            self.error = error


def _follow(fitting: _Fitting, board: Any, view: View) -> int:
    """Shows what the board says until the run ends; the last step it told of. Passes a signal on to the workers."""
    steps, started = 0, False
    with _signals() as received:
        while True:
            over = not fitting.thread.is_alive()
            for message in ray.get(board.take.remote()):
                _show(message, view)
                steps = message.get("step", steps)
                started = started or message["kind"] in ("start", "resume")
            if over:
                return steps
            if received and fitting.stop_signal is None:
                fitting.stop_signal = received[0]
                if not started:
                    raise Stopped(received[0], None)
                board.stop.remote()
                view.note("stopping: a checkpoint is saved first (once more to stop at once)")
            if len(received) > 1:
                raise Stopped(received[0], None)
            fitting.thread.join(_POLL_SECONDS)


def _show(message: Mapping[str, Any], view: View) -> None:
    match message["kind"]:
        case "wait":
            view.wait(message["what"])
        case "note":
            view.note(message["text"])
        case _:
            view.show(message)


def _result(fitting: _Fitting, run_folder: Path, steps: int) -> Summary:
    returned = fitting.returned
    if isinstance(returned, Mapping) and "error" in returned:
        raise UserError(returned["error"])
    if isinstance(returned, Mapping):
        summary = Summary.from_json(returned)
        if fitting.stop_signal is not None and summary.status == "interrupted":
            raise Stopped(fitting.stop_signal, summary)
        return summary
    reason = f"a worker failed: {gist(fitting.error)}"
    write_summary(run_folder, Summary("failed", reason, steps, 0))
    log = EventLog(run_folder)
    log.append("end", steps, None, status="failed", reason=reason)
    log.close()
    raise RunFailed(f"{reason}; the whole story is in {run_folder / 'logs'}") from fitting.error


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in place of dying of them."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda got, _: received.append(got)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _placing(demand: Demand) -> str:
    """What the wait for workers is called, and what holds it up where the cluster is busy."""
    free = ray.available_resources()
    workers = f"{demand.workers} worker{'s' if demand.workers > 1 else ''}"
    short = [
        f"{free.get(kind, 0):g} of {demand.workers * amount:g} {kind}s are free"
        for kind, amount in demand.resources.items()
        if free.get(kind, 0) < demand.workers * amount
    ]
    return f"waiting for room for {workers}: {', '.join(short)}" if short else f"starting {workers}"
