"""Runs a training job on Ray Train and shows it: the driver's side of a run, attempt after attempt.

An attempt ends when the run does, when a worker is lost, or when the driver asks all workers to save and return: for
a signal, for a node that is to go, for nodes that came. The next one goes on from the newest checkpoint.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raylm.checkpoint.mirror import Mirror, marks_of
from raylm.checkpoint.mirrored import checkpoints_of
from raylm.checkpoint.store import step_of
from raylm.cluster.attempt import Attempt
from raylm.cluster.autoscaling import Wish, lacking, may_come
from raylm.cluster.board import Board, ConnectionLost, Message
from raylm.cluster.capacity import Demand, placing, plan, room
from raylm.cluster.connection import connected, output_to
from raylm.cluster.nodes import Node, look, this_node
from raylm.cluster.pause import Failures, Growth, Pause, leaving
from raylm.cluster.worker import Job
from raylm.config import ClusterConfig
from raylm.observe.crew import Crew
from raylm.observe.events import EventLog
from raylm.observe.run_folder import RunRecord
from raylm.observe.summary import Summary, write_summary
from raylm.observe.view import View
from raylm.training.topology import Topology

DRIVER_LOG = "logs/driver.log"
"""What Ray prints in the driver, in the run's folder."""

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 1.0
_SETTLE_SECONDS = 10.0
_RETURN_SECONDS = 3.0


class Stopped(Exception):  # noqa: N818 - an end that was asked for
    """A signal ended the run, or a node that is to go. `summary` is None where the last step was not saved."""

    def __init__(self, number: int, summary: Summary | None, why: str = "") -> None:
        super().__init__(why or f"signal {number}")
        self.number, self.summary, self.why = number, summary, why


class RunFailed(Exception):  # noqa: N818 - an end of the run
    """The run ended without its result; the message is one line for the person who started it."""


def fit(record: RunRecord, run_folder: Path, view: View, mirror: Mirror | None = None) -> Summary:
    """Trains on Ray Train, from the newest checkpoint in `run_folder` or from the start, and shows it in `view`.

    mirror: of a run that is kept in an object store; `run_folder` is its working folder here.

    Raises:
        UserError: the cluster cannot be reached or cannot hold the run, or a worker found a mistake of the user's.
        Stopped: a signal asked for the end, or nodes went and too few are left.
        RunFailed: workers failed more often than the run allows, or the cluster was lost.
    """
    config = record.config
    view.wait("starting Ray")
    with output_to(run_folder / DRIVER_LOG), connected(config.cluster.address) as connection:
        demand = plan(config.cluster, [*(node.total for node in _staying()), *may_come()])
        # Refuses more replicas than lanes or shards.
        Topology(0, demand.most, demand.replicas, config.data.lanes, config.cluster.fixed_shards)
        with _signals() as received:
            driver = _Driver(record, demand, run_folder, view, received, mirror)
            connection.in_use = driver.in_ray
            if mirror is not None:
                mirror.push()
            try:
                return driver.run()
            except Stopped as stopped:
                if stopped.summary is None:
                    driver.stopped_at_once()
                raise
            except ConnectionLost as lost:
                reason = f"the Ray cluster does not answer any more ({lost})"
                raise driver.failed(reason) from lost
            finally:
                if mirror is not None:
                    mirror.push((DRIVER_LOG,))


