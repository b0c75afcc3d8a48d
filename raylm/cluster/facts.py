"""What one machine has, found out on that machine: versions, GPUs, NCCL, room on the disk, storage and data in reach.

The module travels to the nodes of a cluster by value, so that one where raylm is missing or another one is told of, not
failed on. So it imports the standard library alone, and raylm only where it looks at it; what it finds is plain data.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_TENSORFLOW = (
    "import json, tensorflow as tf; print(json.dumps([tf.__version__, len(tf.config.list_physical_devices('GPU'))]))"
)


class Examiner:
    """Collects on the node that it lies on, as an actor."""

    def clock(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def collect(self, question: dict[str, Any]) -> dict[str, Any]:
        return collect(question)


def collect(question: dict[str, Any]) -> dict[str, Any]:
    """The facts of this machine, fields of `raylm.cluster.checkup.NodeFacts`.

    question: `storage`, a folder or URI; `marks`, files that a machine which shares the folders finds; `datasets`, what
    is to be opened; `seconds` for the import of TensorFlow.
    """
    gpus, problem = tensorflow_gpus(question["seconds"])
    storage = question["storage"]
    return {
        "versions": versions(),
        "machine_gpus": machine_gpus(),
        "tensorflow_gpus": gpus,
        "tensorflow_problem": problem,
        "nccl": nccl(),
        "free_bytes": None if "://" in storage else shutil.disk_usage(existing(storage)).free,
        "storage_problem": storage_problem(storage),
        "missing_marks": [mark for mark in question["marks"] if not os.path.exists(mark)],
        "dataset_problem": dataset_problem(question["datasets"]),
    }


def versions() -> dict[str, str]:
    """Of Python and of what must be the same on every node; empty where it is missing."""
    found = {"Python": platform.python_version()}
    for name, package in {"Ray": "ray", "TensorFlow": "tensorflow"}.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            found[name] = ""
    try:
        found["raylm"] = str(importlib.import_module("raylm").__version__)
    except ImportError:
        found["raylm"] = ""
    return found


def machine_gpus() -> list[str]:
    """Names of the GPUs that the driver shows, each with its memory in MiB: `NVIDIA L4, 23034`."""
    try:
        asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def tensorflow_gpus(seconds: float) -> tuple[int | None, str]:
    """GPUs that TensorFlow sees, or why it cannot be asked. In a process of its own, which Ray hides none from."""
    hidden = "" if os.environ.get("CUDA_VISIBLE_DEVICES") == "-1" else "CUDA_VISIBLE_DEVICES"
    environment = {name: value for name, value in os.environ.items() if name != hidden}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TENSORFLOW], env=environment, capture_output=True, text=True, timeout=seconds
        )
        return int(json.loads(done.stdout.splitlines()[-1])[1]), ""
    except subprocess.TimeoutExpired:
        return None, f"its import took longer than {seconds:g} s"
    except (OSError, ValueError, LookupError):
        return None, (done.stderr.strip().splitlines() or ["it cannot be imported"])[-1][:200]


def nccl() -> str:
    """The version of the NCCL that TensorFlow finds; empty where there is none."""
    try:
        spec = importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        spec = None
    folders = [*(spec.submodule_search_locations or ())] if spec else []
    for library in [*(f"{folder}/lib/libnccl.so.2" for folder in folders), "libnccl.so.2"]:
        try:
            number = ctypes.c_int()
            ctypes.CDLL(library).ncclGetVersion(ctypes.byref(number))
        except (OSError, AttributeError):
            continue
        return f"{number.value // 10000}.{number.value // 100 % 100}.{number.value % 100}"
    return ""


def existing(place: str) -> Path:
    """A folder, or the nearest above it that is there."""
    folder = Path(place)
    return folder if folder.exists() else existing(str(folder.parent))


def storage_problem(place: str) -> str:
    """Why a run could not be kept there; empty where a file could be written and removed."""
    try:
        if "://" not in place:
            with tempfile.TemporaryFile(dir=existing(place)):
                return ""
        from raylm.data.upload import Destination  # here: this node may have another raylm, or none

        name = f"doctor-{secrets.token_hex(4)}"
        store = Destination(place, waits=(0.5,))
        store.write(name, b"")
        store.remove(name)
    except Exception as error:  # one of raylm's own, of a raylm that may be another
        return f"{type(error).__name__}: {error}" if isinstance(error, OSError | ImportError) else str(error)
    return ""


def dataset_problem(places: list[str]) -> str:
    """Why one of the datasets cannot be opened; empty where all can."""
    try:
        from raylm.data.dataset import open_dataset  # here: this node may have another raylm, or none

        for place in places:
            open_dataset(place)
    except Exception as error:
        return str(error)
    return ""
