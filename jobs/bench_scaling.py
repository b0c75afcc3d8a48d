"""How a training scales: raylm on one and two workers and replicas beside PyTorch's DDP with gloo, and a model of more.

pip install torch && python jobs/bench_scaling.py --recipes ptb-small ptb-medium       about eight minutes on two cores

Each contender is one process or two, pinned to a core of its own for each replica, that compute a few steps when asked.
They take turns, round after round, so that a machine that drifts drifts for all. The global batch is the recipe's for
everyone: two replicas have half of it each. `all-reduce` is the sum over the replicas alone, on tensors of a step's
shapes; its share of the step is an upper bound where it overlaps with the computation, as DDP's does.
--packings measures the sizes of cluster.pack_bytes, on two workers.

The model at the end is scaling_model.py's.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench_scaling_workers import Place
from rich.console import Console
from rich.table import Table
from scaling_model import Assumptions, configuration, model_table

MIB = 2**20
COMPRESSED = {"compressed": {"cluster": {"compress": "int16"}}}
PACKINGS = {f"{size} MiB": {"cluster": {"pack_bytes": size * MIB}} for size in (1, 4, 16, 64)} | {
    "all at once": {"cluster": {"pack_bytes": 0}}
}


@dataclass(frozen=True)
class Contender:
    """A library on so many workers × replicas; what its variants change of the recipe."""

    library: str
    workers: int
    replicas: int
    variants: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})

    def name(self, variant: str) -> str:
        """As the table has it."""
        kind = f"{self.library} {self.workers} x {self.replicas}"
        return f"{kind}, {variant}" if variant else kind


class Running:
    """A contender's processes."""

    def __init__(self, contender: Contender, recipe: str, folder: Path) -> None:
        self.contender = contender
        ports = _free_ports(contender.workers)
        self._processes = []
        self._log = folder / f"{contender.library}-{contender.workers}x{contender.replicas}-{recipe}.log"
        for rank in range(contender.workers):
            cores = sorted(os.sched_getaffinity(0))[rank * contender.replicas : (rank + 1) * contender.replicas]
            place = Place(
                contender.library,
                recipe,
                rank,
                contender.workers,
                contender.replicas,
                cores,
                ports,
                {variant.replace(" ", "-") or "plain": changes for variant, changes in contender.variants.items()},
            )
            command = [sys.executable, str(Path(__file__).with_name("bench_scaling_workers.py"))]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log.open("ab"), text=True
            )
            self._processes.append(process)
            self._tell(process, json.dumps(asdict(place)))

    def started(self) -> bool:
        """Whether all of them are ready."""
        return [self._line(process) for process in self._processes] == ["ready"] * len(self._processes)

    def seconds(self, what: str, variant: str, count: int) -> float:
        """Of a step, or of an all-reduce alone: the slowest worker's mean over so many.

        Raises:
            RuntimeError: a process ended; tells its log.
        """
        for process in self._processes:
            self._tell(process, f"{what} {variant.replace(' ', '-') or 'plain'} {count}")
        lines = [self._line(process) for process in self._processes]
        if not all(lines):
            raise RuntimeError(f"{self.contender.name(variant)} ended:\n{self.log()}")
        return max(map(float, lines))

    def log(self) -> str:
        """The end of what the processes said."""
        return self._log.read_text()[-2000:]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    @staticmethod
    def _tell(process: subprocess.Popen[str], line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()

    @staticmethod
    def _line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()


@dataclass
class Measured:
    """Seconds of each round: of a step, and of the sum over the replicas alone."""

    steps: list[float] = field(default_factory=list)
    sums: list[float] = field(default_factory=list)

    @property
    def step(self) -> float:
        return statistics.median(self.steps)

    @property
    def all_reduce(self) -> float | None:
        return statistics.median(self.sums) if self.sums else None


def measure(
    contenders: Sequence[Contender], recipe: str, options: argparse.Namespace, folder: Path
) -> dict[str, Measured]:
    """All contenders in alternation; the first turn of each compiles and does not count."""
    running: list[Running] = []
    found = {each.name(variant): Measured() for each in contenders for variant in each.variants}
    try:
        for contender in contenders:
            each = Running(contender, recipe, folder)
            running.append(each)
            if not each.started():
                raise RuntimeError(f"{contender.name('')} did not start:\n{each.log()}")
            for variant in contender.variants:
                each.seconds("step", variant, 2)
        for round_ in range(options.rounds):
            for each in running if round_ % 2 else reversed(running):
                for variant in each.contender.variants:
                    measured = found[each.contender.name(variant)]
                    measured.steps.append(each.seconds("step", variant, options.block))
                    if each.contender.workers * each.contender.replicas > 1:
                        measured.sums.append(each.seconds("reduce", variant, 3))
        return found
    finally:
        for each in running:
            each.close()


def ratio(one: Measured, other: Measured) -> float:
    """How many times faster the first is: the median over rounds of the pair's ratio."""
    return statistics.median(theirs / ours for ours, theirs in zip(one.steps, other.steps, strict=True))


def table(recipe: str, found: dict[str, Measured]) -> Table:
    """One row a contender."""
    data = configuration(recipe).data
    shown = Table(title=f"{recipe}: {data.lanes} lanes x {data.window} in all, a core for each replica")
    for column in ("", "ms a step", "tokens/s", "raylm 2 x 1 is", "efficiency", "all-reduce", "its share"):
        shown.add_column(column, justify="left" if not column else "right")
    ours = found.get("raylm 2 x 1")
    for name, each in found.items():
        library, workers, _, replicas = name.split(",")[0].split()
        alone = found.get(f"{library} 1 x 1")
        many = int(workers) * int(replicas)
        took = each.all_reduce
        shown.add_row(
            name,
            f"{1000 * each.step:.1f}",
            f"{data.lanes * data.window / each.step:,.0f}",
            f"{ratio(ours, each):.2f} x as fast" if ours and each is not ours else "",
            f"{ratio(each, alone) / many:.0%}" if alone and many > 1 else "",
            "" if took is None else f"{1000 * took:.1f} ms",
            "" if took is None else f"{took / each.step:.0%}",
        )
    return shown


def check(found: dict[str, Measured]) -> str:
    """The same model on this machine: half of one worker's step and the sum alone, beside what two workers took."""
    alone, two = found["raylm 1 x 1"], found["raylm 2 x 1"]
    told = alone.step / 2 / (alone.step / 2 + (two.all_reduce or 0.0))
    return f"efficiency of raylm 2 x 1: {told:.0%} by the model, {ratio(two, alone) / 2:.0%} measured"


def main() -> None:
    """Prints a table for each recipe, and the model; writes the figures where asked."""
    options = _options()
    say = Console(width=110)
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("two cores are needed, one for each replica; this process may use one")
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_USE_LEGACY_KERAS="1", PYTHONWARNINGS="ignore")
    a = Assumptions()
    contenders = [Contender("raylm", 2, 1, {"": {}} | PACKINGS)]
    if not options.packings:
        contenders = [
            Contender("raylm", 1, 1),
            Contender("raylm", 1, 2),
            Contender("raylm", 2, 1, {"": {}} | COMPRESSED),
        ]
        if importlib.util.find_spec("torch"):
            contenders += [Contender("torch", 1, 1), Contender("torch", 2, 1)]
        else:
            say.print("without PyTorch's rows: it is not installed here (pip install torch)")
    results: dict[str, dict[str, Measured]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-scaling-") as folder:
        for recipe in options.recipes:
            results[recipe] = measure(contenders, recipe, options, Path(folder))
            say.print(table(recipe, results[recipe]))
            if not options.packings:
                say.print(check(results[recipe]))
    if not options.packings:
        say.print(model_table(options.recipes, a))
        say.print("assumed: " + ", ".join(f"{name} {value:g}" for name, value in asdict(a).items()), highlight=False)
    if options.output is not None:
        rows = {recipe: {name: asdict(each) for name, each in found.items()} for recipe, found in results.items()}
        options.output.write_text(json.dumps({"recipes": rows, "assumptions": asdict(a)}, indent=1) + "\n")


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How raylm scales, beside PyTorch's DDP.")
    parser.add_argument(
        "--recipes", nargs="+", choices=["ptb-small", "ptb-medium", "ptb-large"], default=["ptb-medium"]
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--block", type=int, default=3, help="steps of one turn")
    parser.add_argument("--packings", action="store_true", help="measure sizes of cluster.pack_bytes instead")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
