"""Small states for the checkpoint tests: of one step there is exactly one."""

from pathlib import Path

import numpy as np

from raylm.checkpoint.store import CheckpointStore, Snapshot

CONFIG = {"optimizer": {"learning_rate": 1.0}, "shards": (1, 2)}
DATASET = "sha256:0123"


def snapshot_at(step: int, variant: int = 0, size: int = 3) -> Snapshot:
    random = np.random.Generator(np.random.Philox(key=[step, variant]))
    return Snapshot(
        step=step,
        weights={
            "softmax/weight": random.standard_normal((size, 5), np.float32),
            "embedding": random.standard_normal((5, size), np.float32),
        },
        slots={"embedding/m": random.standard_normal((5, size), np.float32), "updates": np.int64(step)},
        carry={"layer0/h": random.standard_normal((20, 2), np.float32), "layer0/c": np.zeros((20, 2), np.float32)},
        cursor={"epoch": 1, "position": step, "skips": [[3, 5]]},
        ledger={"rollbacks": variant},
        rng={"seed": 7},
        extra={"valid_nats": 5.0 - step / 1000},
    )


def save(store: CheckpointStore, snapshot: Snapshot) -> Path:
    return store.save(snapshot, config=CONFIG, dataset_id=DATASET)
