"""How long it takes from `python jobs/train_ptb.py` to the first step, beside a bare hello on Ray Train.

python jobs/bench_start.py --ptb DIR       five rounds, a few minutes on two cores

Both start in turn from nothing: no cluster, each starts its own Ray. The hello is a `TensorflowTrainer` as Ray Train's
documentation has it whose one worker makes its strategy and runs one compiled function. raylm also prepares the
dataset, builds `ptb-small`, writes its first checkpoint and compiles its step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from own_cluster import ROOT

LIMIT = 150  # seconds a start may take


def main() -> None:
    """Prints the medians and their ratio."""
    options = _options()
    if options.hello is not None:
        hello(options.hello)
        return
    load = os.getloadavg()[0]
    bare: list[float] = []
    whole: list[float] = []
    with tempfile.TemporaryDirectory(prefix="start") as temporary:
        for round_ in range(options.rounds):
            folder = Path(temporary) / str(round_)
            folder.mkdir()
            turns = [(bare, _hello), (whole, _raylm)]
            for times, start in turns if round_ % 2 else reversed(turns):
                times.append(start(folder, Path(options.ptb)))
    print(f"{options.rounds} rounds, load {load:.1f} at the start")
    for name, times in (("bare hello", bare), ("raylm's first step", whole)):
        shown = " ".join(f"{seconds:.1f}" for seconds in times)
        print(f"{name:<20}{statistics.median(times):6.1f} s  ({shown})")
    ratios = [ours / theirs for ours, theirs in zip(whole, bare, strict=True)]
    print(f"{'ratio':<20}{statistics.median(ratios):6.2f}    ({' '.join(f'{ratio:.2f}' for ratio in ratios)})")


def hello(mark: Path) -> None:
    """One compiled function on Ray Train; writes down when it was done."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.tensorflow import TensorflowTrainer

    def work() -> None:
        import tensorflow as tf

        strategy = tf.distribute.MirroredStrategy()
        with strategy.scope():
            weight = tf.Variable(tf.ones([200, 200]))
        product = tf.function(lambda: strategy.run(lambda: tf.reduce_sum(weight @ weight)))
        mark.write_text(json.dumps({"time": time.time(), "sum": float(product())}))

    config = RunConfig(storage_path=str(mark.parent / "ray"))
    TensorflowTrainer(work, scaling_config=ScalingConfig(num_workers=1), run_config=config).fit()


def _hello(folder: Path, _: Path) -> float:
    mark, began = folder / "mark", time.time()
    _run([__file__, "--hello", str(mark)], folder)
    return float(json.loads(mark.read_text())["time"]) - began


def _raylm(folder: Path, ptb: Path) -> float:
    began = time.time()
    command = ["jobs/train_ptb.py", "--recipe", "ptb-small", "--data-dir", str(ptb), "--steps", "1"]
    _run([*command, "--report.log-every", "1", "--storage-path", str(folder), "--name", "run"], folder)
    events = map(json.loads, (folder / "run" / "events.jsonl").read_text().splitlines())
    return next(float(event["time"]) for event in events if event["kind"] == "step") - began


def _run(command: list[str], folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_ADDRESS": "local", "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    with (folder / "log").open("ab") as log:
        done = subprocess.run(
            [sys.executable, *command], env=environment, cwd=ROOT, stdout=log, stderr=log, timeout=LIMIT, check=False
        )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{(folder / 'log').read_text()[-3000:]}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How long a start takes, beside a bare hello on Ray Train.")
    default = os.environ.get("RAYLM_PTB_DIR", str(ROOT.parent / "shared" / "ptb"))
    parser.add_argument("--ptb", default=default, help="folder of ptb.train.txt; default $RAYLM_PTB_DIR")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hello", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
