"""What cluster.yaml's machines are in the tests: their image, and the cluster of this LAN that it is derived to.

Of the commands nothing is changed. What they would fetch from the internet is here already: the home folder of a new
machine holds what the image of a cloud may as well hold, an environment with the packages that these tests run with,
and pip is told to look nowhere else. TensorFlow's CUDA libraries (3 GB) are wheels of the right names and versions with
nothing in them, so that pip resolves `.[gpu]` against constraints.txt for real.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import yaml
from cluster_machines import HOME, ROOT, USER, Lan, Machine, wait_until
from packaging.requirements import Requirement

Config = dict[str, Any]

BASHRC = """
export PATH=~/bin:$PATH
export PIP_NO_INDEX=1 PIP_FIND_LINKS={wheels} PIP_NO_BUILD_ISOLATION=0 PIP_NO_COMPILE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
"""  # PIP_NO_BUILD_ISOLATION=0 means that there is none


def furnish(home: Path, wheels: Path, environment: dict[str, str]) -> None:
    """Makes a home folder what the image of a cloud's machine would be, with an environment beside pip's."""
    packages = home / "raylm-venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "installed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    _script(home / "bin" / "python3", f'#!/bin/sh\nexec {Path(sys.base_prefix) / "bin" / "python3"} "$@"\n')
    for name, module in {"ray": "ray.scripts.scripts", "pip": "pip._internal.cli.main"}.items():
        program = f"#!{HOME}/raylm-venv/bin/python\nimport sys\nfrom {module} import main\nsys.exit(main())\n"
        _script(home / "raylm-venv" / "bin" / name, program)
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()]
    (home / ".bashrc").write_text(BASHRC.format(wheels=wheels) + "".join(lines))


def told_resources(resources: dict[str, float]) -> dict[str, str]:
    """How `ray up` tells a machine what it has, as it does everywhere but on a local cluster."""
    return {"RAY_OVERRIDE_RESOURCES": json.dumps(resources)}


def write_cuda_wheels(folder: Path, constraints: Path) -> None:
    """Empty wheels of what `tensorflow[and-cuda]` adds, at the versions of constraints.txt."""
    folder.mkdir()
    pins = dict(line.split("==") for line in constraints.read_text().splitlines() if "==" in line)
    for line in requires("tensorflow") or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker and marker.evaluate({"extra": "and-cuda"}) and not marker.evaluate({"extra": ""}):
            _write_empty_wheel(folder, requirement.name, pins[requirement.name])


def _write_empty_wheel(folder: Path, name: str, version: str) -> None:
    stem = f"{name.replace('-', '_')}-{version}"
    info = {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {
        path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        for path, text in info.items()
    }
    record = [f"{path},sha256={digests[path]},{len(text)}" for path, text in info.items()]
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for path, text in info.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{stem}.dist-info/RECORD", "\n".join([*record, f"{stem}.dist-info/RECORD,,"]) + "\n")


def _script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def read_cluster_yaml() -> Config:
    return dict(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def remember_head(config: Config, head: Machine) -> None:
    """Tells the autoscaler that the head is there, where the local provider keeps such things.

    The first autoscaler wrote this by itself; the second, which `ray up` starts since Ray 2.50, does not, and without
    it launches nothing. On a cloud the provider is asked.
    """
    head.run("tee", f"/tmp/ray/cluster-{config['cluster_name']}.state", stdin=json.dumps({head.address: HEAD_STATE}))


HEAD_STATE = {"tags": {"ray-node-type": "head", "ray-user-node-type": "local.cluster.node"}, "state": "running"}


def local_form(config: Config, head: Machine, workers: list[Machine], key: Path, storage: str) -> Config:
    """cluster.yaml for machines that are there: provider, key and addresses replaced, all commands as they are.

    workers: one more than there will be nodes, since the autoscaler counts the head as one of a local cluster's.
    storage: what stands for the bucket that each user fills in.
    """
    gone = ("available_node_types", "head_node_type", "max_workers")
    local = {name: value for name, value in config.items() if name not in gone}
    local["provider"] = {
        "type": "local",
        "head_ip": head.address,
        "worker_ips": [worker.address for worker in workers],
    }
    local["auth"] = {"ssh_user": config["auth"]["ssh_user"], "ssh_private_key": str(key)}
    assert local["auth"]["ssh_user"] == USER
    local["setup_commands"] = [
        command.replace("s3://YOUR-BUCKET/raylm", storage) for command in config["setup_commands"]
    ]
    return local


def write_text(folder: Path) -> None:
    """A corpus of the user's own."""
    folder.mkdir()
    for split, lines in (("train", 400), ("valid", 20), ("test", 20)):
        text = "\n".join(f"the {i % 7} dogs saw {i % 3} cats and {i % 11} birds ran" for i in range(lines))
        (folder / f"{split}.txt").write_text(text + "\n")


