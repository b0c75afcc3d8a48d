"""How fast data comes: raylm's streams and sentences, beside other libraries on the same corpus.

    pip install -e . && python jobs/bench_data.py                    # raylm alone
    pip install grain datasets litdata && python jobs/bench_data.py  # and beside those of them that are there

All read one synthetic corpus (Zipf-like ids of 10,000 words) from a warm page cache in this process. Rates are
millions of targets a second of CPU time of one core; `wall` is the same by the clock, for libraries that work in
other processes. Peers give batches of 64 rows of 36 ids: none of them has lanes that carry on.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from bench_peers import PEERS
from rich.console import Console
from rich.table import Table

from raylm.data.cursor import Cursor
from raylm.data.dataset import Dataset, open_dataset
from raylm.data.options import PrepareOptions
from raylm.data.prepare import prepare
from raylm.data.reader import Reader
from raylm.data.sentences import Sentences
from raylm.data.streams import Streams
from raylm.data.vocabulary import Vocabulary
from raylm.data.writer import DatasetWriter

LANES, WINDOW, WORDS = 64, 35, 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000_000, help="size of the corpus")
    parser.add_argument("--seconds", type=float, default=5.0, help="longest time for each peer")
    parser.add_argument("--peers", nargs="*", default=sorted(PEERS), help="which other libraries")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raylm-bench-"))
    try:
        figures = list(measure(folder, options.tokens, options.seconds, options.peers))
    finally:
        shutil.rmtree(folder)
    table = Table("what", "figure", "unit", title=f"{options.tokens:,} tokens, {LANES} lanes, windows of {WINDOW}")
    for name, figure, unit in figures:
        table.add_row(name, figure if isinstance(figure, str) else f"{figure:,.2f}", unit)
    Console().print(table)
    print(json.dumps({name: figure for name, figure, _ in figures}))


Figure = tuple[str, float | str, str]


def measure(folder: Path, tokens: int, seconds: float, peers: list[str]) -> Iterator[Figure]:
    """Every figure, one after the other."""
    ids, lengths = make_corpus(tokens)
    begin = time.process_time()
    with DatasetWriter(folder / "dataset", Vocabulary(tuple(word(n) for n in range(WORDS)))) as writer:
        writer.append(ids, lengths)
        writer.commit()
    yield "raylm: write ids", tokens / (time.process_time() - begin) / 1e6, "M tokens/s/core"
    yield from measure_prepare(folder, ids[: min(tokens, 5_000_000)])
    before = anonymous_memory()
    yield from measure_streams(folder / "dataset")
    yield from measure_sentences(folder / "dataset")
    yield "raylm: memory above the page cache, all of the above", anonymous_memory() - before, "MB"
    for name in peers:
        try:
            first, cpu, wall = PEERS[name](folder / name, ids, LANES, WINDOW, seconds)
        except ImportError as missing:
            yield name, f"not installed ({missing.name})", ""
            continue
        yield f"{name}: time to first batch", first * 1e3, "ms"
        yield f"{name}: batches", cpu / 1e6, "M targets/s/core"
        yield f"{name}: batches, wall", wall / 1e6, "M targets/s"


def make_corpus(tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and row lengths of a corpus like text: words by Zipf's law, rows of 21 tokens on average."""
    random = np.random.default_rng(0)
    lengths = random.integers(2, 41, tokens // 20)
    lengths = lengths[: np.searchsorted(np.cumsum(lengths), tokens)]
    shares = 1 / np.arange(1, WORDS)
    ids = 1 + random.choice(WORDS - 1, int(lengths.sum()), p=shares / shares.sum())
    ids[np.cumsum(lengths) - 1] = 0
    return ids.astype(np.uint16), lengths


def word(number: int) -> str:
    return ("<eos>", "<unk>")[number] if number < 2 else f"w{number:x}"


def measure_prepare(folder: Path, ids: np.ndarray) -> Iterator[Figure]:
    text = folder / "text.txt"
    words = np.array([*(word(n) for n in range(1, WORDS)), "\n"])
    text.write_text(" ".join(words[ids.astype(np.int64) - 1]).replace(" \n ", "\n"))
    begin = time.process_time()
    result = prepare([text], folder / "prepared", PrepareOptions(tokenizer="words"))
    yield "raylm: prepare words", result.tokens / (time.process_time() - begin) / 1e6, "M tokens/s/core"


def measure_streams(path: Path) -> Iterator[Figure]:
    def streams(dataset: Dataset) -> Streams:
        return Streams(dataset, lanes=LANES, window=WINDOW, seed=1)

    begin = time.perf_counter()
    reader = streams(open_dataset(path))
    _, cursor = reader.read(reader.start())
    yield "raylm: time to first window", (time.perf_counter() - begin) * 1e3, "ms"
    begin = time.process_time()
    epoch_of_superbatches(reader)
    yield "raylm: superbatches of 32 windows, first epoch (each chunk checked)", rate(reader, begin), "M targets/s/core"
    begin = time.process_time()
    epoch_of_superbatches(reader)
    yield "raylm: superbatches of 32 windows", rate(reader, begin), "M targets/s/core"
    begin = time.process_time()
    epoch_of_windows(reader)
    yield "raylm: single windows", rate(reader, begin), "M targets/s/core"
    begin = time.process_time()
    with Reader(reader, reader.start()) as ahead:
        while ahead.cursor.epoch < 1:
            ahead.read()
    yield "raylm: single windows through a reading-ahead thread", rate(reader, begin), "M targets/s/core"
    chunk_order = Streams(reader.dataset, lanes=LANES, window=WINDOW, seed=1, order="chunk")
    begin = time.process_time()
    epoch_of_windows(chunk_order)
    yield "raylm: single windows in chunk order", rate(chunk_order, begin), "M targets/s/core"
    for percent in (1, 50, 99):
        saved = json.dumps(reader.at(reader.windows_per_epoch(0) * percent // 100).to_json())
        begin = time.perf_counter()
        fresh = streams(open_dataset(path))
        restored = Cursor.from_json(json.loads(saved))
        fresh.check(restored)
        fresh.read(restored)
        yield f"raylm: resume at {percent} % of an epoch", (time.perf_counter() - begin) * 1e3, "ms"
    yield "raylm: size of a cursor", float(len(json.dumps(cursor.to_json()))), "bytes"


def measure_sentences(path: Path) -> Iterator[Figure]:
    begin = time.perf_counter()
    sentences = Sentences(open_dataset(path), rows=LANES, seed=1)
    sentences.read(sentences.start())
    yield "raylm: time to first batch of sentences", (time.perf_counter() - begin) * 1e3, "ms"
    begin = time.process_time()
    epoch_of_windows(sentences)
    yield "raylm: padded sentences", rate(sentences, begin), "M targets/s/core"


def epoch_of_superbatches(reader: Streams) -> None:
    window = 0
    while window < reader.windows_per_epoch(0):
        window += len(reader.superbatch(0, window).inputs)


def epoch_of_windows(reader: Streams | Sentences) -> None:
    cursor = reader.start()
    while cursor.epoch < 1:
        _, cursor = reader.read(cursor)


def rate(reader: Streams | Sentences, begin: float) -> float:
    return reader.targets_per_epoch / (time.process_time() - begin) / 1e6


def anonymous_memory() -> float:
    """Megabytes of this process that no file backs."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("RssAnon")) / 1024


if __name__ == "__main__":
    main()
