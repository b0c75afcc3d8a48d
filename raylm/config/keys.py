"""Keys of the configuration, `section.field`: which stay as they are when a run goes on, and which have short names."""

from __future__ import annotations

FIXED = (
    *("recipe", "name", "storage_path", "seed", "start_from", "data.", "model."),
    *("optimizer.name", "optimizer.averaging"),
)
"""What a run is made of: keys, or sections of them, that stay as they are when it goes on."""

_FREE = ("data.data_dir", "data.cache_dir", "model.kernel", "model.jit")  # where the data lie, how it is computed


def is_fixed(key: str) -> bool:
    """Whether a dotted key is of what a run is made of."""
    return key.startswith(FIXED) and key not in _FREE


SHORTCUTS: dict[str, str] = {
    "data.corpus": "corpus",
    "data.data_dir": "data-dir",
    "data.cache_dir": "cache-dir",
    "schedule.learning_rate": "learning-rate",
    "checkpoint.every": "checkpoint-every",
    "cluster.workers": "workers",
    "cluster.replicas": "replicas",
    "cluster.exact_elastic": "exact-elastic",
}
"""Short option names for the fields that are typed most."""
