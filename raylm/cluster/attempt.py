"""One attempt at a run: a fixed number of workers on Ray Train, until they return or one of them is lost.

Ray Train never tries again by itself. It would count every failure of the run, read its own records of checkpoints,
and end workers where they stand to make more or fewer of them; the driver (`raylm/cluster/launch.py`) does better.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, ScalingConfig
from ray.train import RunConfig as TrainRunConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from raylm.cluster.backend import TensorFlowConfig
from raylm.cluster.capacity import Demand
from raylm.cluster.connection import gist
from raylm.cluster.worker import Job, run_worker
from raylm.data.remote import connect
from raylm.errors import UserError
from raylm.observe.summary import Summary

_TRAIN_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # of 2 s: how late a dead worker, a report and the end are seen
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one more process; the driver sees drains itself
}


class Attempt:
    """`trainer.fit()` in a thread, so that signals and the view stay the driver's."""

    def __init__(self, job: Job, demand: Demand, workers: int, run_folder: Path) -> None:
        for name, value in _TRAIN_SETTINGS.items():
            os.environ.setdefault(name, value)
        filesystem, path = connect(job.remote) if job.remote else (None, str(run_folder))
        path = f"{path}/ray"
        self._trainer = DataParallelTrainer(
            run_worker,
            train_loop_config=job,
            backend_config=TensorFlowConfig(),
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=demand.gpus > 0, resources_per_worker=demand.resources
            ),
            run_config=TrainRunConfig(
                name=f"{run_folder.name}-{run_name()}",
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
            ),
        )
        self._returned: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fit", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._returned = self._trainer.fit().return_value
        except BaseException as error:
            self._error = error

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Until it is over, at most so long."""
        self._thread.join(seconds)

    def summary(self) -> Summary | None:
        """What the workers returned; None where one of them was lost.

        Raises:
            UserError: a worker found a mistake of the user's.
        """
        returned = self._returned
        if not isinstance(returned, Mapping):
            return None
        if "error" in returned:
            raise UserError(returned["error"])
        return Summary.from_json(returned)

    @property
    def losses(self) -> dict[int, str]:
        """The ranks that were lost, and why, in a line each."""
        if not isinstance(self._error, WorkerGroupError):
            return {}
        return {rank: gist(error) for rank, error in self._error.worker_failures.items()}

    @property
    def reason(self) -> str:
        """Why it failed, in one line."""
        return gist(self._error)

    @property
    def found_no_room(self) -> bool:
        """Whether it ended before it began, since other work holds the cluster."""
        failure = self._error.controller_failure if isinstance(self._error, ControllerError) else None
        return type(failure).__name__ == "WorkerGroupStartupTimeoutError"

    @property
    def preempted(self) -> bool:
        """Whether a worker died with a node that was drained."""
        failures = self._error.worker_failures.values() if isinstance(self._error, WorkerGroupError) else ()
        causes = (getattr(failure, "health_check_failure", failure) for failure in failures)
        return any(getattr(cause, "preempted", False) for cause in causes)


def run_name() -> str:
    """A name for Ray's records of one attempt, never used before: those of an old one can be torn."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
