"""The speed of a training step: raylm beside PyTorch and Keras at the same work, and beside the machine's own limit.

pip install torch && python jobs/bench_step.py --shapes small medium large        about twelve minutes on two cores
python jobs/bench_step.py --shapes awd wide lm1b --contenders raylm torch product

Each contender is a process of its own that computes a few steps when asked; they take turns, round after round, so
that a machine that drifts drifts for all, and the others sleep meanwhile. The figures are medians over rounds. The
work: forward, backward, clip by the norm, update, dropout as the recipe has it, on the same Zipf-distributed ids. The
limit is a product of two 2048 x 2048 float32 matrices in TensorFlow, taking its turns like everyone else. Memory is the
process's most, above its imports. `awd` is without DropConnect and regularization in PyTorch, with them in raylm;
`wide` is medium with 100,000 words, all of them in the loss; `lm1b` draws its words and projects.
`trainer` is raylm's whole loop without Ray: shards, read-ahead, guard, snapshots, checkpoints, events.

On a GPU every contender computes there, in float32 in full, and memory is the GPU's. This was never run on one:

python jobs/bench_step.py --contenders raylm "raylm cudnn" "raylm fused" torch "torch compiled" product

`raylm` takes the kernel that a run would take, `raylm cudnn` does not start where its trial fails.

What was tried for memory and time, against the code before it, in alternation, machine busy (processor time):

tried                                               expected            came
pieces of 16 MiB of logits, their slices no copies  wide 1.0 GB         1,625 -> 1,180 MB, time 0.99
target taken from the logits' gradient in place,    awd -10 %, small    906 -> 834 MB, 159 -> 140 MB,
  nothing of the backward pass before the loss        -2 % of the time    time 0.99 awd, 0.98 small
glibc's allocator, not oneDNN's pool, which gives   wide 0.9 GB, no     1,211 for 1,102 MB after three steps; awd 1,071
  nothing back (TF_ONEDNN_USE_SYSTEM_ALLOCATOR=1)     change in time      for 938; time 1.06 awd, 1.12 lm1b: left
small's loss in fewer passes over its 16 MB of      0.7 of the loss's   0.99; 0.96 with exp and sum under XLA; pieces
  logits, or in pieces that caches hold               time                of 4 MB 1.02, 2 MB 1.04: left. Its three
                                                                          products alone are 0.83 of it
the softmax's norm from products of rows, so that   -260 MB             not tried: two products more, of four
  its gradient is not held
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from step_contenders import CONTENDERS, PRODUCT_SIDE, SHAPES, Shape

USUAL = ["raylm", "trainer", "torch", "torch compiled", "keras", "product"]


@dataclass(frozen=True)
class Measured:
    """One contender on one shape: seconds a step of each round, and its memory in bytes above the bare imports."""

    seconds: list[float]
    memory: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Contender:
    """A process that steps when asked."""

    def __init__(self, name: str, shape: str, folder: Path) -> None:
        self.name = name
        command = [sys.executable, str(Path(__file__).with_name("step_contenders.py")), name, shape, str(folder)]
        errors = (folder / f"{name}-{shape}.log").open("wb")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=_environment()
        )
        self.problem = "" if self._line() == "ready" else Path(errors.name).read_text().strip().rpartition("\n")[2]

    def steps(self, count: int) -> tuple[float, int]:
        """Seconds a step over `count` of them, and the memory so far in bytes above the imports."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        seconds, memory = json.loads(self._line())
        return seconds, memory

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def measure(shape: str, names: list[str], rounds: int, folder: Path, say: Console) -> dict[str, Measured]:
    """Every contender that starts, in alternation; the first turn of each compiles and does not count."""
    folder.mkdir()
    contenders: list[Contender] = []
    try:
        for name in names:
            if name == "keras" and not SHAPES[shape].plain:
                continue
            say.print(f"[dim]{shape}: starting {name}[/dim]")
            contender = Contender(name, shape, folder)
            if contender.problem:
                say.print(f"{shape}: {name} did not start: {contender.problem}")
                contender.close()
                continue
            contender.steps(SHAPES[shape].block)
            contenders.append(contender)
        figures: dict[str, list[tuple[float, int]]] = {contender.name: [] for contender in contenders}
        for round_ in range(rounds):
            for contender in contenders if round_ % 2 else reversed(contenders):
                figures[contender.name].append(contender.steps(SHAPES[shape].block))
        return {
            name: Measured([seconds for seconds, _ in each], max(memory for _, memory in each))
            for name, each in figures.items()
        }
    finally:
        for contender in contenders:
            contender.close()


def ratio(one: Measured, other: Measured) -> float:
    """How many times faster the first is: the median over rounds of the pair's ratio."""
    return statistics.median(theirs / ours for ours, theirs in zip(one.seconds, other.seconds, strict=True))


def table(shape: str, results: dict[str, Measured]) -> Table:
    """One row a contender."""
    flops = SHAPES[shape].flops
    product = results.get("product")
    limit = 2 * PRODUCT_SIDE**3 / product.median if product else None
    shown = Table(title=f"{shape}: {SHAPES[shape].describe()}")
    for column in ("", "ms a step", "raylm is faster by", "GFLOP/s", "of the product's rate", "memory MB"):
        shown.add_column(column, justify="left" if not column else "right")
    ours = results["raylm"]
    for name, each in results.items():
        rate = flops / each.median if name != "product" else limit or 0
        shown.add_row(
            name,
            f"{1000 * each.median:.1f}",
            "" if name in ("raylm", "product") else f"{ratio(ours, each):.2f} x",
            f"{rate / 1e9:.0f}",
            f"{100 * rate / limit:.0f} %" if limit else "",
            f"{each.memory / 1e6:.0f}",
        )
    return shown


class Row(NamedTuple):
    """What `--output` holds of each contender."""

    shape: str
    contender: str
    milliseconds: float
    rounds: list[float]
    memory_bytes: int


def main() -> None:
    """Prints a table for each shape, and writes the figures where asked."""
    options = _options()
    say = Console()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-step-") as folder:
        for shape in options.shapes:
            results = measure(shape, options.contenders, options.rounds, Path(folder) / shape, say)
            say.print(table(shape, results))
            rows += [
                Row(shape, name, 1000 * each.median, each.seconds, each.memory)._asdict()
                for name, each in results.items()
            ]
    if options.output is not None:
        options.output.write_text(json.dumps({"cores": os.cpu_count(), "rows": rows}, indent=1) + "\n")


def _environment() -> dict[str, str]:
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="raylm's training step beside PyTorch's and Keras's.")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["small", "medium", "large"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=USUAL)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    return parser.parse_args()


__all__ = ["Shape"]

if __name__ == "__main__":
    main()
