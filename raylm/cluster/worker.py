"""What runs in each Ray Train worker: the training loop, with Ray around it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train

from raylm.checkpoint.mirror import Mirror
from raylm.cluster.board import Message, Poster
from raylm.cluster.gauges import Gauges
from raylm.cluster.nodes import this_node
from raylm.config import RunConfig
from raylm.data.dataset import open_dataset
from raylm.errors import UserError
from raylm.training.datasets import Datasets
from raylm.training.topology import Topology

QUIET_TENSORFLOW = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_USE_LEGACY_KERAS": "1"}
"""Environment of a worker before TensorFlow is imported: no start-up chatter, and no import of Keras (seconds)."""

REPEATABLE_CUDNN = ("CUBLAS_WORKSPACE_CONFIG", ":4096:2")
"""Environment of a worker where it is not set: with buffers of one size cuDNN's recurrent layers give the same bits
again; by default the buffer is the one that is free just then (release notes of cuDNN 7.6.5, limitations)."""

EXACT_TENSORFLOW = {"TF_ENABLE_ONEDNN_OPTS": "1"}
"""Environment of an exact-elastic run: oneDNN's products, unlike Eigen's, do not hang on the number of cores. By
default TensorFlow takes them on newer processors only."""


@dataclass(frozen=True)
class Job:
    """What every worker is told.

    corpus: its name. datasets: the folders of train, valid and test. replicas: per worker. remote: URI of a run that
    is kept in an object store; each worker has a working folder then. board: handle of the driver's board.
    """

    config: RunConfig
    corpus: str
    datasets: tuple[str, str, str]
    replicas: int
    run_folder: str
    remote: str | None
    board: Any


class WorkerFailed(Exception):  # noqa: N818 - what Ray Train sees of any error
    """A worker's error, as text."""


def run_worker(job: Job) -> dict[str, Any]:
    """One rank of a run; the summary as plain data, or {"error": …} for a mistake that the user can mend.

    Whatever else goes wrong is raised, and the driver starts all workers anew from the newest checkpoint. A run that
    diverged or was interrupted returns.
    """
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    poster = Poster(job.board)
    mirror: Mirror | None = None
    try:
        mirror = Mirror(job.remote, f"rank-{rank}") if job.remote else None
        run_folder = mirror.folder if mirror else Path(job.run_folder)
        _log_to(run_folder / "logs" / f"worker-{rank}.log")
        poster.publish({"kind": "place", "rank": rank, "node": this_node()})
        if rank == 0:
            poster.publish({"kind": "wait", "what": "importing TensorFlow"})
        os.environ.setdefault(*REPEATABLE_CUDNN)
        os.environ.update(QUIET_TENSORFLOW, **(EXACT_TENSORFLOW if job.config.cluster.exact_elastic else {}))
        from raylm.training.loop import Outside, train  # here: the driver imports this module, and has
        # no use for TensorFlow, whose import takes seconds

        publish = _shown(poster.publish, Gauges(run_folder.name)) if rank == 0 else poster.publish
        outside = Outside(publish, poster.stop_requested, _report)
        config = job.config
        topology = Topology(rank, workers, job.replicas, config.data.lanes, config.cluster.fixed_shards)
        datasets = Datasets(job.corpus, *(open_dataset(folder) for folder in job.datasets))
        if mirror is not None:
            mirror.pull()
        summary = train(config, datasets, topology, run_folder, outside, mirror).to_json()
        if rank == 0:
            poster.publish({"kind": "summary", "summary": summary})
        return summary
    except UserError as error:
        return {"error": str(error)}
    except Exception as error:
        traceback.print_exc()  # into the log; an error of TensorFlow's own class would make the driver import it
        raise WorkerFailed(f"{type(error).__name__}: {error}") from None
    finally:
        poster.close()
        if mirror is not None:
            with suppress(UserError):  # what is left are logs
                mirror.push()


def _shown(publish: Callable[[Message], None], gauges: Gauges) -> Callable[[Message], None]:
    """Publishes each event, and shows its figures in Ray's metrics."""

    def both(message: Message) -> None:
        publish(message)
        gauges.show(message)

    return both


def _report(metrics: Mapping[str, float], checkpoint: Path | None) -> None:
    """Tells Ray Train, for its dashboard and for Tune. The checkpoint goes as a path: Ray takes none that lies outside
    its own folder, and the manifests in the run's folder are the truth anyway."""
    ray.train.report({**metrics, "checkpoint": str(checkpoint)})


def _log_to(path: Path) -> None:
    """Sends this process's output, C++ libraries' too, to a file in the run's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