class _Driver:
    """The attempts of one `raylm train` or `raylm resume`, and what was seen of them."""

    def __init__(
        self,
        record: RunRecord,
        demand: Demand,
        run_folder: Path,
        view: View,
        received: list[int],
        mirror: Mirror | None,
    ) -> None:
        self._asked: ClusterConfig = record.config.cluster
        self._demand, self._run_folder, self._view, self._received = demand, run_folder, view, received
        self._board = Board(run_folder.name)
        datasets = (record.datasets["train"], record.datasets["valid"], record.datasets["test"])
        self._mirror, self._marks, self._crew = mirror, marks_of(run_folder, mirror), Crew()
        uri = mirror.uri if mirror else None
        self._job = Job(
            record.config, record.corpus, datasets, demand.replicas, str(run_folder), uri, self._board.actor
        )
        self._here = this_node()
        self._machines, self._wish = may_come(), Wish(demand)
        self._steps, self._saved = 0, -1
        self._started = False
        self._places: dict[int, str] = {}
        self._returned: Summary | None = None
        self._attempt: Attempt | None = None

    def in_ray(self) -> bool:
        """Whether the thread of an attempt is still within Ray, having had time to see that its workers returned."""
        if self._attempt is None:
            return False
        self._attempt.wait(_RETURN_SECONDS if self._returned else 0)
        return not self._attempt.over

    def run(self) -> Summary:
        """Attempts until the run is over."""
        failures = Failures(self._asked.max_failures)
        while True:
            workers = self._wait_for_room()
            self._attempt = attempt = Attempt(self._job, self._demand, workers, self._run_folder)
            pause = self._follow(attempt, workers)
            self._wish.end()
            summary = attempt.summary()
            if summary is not None:
                if summary.status != "interrupted" or pause is None:
                    return summary
                if pause.number is not None:
                    raise Stopped(pause.number, summary, pause.why)
                self._view.note(f"{pause.why}: saved at step {summary.steps}")
            elif pause is not None and pause.number is not None:
                raise Stopped(pause.number, None)
            elif not attempt.found_no_room:
                for rank, reason in attempt.losses.items():
                    self._view.note(f"worker {rank} was lost: {reason}")
                if pause is None and not attempt.preempted:
                    failures = failures.after(self._newest())
                if failures.too_many:
                    raise self.failed(f"{failures.say()}: {attempt.reason}")

    def failed(self, reason: str) -> RunFailed:
        """Writes down that the run failed."""
        self._end("failed", reason)
        return RunFailed(f"{reason}; the whole story is in {self._run_folder / 'logs'}")

    def stopped_at_once(self) -> None:
        """Writes down that the run ended at its newest checkpoint, where no worker did."""
        newest = self._newest()
        if self._saved >= 0 and self._returned is None:
            self._steps = newest
            self._end("interrupted", f"stopped without a save; the newest checkpoint is of step {newest}")

    def _newest(self) -> int:
        """The step of the newest checkpoint. A worker that is killed cannot tell of its last one."""
        path = checkpoints_of(self._run_folder, self._mirror).newest()
        on_disk = step_of(path) if path is not None else None
        return max(self._saved, on_disk or 0)

    def _end(self, status: str, reason: str) -> Summary:
        summary = Summary(status, reason, self._steps, 0)
        if self._mirror is not None:
            self._mirror.pull_files()
        write_summary(self._run_folder, summary)
        log = EventLog(self._run_folder)
        log.append("end", self._steps, None, status=status, reason=reason)
        log.close()
        if self._mirror is not None:
            self._mirror.push()
        return summary

    def _wait_for_room(self) -> int:
        """The number of workers to start now: as many as fit, within what was asked for.

        Raises:
            Stopped: a signal came, or too few nodes were there for too long.
        """
        nodes = _staying()
        held = room(self._demand, (node.total for node in nodes))
        if held < self._demand.fewest:
            self._wish.be(held + lacking(self._demand, held, self._machines, nodes) if self._machines else 0)
            held = self._wait_for_nodes()
            self._wish.end()
        workers = self._demand.fewest
        if self._demand.elastic:
            most = min(held, self._demand.most)
            settled = time.monotonic() + (_SETTLE_SECONDS if self._started else 0)
            while (free := room(self._demand, (node.free for node in _staying()))) < most:
                if time.monotonic() > settled:  # what the last workers held is free again; the rest is not ours
                    break
                time.sleep(_POLL_SECONDS)
            workers = min(max(free, workers), most)
        self._view.wait(placing(self._demand, workers, [node.free for node in _staying()]))
        return workers

    def _wait_for_nodes(self) -> int:
        deadline = time.monotonic() + self._asked.wait_for_room
        while (held := room(self._demand, (node.total for node in _staying()))) < self._demand.fewest:
            if self._received:
                raise Stopped(self._received[0], None)
            gone = "nodes are gone: " if self._steps else ""
            short = f"{gone}room for {held} of {self._demand.fewest} workers"
            if time.monotonic() > deadline:
                reason = f"{short} for {self._asked.wait_for_room:g} s"
                raise Stopped(signal.SIGTERM, self._end("interrupted", reason), reason)
            self._view.wait(f"waiting for nodes ({short})")
            time.sleep(_POLL_SECONDS)
        return held

    def _follow(self, attempt: Attempt, workers: int) -> Pause | None:
        """Shows what the board says until the attempt is over; why it was asked to end, where it was."""
        pause: Pause | None = None
        self._started, self._places = False, {}
        growth, looked, heard = Growth(), time.monotonic(), time.monotonic()
        while True:
            over = attempt.over
            for message in self._board.take(pause is not None):
                self._take_in(message, pause)
            if over:
                return pause
            if self._received and (pause is None or pause.number is None):
                if not self._started:
                    raise Stopped(self._received[0], None)
                pause = Pause("", self._received[0])
                self._view.note("stopping: a checkpoint is saved first (once more to stop at once)")
            if len(self._received) > 1:
                raise Stopped(self._received[0], None)
            saved = self._started and self._returned is not None and self._returned.status == "interrupted"
            if saved and pause is not None and pause.number is not None:
                raise Stopped(pause.number, self._returned, pause.why)  # the grace of whoever stops us may be short
            now = time.monotonic()
            if pause is None and self._started and now - looked > _LOOK_SECONDS:
                nodes, looked = look(), now
                staying = [node for node in nodes if not node.draining]
                self._wish.be(lacking(self._demand, workers, self._machines, staying))
                growth = growth.seen(self._demand, workers, nodes, now)
                pause = leaving(nodes, set(self._places.values()), self._here) or growth.pause(self._demand, now)
                if pause is not None:
                    self._view.note(f"{pause.why}: a checkpoint is saved first")
            if self._started and self._returned is None and now - heard > self._marks.every:
                heard = now
                self._view.crew(self._crew.hear(self._marks.read("worker")))
            attempt.wait(_POLL_SECONDS)

    def _take_in(self, message: Message, pause: Pause | None) -> None:
        match message["kind"]:
            case "wait":
                self._view.wait(message["what"])
            case "note":
                self._view.note(message["text"])
            case "place":
                self._places[message["rank"]] = message["node"]
            case "summary":
                self._returned = Summary.from_json(message["summary"])
            case "end" if pause is not None and pause.number is None:
                pass  # the end of an attempt, not of the run
            case kind:
                self._view.show(message)
                self._steps = message["step"]
                if kind in ("start", "resume"):
                    self._started, self._returned = True, None
                if kind == "resume" or (kind == "checkpoint" and "path" in message):
                    self._saved = max(self._saved, message["step"])


def _staying() -> list[Node]:
    return [node for node in look() if not node.draining]


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
