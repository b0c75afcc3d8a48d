"""Machines for tests of cluster.yaml: namespaces of this one, each with its own processes, network, home and sshd.

`ray stop`, which stands among cluster.yaml's commands, ends every Ray process that it can see. So nothing here may see
the processes of the machine that the tests run on: each machine is its own PID namespace from its first process on.
They hang on one bridge, in the network namespace of the first, which plays the user's laptop.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
USER = "ubuntu"
HOME = "/run/ubuntu"
"""The home folder on every machine: the same path, as Ray expects, and never the same folder."""

BOOT = """
set -e
mkdir -p {home}
mount --bind {folder}/home {home}
mount --bind {folder}/passwd /etc/passwd
for place in {root} {venv}; do mount --bind -o ro $place $place; done
mount -t tmpfs none /dev/shm
mkdir -p {private}
for place in {private}; do mount -t tmpfs -o mode=755 none $place; done
hostname {name}
ip link set lo up
echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore  # what is on lo is this machine's alone
echo up
read line   # the network is there
/usr/sbin/sshd -f {folder}/sshd_config -E {folder}/sshd.log
echo ready
while true; do sleep 3600 & wait $!; done   # bash, as the first process, buries whoever lost his parent
"""

SSHD_CONFIG = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
PidFile none
MaxStartups 100
"""


@cache
def missing() -> str:
    """Why such machines cannot be had here; empty where they can."""
    if os.geteuid() != 0:
        return "namespaces with an sshd each need root"
    tools = [
        f"{tool} (Debian's {package})"
        for tool, package in TOOLS.items()
        if shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None
    ]
    if tools:
        return f"not installed: {', '.join(tools)}"
    tried = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--net", "ip", "link", "add", "type", "veth"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if tried.returncode == 0 else f"this machine gives no namespaces: {tried.stderr.strip()}"


TOOLS = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "rsync": "rsync",
    "ip": "iproute2",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "nsenter": "util-linux",
    "curl": "curl",
    "pkill": "procps",
}


@dataclass(frozen=True)
class Machine:
    """A machine that is on. `pid` is its first process, as it is called out here."""

    name: str
    address: str
    folder: Path
    process: subprocess.Popen[str]
    pid: int

    @property
    def home(self) -> Path:
        """Its home folder, seen from here."""
        return self.folder / "home"

    def command(self, *command: str, folder: str = str(ROOT), **environment: str) -> list[str]:
        """A command line that runs a command on this machine, in a login's environment."""
        shell = {"PATH": PATH, "HOME": HOME, "LANG": "C.UTF-8"} | environment
        return [
            *("nsenter", "--target", str(self.pid), "--pid", "--mount", "--net", "--uts"),
            *(
                "env",
                "-i",
                "--default-signal=INT",
                "-C",
                folder.replace("~", HOME),
                *(f"{name}={value}" for name, value in shell.items()),
            ),
            *command,
        ]

    def run(
        self, *command: str, folder: str = str(ROOT), stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*command, folder=folder, **environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
            input=stdin,
        )

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """A command in the background; what it says goes into a file beside the machine's home folder."""
        log = (self.folder / f"{len(list(self.folder.glob('*.log')))}.log").open("w")
        line = self.command(*command, **environment)
        return subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True)

    @staticmethod
    def interrupt(started: subprocess.Popen[str]) -> None:
        """Ctrl-C for what `start` gave: the command is the child of what entered the machine for it."""
        for child in Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGINT)

    def move_to(self, *addresses: str) -> None:
        """Gives it these addresses in place of its own; all others are then on the same cable."""
        _ip(self, "addr flush dev eth0")
        for address in addresses:
            _ip(self, f"addr add {address}/32 dev eth0")
        _ip(self, f"route replace default dev eth0 src {addresses[0]}")

    def let_in(self, public_key: str) -> None:
        """Lets the owner of a key in."""
        with (self.folder / "authorized_keys").open("a") as keys:
            keys.write(public_key.strip() + "\n")

    def cut_off(self) -> None:
        """Takes its network cable out."""
        self.run("ip", "link", "set", "eth0", "down")

    def pull_the_plug(self) -> None:
        """Ends every process of it at once: they all end with their namespace's first."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait(30)


PATH = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Lan:
    """Machines on one network; `folder` keeps their homes. Ends them all at `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "key"
        self.machines: list[Machine] = []
        _make_key(self.key)

    def start(self, name: str, prepare: Callable[[Path], None] = lambda home: None) -> Machine:
        """Turns a machine on: the first is the laptop, with the bridge. `prepare` furnishes its home folder."""
        folder = self.folder / name
        (folder / "home").mkdir(parents=True)
        prepare(folder / "home")
        _make_key(folder / "host_key")
        (folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=folder))
        shutil.copy(f"{self.key}.pub", folder / "authorized_keys")
        (folder / "passwd").write_text(f"{USER}:x:0:0::{HOME}:/bin/bash\n{Path('/etc/passwd').read_text()}")
        sockets = f"/tmp/ray_ssh_{hashlib.sha256(USER.encode()).hexdigest()[:10]}"  # of ssh, kept open by `ray up`
        private = f"/tmp/ray {sockets} /run/sshd"
        boot = BOOT.format(folder=folder, home=HOME, root=ROOT, venv=sys.prefix, name=name, private=private)
        flags = ("--kill-child=KILL", "--fork", "--pid", "--mount", "--mount-proc", "--net", "--uts")
        process = subprocess.Popen(
            ["unshare", *flags, "bash", "-c", boot],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "boot.log").open("w"),
            text=True,
            preexec_fn=_die_with_parent,
        )
        assert process.stdin
        assert process.stdout
        _expect(process, "up", folder)
        pid = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
        machine = Machine(name, f"10.77.0.{len(self.machines) + 1}", folder, process, pid)
        self.machines.append(machine)
        self._plug_in(machine)
        process.stdin.write("\n")
        process.stdin.flush()
        _expect(process, "ready", folder)
        return machine

    def _plug_in(self, machine: Machine) -> None:
        laptop = self.machines[0]
        number = len(self.machines)
        if machine is laptop:
            _ip(laptop, "link add eth0 type bridge")
        else:
            _ip(laptop, f"link add port{number} type veth peer name eth0 netns {machine.pid}")
            _ip(laptop, f"link set port{number} master eth0 up")
        _ip(machine, f"addr add {machine.address}/24 dev eth0")
        _ip(machine, "link set eth0 up")
        _ip(machine, "route add default dev eth0")  # without one, Ray takes 127.0.0.1 for the machine's address

    def close(self) -> None:
        for machine in self.machines:
            machine.process.kill()
            machine.process.wait(30)


def _ip(machine: Machine, words: str) -> None:
    enter = ("nsenter", "--target", str(machine.pid), "--net")
    subprocess.run([*enter, "ip", *words.split()], check=True, capture_output=True)


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def _expect(process: subprocess.Popen[str], word: str, folder: Path) -> None:
    assert process.stdout
    line = process.stdout.readline().strip()
    if line != word:
        raise RuntimeError(f"{folder.name} did not start: {line} {(folder / 'boot.log').read_text()}")


def _die_with_parent() -> None:
    """In a new process: ends it when the tests end, however they do (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Raises TimeoutError where the condition does not hold in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.5)
