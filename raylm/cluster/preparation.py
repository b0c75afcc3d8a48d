"""Prepares datasets on Ray Data: every split of the inputs, and every partition of the words, is a task of its own.

The driver holds names, counts and the vocabulary, never text or tokens. A task whose worker died is done again: it
leaves nothing but files of its split's own name, each of which appears whole, so the dataset is the same.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ray.data
from ray import cloudpickle
from ray.data import TaskPoolStrategy
from ray.exceptions import RayError
from ray.util import get_node_ip_address

from raylm.cluster.connection import connected, gist, output_to
from raylm.data.options import PrepareOptions
from raylm.data.prepare import PrepareResult, prepare
from raylm.data.runners import Runner, WorkersLost
from raylm.data.stages import Report
from raylm.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_RETRIES = 3
"""Times that a task is done again because its worker died."""


def prepare_on_ray(
    inputs: Sequence[str],
    output: str,
    options: PrepareOptions,
    *,
    address: str | None,
    tasks_at_once: int | None,
    log: Path,
    report: Report,
) -> PrepareResult:
    """`raylm.data.prepare.prepare` on the cluster at an address, or on one that is started here for the time being.

    What Ray prints goes to the file `log`.

    Raises:
        UserError: as `prepare`, and where no cluster can be reached.
        WorkersLost: a task failed, or its workers died, too often.
    """
    with on_cluster(address, log):
        return prepare(inputs, output, options, run=on_ray(tasks_at_once), report=report)


@contextmanager
def on_cluster(address: str | None, log: Path) -> Iterator[None]:
    """Connects to the cluster at an address, or to one that is started here for the time being. What Ray prints goes to
    the file `log`.

    Raises:
        UserError: no cluster can be reached.
    """
    ray_connection = ExitStack()
    with output_to(log):
        try:
            with _signals_held() as held:
                ray_connection.enter_context(connected(address, "--address"))
            for number in held[:1]:
                signal.raise_signal(number)
            yield
        finally:
            with _signals_held():  # what was done stays done
                ray_connection.close()


def on_ray(tasks_at_once: int | None = None) -> Runner:
    """A runner over the cluster that this process is connected to, on all its cores or so many of them.

    Raises:
        UserError: (when run) what a task raised; tasks that are still under way are ended before.
        WorkersLost: (when run) a task failed, or its workers died, too often.
    """

    def run(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        rows = [{"item": cloudpickle.dumps(item)} for item in items]
        outcomes = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            prepare_piece,
            fn_kwargs={"work": cloudpickle.dumps(work), "driver": get_node_ip_address()},
            num_cpus=1,
            compute=TaskPoolStrategy(size=min(tasks_at_once or len(rows), len(rows))),
            max_retries=MAX_RETRIES,  # deprecated without a successor until Ray 2.64; by itself it tries for ever
        )
        try:
            for row in outcomes.iter_rows():
                if row["error"]:
                    raise UserError(row["error"])
                yield cloudpickle.loads(row["result"])
        except RayError as error:
            raise WorkersLost(f"a task could not be done ({gist(error)})") from error

    return run


def prepare_piece(row: dict[str, Any], work: bytes, driver: str) -> dict[str, Any]:
    """One task: what it gives, or the mistake of the user's that it met, which is no reason to try again."""
    try:
        result = cloudpickle.loads(work)(cloudpickle.loads(row["item"]))
    except UserError as error:
        node = get_node_ip_address()
        return {"result": b"", "error": f"{error}{f' (on node {node})' if node != driver else ''}"}
    return {"result": cloudpickle.dumps(result), "error": ""}


@contextmanager
def _signals_held() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM: Ray must not be cut short while it starts or stops."""
    held: list[int] = []
    before = {
        number: signal.signal(number, lambda got, _: held.append(got)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield held
    finally:
        for number, handler in before.items():  # Ray sets one of its own
            signal.signal(number, handler)
