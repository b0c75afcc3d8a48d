"""A real Ray cluster of several nodes on this machine, and a user's shell on it, for the tests of whole runs."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
TINY = (
    *("--data.lanes", "4", "--data.window", "5", "--model.hidden", "8", "--model.dropout", "0.3", "--steps", "40"),
    *("--checkpoint-every", "10", "--report.log-every", "1", "--report.sample-every", "0"),
    *("--report.plain-seconds", "1"),
)
ENDLESS = ("--steps", "100000", "--schedule.kind", "constant", "--schedule.warmup-steps", "0")
ENDLESS += ("--guard.spike-warmup", "100000")  # a text learned by heart is a shock anew at the start of an epoch


class Cluster:
    """A head node in a session of its own, reached with a token; `run` is a user's shell on it."""

    def __init__(self, folder: Path, cpus: int) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self.dashboard = f"http://127.0.0.1:{free_port()}"
        (folder / "home").mkdir()
        (folder / "text").mkdir()
        for split, lines in (("train", 400), ("valid", 20), ("test", 20)):
            text = "\n".join(f"the {i % 7} dogs saw {i % 3} cats and {i % 11} birds ran" for i in range(lines))
            (folder / "text" / f"{split}.txt").write_text(text + "\n")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "HOME": str(folder / "home"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "RAY_AUTH_MODE": "token",
            "RAY_ADDRESS": self.address,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        self.run("ray", "get-auth-token", "--generate", check=True)
        self._temporary = tempfile.TemporaryDirectory(prefix="ray", dir="/tmp")  # paths of sockets must be short
        self.nodes: list[subprocess.Popen[str]] = []
        self.start_head(cpus)

    def start_head(self, cpus: int) -> None:
        """The head, anew where it was killed."""
        host, port = self.address.split(":")
        self.head = self.start(
            *("ray", "start", "--head", "--block", "--num-cpus", str(cpus), "--disable-usage-stats"),
            *("--node-ip-address", host, "--port", port, "--dashboard-port", self.dashboard.rpartition(":")[2]),
            *("--dashboard-agent-listen-port", str(free_port()), "--ray-client-server-port", str(free_port())),
            *("--temp-dir", self._temporary.name, "--object-store-memory", "100000000"),
            RAY_ADDRESS="",
            RAY_JOB_STOP_WAIT_TIME_S="60",  # of 3 s from SIGTERM to SIGKILL: too short on a busy machine
        )
        self.nodes = [self.head]
        self.wait(lambda: self.run("ray", "status").returncode == 0, "the head did not start")

    def add_node(self, cpus: int) -> subprocess.Popen[str]:
        """One more node, alive."""
        before = self.alive()
        node = self.start(
            *("ray", "start", "--address", self.address, "--block", "--num-cpus", str(cpus)),
            *("--node-ip-address", "127.0.0.1", "--dashboard-agent-listen-port", str(free_port())),
            *("--disable-usage-stats", "--object-store-memory", "100000000"),
            RAY_ADDRESS="",
        )
        self.nodes.append(node)
        self.wait(lambda: len(self.alive()) > len(before), "the node did not join")
        node.identity = next(identity for identity in self.alive() if identity not in before)  # type: ignore[attr-defined]
        return node

    def worker(self, name: str, rank: int) -> int:
        """The process of a worker, known by where it writes its log."""
        log = str((self.folder / "runs" / name).resolve() / "logs" / f"worker-{rank}.log")
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and os.readlink(entry / "fd" / "1") == log:
                    return int(entry.name)
            except OSError:
                continue
        raise ProcessLookupError(f"no process writes {log}")

    def kill_worker(self, name: str, rank: int) -> None:
        """And waits until it is gone, so that it is not taken for the next one."""
        process = self.worker(name, rank)
        os.kill(process, signal.SIGKILL)
        self.wait(lambda: not _is_alive(process), f"process {process} does not end")

    def node_with(self, process: int) -> subprocess.Popen[str]:
        """The node that a worker's process belongs to."""
        return next(node for node in self.nodes if process in _descendants(node.pid))

    def drain(self, node: subprocess.Popen[str]) -> None:
        """As a spot notice does it."""
        reason = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a spot notice")
        identity = node.identity  # type: ignore[attr-defined]
        self.run("ray", "drain-node", "--address", self.address, "--node-id", identity, *reason, check=True)

    @staticmethod
    def freeze(node: subprocess.Popen[str]) -> None:
        """As a machine hangs: it is not gone, and does not answer."""
        for process in _descendants(node.pid):
            os.kill(process, signal.SIGSTOP)

    def kill_node(self, node: subprocess.Popen[str]) -> None:
        """As a machine dies: every process of it at once."""
        self.nodes.remove(node)
        for process in [*_descendants(node.pid), node.pid]:
            _kill(process)
        node.wait(30)

    def alive(self) -> list[str]:
        """Identities of the nodes that are alive, the head's first."""
        code = (
            "import json, ray; ray.init(log_to_driver=False, logging_level='ERROR'); "
            "print(json.dumps([[n['NodeID'], 'node:__internal_head__' in n['Resources']] "
            "for n in ray.nodes() if n['Alive']]))"
        )
        done = self.run(sys.executable, "-c", code, check=True)
        nodes = json.loads(done.stdout.splitlines()[-1])
        return [identity for identity, _ in sorted(nodes, key=lambda node: not node[1])]

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """A command in the background, in a process group of its own; its output goes to `output_of` it."""
        merged = {name: value for name, value in (self.environment | environment).items() if value}
        path = self.folder / f"{len(list(self.folder.glob('*.log')))}.log"
        with path.open("w") as log:
            process = subprocess.Popen(
                command, env=merged, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        process.output = path  # type: ignore[attr-defined]
        return process  # type: ignore[return-value]

    def run(self, *command: str, check: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
        merged = {name: value for name, value in (self.environment | environment).items() if value}
        return subprocess.run(
            command,
            env=merged,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=check,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )

    def submit(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit`, once the dashboard and its agent are up, which takes some seconds more than the head."""
        for _ in range(60):
            done = self.run("ray", "job", "submit", *words, RAY_ADDRESS=self.dashboard)
            if not re.search("No available agent|Connection refused|Failed to connect", done.stdout + done.stderr):
                break
            time.sleep(1)
        return done

    def train(self, name: str, *options: str) -> tuple[str, ...]:
        """The command line of a tiny run."""
        place = ("--corpus", str(self.folder / "text"), "--storage-path", str(self.folder / "runs"), "--name", name)
        return (sys.executable, "jobs/train_ptb.py", *TINY, *place, *options)

    def resume(self, name: str, *options: str) -> tuple[str, ...]:
        return (str(BIN / "raylm"), "resume", "--from-checkpoint", str(self.folder / "runs" / name), *options)

    def summary(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.folder / "runs" / name / "summary.json").read_text()))

    def events(self, name: str, kind: str) -> list[dict[str, Any]]:
        path = self.folder / "runs" / name / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["kind"] == kind]

    def wait_for(self, name: str, kind: str, count: int = 1) -> Mapping[str, Any]:
        """Waits for so many events of a kind; the last of them."""
        self.wait(lambda: len(self.events(name, kind)) >= count, f"{name} had too few {kind} events")
        return self.events(name, kind)[-1]

    @staticmethod
    def wait(until: Callable[[], Any], problem: str, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            if time.monotonic() > deadline:
                raise TimeoutError(problem)
            time.sleep(0.1)

    def close(self) -> None:
        for node in reversed(self.nodes):
            self.kill_node(node)
        self._temporary.cleanup()


def _descendants(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children")
    try:
        found = [int(child) for child in children.read_text().split()]
    except OSError:
        return []
    return [identity for child in found for identity in (*_descendants(child), child)]


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


_given: set[int] = set()


def free_port() -> int:
    """A port that nobody listens at, and that was not given before: it may not be in use yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    if port in _given:
        return free_port()
    _given.add(port)
    return port
