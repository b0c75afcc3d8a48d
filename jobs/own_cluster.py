"""A Ray cluster of one node on this machine for the jobs here, apart from any other, ended with all it started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


@contextmanager
def own_cluster(cpus: int) -> Iterator[dict[str, str]]:
    """The environment in which `raylm` uses the cluster.

    Raises:
        TimeoutError: Ray did not start in a minute.
    """
    address = f"127.0.0.1:{_free_port()}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # paths of sockets must be short
        head = subprocess.Popen(
            [
                *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus", str(cpus), "--include-dashboard=false"),
                *("--node-ip-address", "127.0.0.1", "--port", address.partition(":")[2], "--temp-dir", folder),
                *("--dashboard-agent-listen-port", str(_free_port()), "--ray-client-server-port", str(_free_port())),
                *("--disable-usage-stats", "--object-store-memory", "100000000"),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            environment["RAY_ADDRESS"] = address
            _wait_until_alive(environment)
            yield environment
        finally:
            for process in [*descendants(head.pid), head.pid]:
                kill(process)
            head.wait()


def start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """A command in the repository's folder, its output at the end of a file."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )


def descendants(process: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [identity for child in map(int, children) for identity in (*descendants(child), child)]


def kill(process: int) -> bool:
    """Whether there was such a process to kill."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _wait_until_alive(environment: dict[str, str]) -> None:
    for _ in range(60):
        if subprocess.run([str(BIN / "ray"), "status"], env=environment, capture_output=True).returncode == 0:
            return
        time.sleep(1)
    raise TimeoutError("Ray did not start in a minute")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
