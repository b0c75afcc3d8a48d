"""The workers of a run as those who watch it see them: what each one says that it does, and which one says nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raylm.observe import figures

_MISSED, _LEAST = 5, 15.0  # words that may fail to come, and seconds, before a worker is called silent
_NAMED = 3  # members of a group that are named; more are counted


@dataclass(frozen=True)
class Worker:
    """A worker's last word. silent: seconds since then, where it was due to speak again; else None."""

    rank: int
    node: str
    replicas: int
    doing: str
    silent: float | None

    @property
    def state(self) -> str:
        """`training`, or `silent for 20 s`."""
        return self.doing if self.silent is None else f"silent for {figures.duration(self.silent)}"


class Crew:
    """Keeps when each worker was last heard. That is when its word changed under our eyes, since clocks of machines
    differ; only of the first word the time that stands in it is taken."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last: dict[int, tuple[Mapping[str, Any], float]] = {}

    def hear(self, words: Mapping[str, str]) -> tuple[Worker, ...]:
        """The workers in the order of their ranks, from all of their last words (`raylm.guard.watchdog`) under names
        that end with `-RANK`; a word that is half written, or none, is passed over."""
        now = self._clock()
        for name, text in words.items():
            rank, said = _rank(name), _said(text)
            if rank is None or said is None:
                continue
            last = self._last.get(rank)
            if last is None or last[0] != said:
                self._last[rank] = (said, min(now, said["time"]) if last is None else now)
        if not self._last:
            return ()
        newest, _ = max(self._last.values(), key=lambda each: each[1])
        return tuple(
            _worker(rank, said, now - heard)
            for rank, (said, heard) in sorted(self._last.items())
            if rank < newest["workers"]  # others are left from when there were more
        )


def crew_line(workers: Sequence[Worker]) -> str:
    """`2 workers x 1 replica: 0 on node-a training, 1 on node-b silent for 20 s`. Large groups are counted, but of
    silent ones the first are named."""
    groups: dict[str, list[Worker]] = {}
    for worker in workers:
        groups.setdefault(worker.doing if worker.silent is None else "silent", []).append(worker)
    told = []
    for doing, group in sorted(groups.items(), key=lambda each: -len(each[1])):
        many = len(group) > _NAMED
        if not many or doing == "silent":
            told += [f"{worker.rank} on {worker.node} {worker.state}" for worker in group[:_NAMED]]
        if many:
            told.append(f"{len(group) - _NAMED} more silent" if doing == "silent" else f"{len(group)} {doing}")
    replicas = workers[0].replicas
    size = f"{len(workers)} worker{'s' * (len(workers) > 1)} x {replicas} replica{'s' * (replicas > 1)}"
    return figures.one_line(f"{size}: {', '.join(told)}")


def _worker(rank: int, said: Mapping[str, Any], age: float) -> Worker:
    silent = age if age > max(_LEAST, _MISSED * said["every"]) else None
    return Worker(rank, said["node"], said["replicas"], said["doing"], silent)


def _rank(name: str) -> int | None:
    number = name.rpartition("-")[2]
    return int(number) if number.isdecimal() else None


def _said(text: str) -> Mapping[str, Any] | None:
    try:
        said = json.loads(text)
        right = (
            isinstance(said, dict)
            and all(isinstance(said[key], str) for key in ("node", "doing"))
            and all(isinstance(said[key], int) for key in ("workers", "replicas"))
            and all(isinstance(said[key], (int, float)) for key in ("every", "time"))
        )
    except (ValueError, KeyError, RecursionError):
        return None
    return said if right else None
