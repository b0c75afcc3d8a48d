"""Runs the real training loop on a tiny model, without Ray: the runs of one topology share a process a worker.

As a program: `python guard_runs.py FOLDER RANK REPLICAS PORT...`, {"runs": [[name, config]…]} on standard input; each
run's summary comes back as one JSON line. One port: one worker.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TINY: dict[str, Any] = {
    "steps": 12,
    "epochs": 10,
    "data": {"lanes": 8, "window": 5},
    "model": {"layers": 2, "hidden": 8},
    "optimizer": {"name": "adam", "clip_norm": 1.0},
    "schedule": {"kind": "constant", "learning_rate": 0.01},
    "guard": {"snapshot_every": 4},
    "checkpoint": {"every": 100},
    "report": {"sample_every": 0, "log_every": 1},
}
VOCABULARY = 30


def config(**changes: Any) -> dict[str, Any]:
    """TINY with changes, sections merged: config(steps=9, guard={"ring": 2})."""
    return {
        key: {**TINY.get(key, {}), **changes.get(key, {})}
        if isinstance(TINY.get(key, changes.get(key)), Mapping)
        else changes.get(key, TINY.get(key))
        for key in {**TINY, **changes}
    }


def run_all(
    folder: Path,
    configs: Mapping[str, Mapping[str, Any]],
    replicas: int = 1,
    workers: int = 1,
    kill_at_rollback: int = 0,
    timeout: float = 280,
) -> dict[str, dict[str, Any]]:
    """Each run's summary by name; their folders are folder / name.

    kill_at_rollback: the rollback in which rank 0 dies by SIGKILL; then there are no summaries.
    """
    processes = start_all(folder, configs, replicas, workers, kill_at_rollback)
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if kill_at_rollback:
        assert processes[0].returncode == -signal.SIGKILL, outputs[0][1][-3000:]
        return {}
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    summaries = [[json.loads(line) for line in output.splitlines()] for output, _ in outputs]
    assert all(len(each) == len(configs) for each in summaries), outputs
    for others in summaries[1:]:
        assert [one["state_sha256"] for one in others] == [one["state_sha256"] for one in summaries[0]]
    return dict(zip(configs, summaries[0], strict=True))


def start_all(
    folder: Path,
    configs: Mapping[str, Mapping[str, Any]],
    replicas: int = 1,
    workers: int = 1,
    kill_at_rollback: int = 0,
) -> list[subprocess.Popen[str]]:
    """The processes of `run_all`, under way."""
    ports = [str(_free_port()) for _ in range(workers)]
    command = [sys.executable, __file__, str(folder)]
    jobs = json.dumps({"runs": list(configs.items()), "kill_at_rollback": kill_at_rollback})
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(replicas), *ports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(workers)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(jobs)
        process.stdin.close()
        process.stdin = None
    return processes


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _main(folder: Path, rank: int, replicas: int, ports: list[str]) -> None:
    os.environ.update(TF_USE_LEGACY_KERAS="1", TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")
    if len(ports) > 1:
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})
    from made_datasets import make_dataset, random_rows

    from raylm.config import RunConfig
    from raylm.data.dataset import open_dataset
    from raylm.training.datasets import Datasets
    from raylm.training.loop import Outside, train
    from raylm.training.topology import Topology

    text = folder / f"text-{rank}"
    if text.exists():
        dataset = open_dataset(text)
    else:
        tokens, lengths = random_rows(120, vocabulary=VOCABULARY)
        dataset = make_dataset(text, tokens, lengths, VOCABULARY)
    jobs = json.load(sys.stdin)

    def publish(event: Mapping[str, Any]) -> None:
        if event["kind"] == "rollback" and event["rollbacks"] == jobs["kill_at_rollback"]:
            os.kill(os.getpid(), signal.SIGKILL)

    outside = Outside(publish, lambda: False, lambda _, __: None)
    for name, fields in jobs["runs"]:
        settings = RunConfig.model_validate(fields)
        run_folder = folder / name
        topology = Topology(rank, len(ports), replicas, settings.data.lanes, settings.cluster.fixed_shards)
        summary = train(settings, Datasets("made", dataset, dataset, dataset), topology, run_folder, outside)
        print(json.dumps(summary.to_json()), flush=True)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
