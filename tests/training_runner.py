"""Runs functions in processes of their own, with TensorFlow imported already.

TensorFlow allows one strategy a process and fixes the number of devices at its first operation, and a test that kills
a training must not kill pytest. A server process imports TensorFlow once, computes nothing, and forks for each call.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["forked"])


class Killed(Exception):  # noqa: N818 - what a test wants to happen
    """A process ended without an answer; `exitcode` is minus the signal that ended it."""

    def __init__(self, exitcode: int | None) -> None:
        super().__init__(f"ended with {exitcode}")
        self.exitcode = exitcode


class Call:
    """A function that runs in a process of its own, which stays until its answer is taken."""

    def __init__(
        self, function: Callable[..., Any], *arguments: Any, environment: dict[str, str] | None = None
    ) -> None:
        with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))):
            forkserver.ensure_running()  # that finds `forked`
        self._pipe, theirs = _PROCESSES.Pipe()
        self.process = _PROCESSES.Process(
            target=_answer, args=(theirs, environment or {}, function, arguments), daemon=True
        )
        self.process.start()
        theirs.close()

    def answer(self, seconds: float = 280) -> Any:
        """What the function returned; the process stays.

        Raises:
            RuntimeError: it raised; the message is its traceback.
            Killed: the process ended without an answer.
            TimeoutError: it does not end.
        """
        if not self._pipe.poll(seconds):
            raise TimeoutError(f"no answer within {seconds} s")
        try:
            returned, raised = self._pipe.recv()
        except EOFError:
            self.process.join()
            raise Killed(self.process.exitcode) from None
        if raised is not None:
            raise RuntimeError(raised)
        return returned

    @property
    def answered(self) -> bool:
        """Whether the function is over."""
        return self._pipe.poll()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.join()


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own."""
    return answers([Call(function, *arguments)])[0]


def answers(calls: Sequence[Call], seconds: float = 280) -> list[Any]:
    """What several functions that run at once return; none of their processes ends before all have answered."""
    try:
        return [each.answer(seconds) for each in calls]
    finally:
        for each in calls:
            each.kill()


def environments(workers: int) -> list[dict[str, str]]:
    """Of each of so many workers, what MultiWorkerMirroredStrategy reads; nothing for one alone."""
    if workers == 1:
        return [{}]
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(workers)]
    cluster = {"worker": [f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes]}
    for probe in probes:
        probe.close()
    places = ({"cluster": cluster, "task": {"type": "worker", "index": rank}} for rank in range(workers))
    return [{"TF_CONFIG": json.dumps(place)} for place in places]


def _answer(pipe: Connection, environment: dict[str, str], function: Callable[..., Any], arguments: Any) -> None:
    os.environ.update(environment)
    try:
        pipe.send((function(*arguments), None))
        pipe.recv()  # until the other end is closed or this process is killed
    except EOFError:
        return
    except BaseException:
        pipe.send((None, traceback.format_exc()))
        raise
