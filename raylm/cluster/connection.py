"""The way to a Ray cluster: the one that is asked for, or one on this machine for the time being."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import ray

from raylm.errors import UserError

_SECONDS_TO_ANSWER = 5.0


@dataclass
class Connection:
    """in_use: asked at the end, whether a thread is still within Ray: its core is freed under such a one, and the
    process dies of that. The connection then lasts as long as the process, and Ray sees to the rest."""

    in_use: Callable[[], bool] = lambda: False


@contextmanager
def connected(address: str | None, option: str = "--cluster.address") -> Iterator[Connection]:
    """Connects to the cluster that is asked for by an option, or starts Ray on this machine for the time being.

    Raises:
        UserError: there is no cluster at the address, or it wants a token, or the address is no node's.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _check(address, option)
    local = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **local)
    except Exception as error:  # Ray raises many kinds for a cluster that is not there
        raise UserError(
            f"no Ray cluster could be reached at {address!r} ({gist(error)}): check {option} and "
            "$RAY_ADDRESS; a cluster with token authentication also needs RAY_AUTH_MODE=token and its token"
        ) from None
    connection = Connection()
    try:
        yield connection
    finally:
        if not connection.in_use():
            ray.shutdown()


def _check(address: str, option: str) -> None:
    """Refuses addresses of Ray's client and dashboard: a driver is a part of the cluster. Finds out in seconds what
    `ray.init` finds out in ten minutes: that nobody listens."""
    if "://" in address:
        raise UserError(
            f"{address} is not where a run can start from: on a node of the cluster, name its head as HOST:PORT with "
            f"{option} or $RAY_ADDRESS; from elsewhere, submit it as a job: `ray job submit -- ...`"
        )
    match = re.fullmatch(r"\[?([^/\]]+?)\]?:(\d+)", address)
    if match is None:
        return
    try:
        socket.create_connection((match[1], int(match[2])), _SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error.strerror or error}): check {option} and "
            "$RAY_ADDRESS, or leave both out to start Ray on this machine"
        ) from None


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Sends what Ray prints in this process, its C++ parts too, to a file; the view keeps the stream it was given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    errors = os.dup(2)
    try:
        with path.open("a", encoding="utf-8", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
            os.dup2(log.fileno(), 2)
            yield
    finally:
        os.dup2(errors, 2)
        os.close(errors)


def gist(error: BaseException | None) -> str:
    """The line of an error that says most: its last `SomeError: …`, else its first, 300 characters of it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|WorkerFailed): ", line)]
    return (named[-1] if named else lines[0]).rpartition("WorkerFailed: ")[2][:300]
