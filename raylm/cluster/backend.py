"""Ray Train's backend for TensorFlow, without TensorFlow: it only tells each worker where the others are.

`ray.train.tensorflow.TensorflowTrainer` does the same, but importing it imports TensorFlow and Keras in the driver
and in the controller before any worker starts; that takes longer than everything else in a start.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig


@dataclass
class TensorFlowConfig(BackendConfig):
    """Names the backend to Ray Train."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _TensorFlowBackend


class _TensorFlowBackend(Backend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Sets `TF_CONFIG` on each worker, as MultiWorkerMirroredStrategy reads it."""
        addresses = worker_group.execute(_free_address)
        ray.get(
            [
                worker_group.execute_single_async(rank, _set_tf_config, addresses, rank)
                for rank in range(len(worker_group))
            ]
        )


def _free_address() -> str:
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _set_tf_config(addresses: list[str], rank: int) -> None:
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}})