TINY = (
    *("--data.lanes", "4", "--data.window", "5", "--model.hidden", "8", "--report.sample-every", "0"),
    *("--steps", "40", "--report.log-every", "1", "--report.plain-seconds", "1"),
)
"""Options of a run that takes a second."""


AWS = {
    "AWS_ENDPOINT_URL": "http://10.77.0.1:5000",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-west-2",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What every machine must know to take moto for AWS; an instance profile would give the keys."""


class Moto:
    """AWS's interfaces on the laptop."""

    def __init__(self, laptop: Machine) -> None:
        self._laptop = laptop
        laptop.start(sys.executable, "-m", "moto.server", "-H", laptop.address, "-p", "5000")
        wait_until(lambda: laptop.run("curl", "-s", AWS["AWS_ENDPOINT_URL"]).returncode == 0, 180, "moto")

    def ask(self, service: str, operation: str, **arguments: Any) -> Any:
        """What boto3 answers, as plain data."""
        call = f"getattr(boto3.client({service!r}), {operation!r})(**{arguments!r})"
        shown = "lambda value: value.read().decode() if hasattr(value, 'read') else str(value)"
        done = self._laptop.run(
            sys.executable, "-c", f"import boto3, json; print(json.dumps({call}, default={shown}))", **AWS
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


class Cluster:
    """The user's laptop, a head, as many workers as are asked for and a spare one. `up` is `ray up`."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.text = folder / "text"
        write_text(self.text)
        self.lan = Lan(folder)
        config = read_cluster_yaml()
        write_cuda_wheels(folder / "wheels", ROOT / "constraints.txt")
        self.laptop = self.lan.start("laptop")
        head = config["available_node_types"][config["head_node_type"]]["resources"]
        self.head = self.lan.start("head", lambda home: furnish(home, folder / "wheels", AWS | told_resources(head)))
        self.workers = [
            self.lan.start(
                f"worker{number}", lambda home: furnish(home, folder / "wheels", AWS | told_resources({"CPU": 1}))
            )
            for number in range(workers + 1)
        ]
        self.config = folder / "cluster.yaml"
        local = local_form(config, self.head, self.workers, self.lan.key, str(self.runs))
        self.config.write_text(yaml.safe_dump(local))
        remember_head(local, self.head)
        self._nodes = 1 + workers

    def up(self) -> None:
        """`ray up`, and the way to the dashboard that a user opens; returns when every worker has joined."""
        for command in (("ray", "get-auth-token", "--generate"), ("ray", "up", "-y", str(self.config))):
            done = self.user(*command)
            assert done.returncode == 0, done.stdout + done.stderr
        tunnel = [self.start("ray", "dashboard", str(self.config))]
        wait_until(lambda: self._reached(tunnel), 240, "the dashboard through its tunnel")
        wait_until(lambda: self.alive() == self._nodes, 400, f"{self._nodes} nodes alive")

    def _reached(self, tunnel: list[subprocess.Popen[str]]) -> bool:
        if tunnel[-1].poll() is not None:  # as a user would, once more
            tunnel.append(self.start("ray", "dashboard", str(self.config)))
        return self.user("ray", "job", "list").returncode == 0

    def alive(self) -> int:
        """Nodes that Ray counts on."""
        status = self.head.run("bash", "-c", "source ~/.bashrc; ray status").stdout
        return sum(int(line.split()[0]) for line in status.splitlines() if line.endswith("local.cluster.node"))

    def user(self, *command: str, folder: str = str(ROOT), **environment: str) -> subprocess.CompletedProcess[str]:
        """A command that the user types on the laptop."""
        return self.laptop.run(*command, folder=folder, **(USERS_SHELL | environment))

    def submit(self, *entrypoint: str) -> subprocess.CompletedProcess[str]:
        return self.user("ray", "job", "submit", "--", *entrypoint)

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A command that the user leaves running."""
        return self.laptop.start(*command, **USERS_SHELL)

    def close(self) -> None:
        self.lan.close()


USERS_SHELL = {
    "RAY_AUTH_MODE": "token",
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265",
    "TMPDIR": HOME,  # `ray up` keeps there what it found out about the provider, for the next time
}
