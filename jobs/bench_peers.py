"""Other libraries' way to batches of fixed rows of token ids, for `bench_data.py`; each is optional.

Each function writes the corpus in the library's own form, opens it, and reads batches for some seconds. It
returns the seconds to the first batch, and the targets a second by CPU time and by the clock.
"""

# mypy: disable-error-code="import-not-found,import-untyped"

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Rates = tuple[float, float, float]


def read_for(open_batches: Callable[[], Any], size: Callable[[Any], int], seconds: float) -> Rates:
    """Read batches until the time is up; `size` gives the targets of one."""
    begin = time.perf_counter()
    batches: Iterator[Any] = iter(open_batches())
    next(batches)
    first, targets = time.perf_counter() - begin, 0
    begin, cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        targets += size(batch)
        if time.perf_counter() - begin > seconds:
            break
    return first, targets / (time.process_time() - cpu), targets / (time.perf_counter() - begin)


def fixed_rows(ids: np.ndarray, window: int) -> np.ndarray:
    """The corpus as rows of window + 1 ids."""
    count = len(ids) // (window + 1)
    return ids[: count * (window + 1)].reshape(count, window + 1)


def grain(folder: Path, ids: np.ndarray, lanes: int, window: int, seconds: float) -> Rates:
    """Google's grain over a memory-mapped array."""
    from grain.python import MapDataset

    folder.mkdir()
    np.save(folder / "rows.npy", fixed_rows(ids, window))

    def batches() -> Any:
        rows = np.load(folder / "rows.npy", mmap_mode="r")
        return MapDataset.source(rows).shuffle(seed=1).batch(lanes).to_iter_dataset()

    return read_for(batches, lambda batch: batch[:, 1:].size, seconds)


def huggingface(folder: Path, ids: np.ndarray, lanes: int, window: int, seconds: float) -> Rates:
    """Hugging Face datasets: Arrow files, memory-mapped."""
    from datasets import Dataset, load_from_disk

    Dataset.from_dict({"tokens": fixed_rows(ids, window)}).save_to_disk(str(folder))

    def batches() -> Any:
        return load_from_disk(str(folder)).with_format("numpy").iter(batch_size=lanes)

    return read_for(batches, lambda batch: batch["tokens"][:, 1:].size, seconds)


def litdata(folder: Path, ids: np.ndarray, lanes: int, window: int, seconds: float) -> Rates:
    """Lightning's litdata: its token loader, no worker processes."""
    import torch
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_bytes=1 << 26, item_loader=TokensLoader(block_size=window + 1))
    for number, part in enumerate(np.array_split(ids, 100)):
        writer.add_item(number, torch.from_numpy(part.astype(np.int32)))
    writer.done()
    writer.merge(1)

    def batches() -> Any:
        dataset = StreamingDataset(str(folder), item_loader=TokensLoader(block_size=window + 1), shuffle=True)
        return StreamingDataLoader(dataset, batch_size=lanes, num_workers=0)

    return read_for(batches, lambda batch: batch[:, 1:].numel(), seconds)


def ray_data(folder: Path, ids: np.ndarray, lanes: int, window: int, seconds: float) -> Rates:
    """Ray Data from Parquet; its work is done in other processes, so only the clock says what it costs."""
    import pyarrow as pa
    import pyarrow.parquet as parquet
    import ray.data

    folder.mkdir()
    rows = fixed_rows(ids, window)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), window + 1)
    parquet.write_table(pa.table({"tokens": flat}), folder / "rows.parquet", row_group_size=1 << 16)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:

        def batches() -> Any:
            return ray.data.read_parquet(str(folder)).iter_batches(batch_size=lanes, batch_format="numpy")

        return read_for(batches, lambda batch: len(batch["tokens"]) * window, seconds)
    finally:
        ray.shutdown()


PEERS: dict[str, Callable[[Path, np.ndarray, int, int, float], Rates]] = {
    "grain": grain,
    "huggingface datasets": huggingface,
    "litdata": litdata,
    "ray data": ray_data,
}
