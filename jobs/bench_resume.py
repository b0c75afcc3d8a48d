"""How long a resume takes, from the start of the process to the next step, and how much of that is raylm's.

python jobs/bench_resume.py --ptb DIR       five rounds, on one worker and on two

Beside `raylm resume` runs a bare script, written as Ray Train's documentation has it, that does nothing but restore: it
starts a `TensorflowTrainer`, makes the strategy, reads the same weights and slots into variables, and is done. Both
start in turn on one Ray cluster; what raylm takes longer until the state is restored, and its first step with the
compilation, are its own share.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from own_cluster import BIN, ROOT, own_cluster, start
from soak import first_lines

STEPS = 20


def main() -> None:
    """Prints the medians."""
    options = _options()
    if options.bare:
        bare(options.workers, Path(options.bare[0]), Path(options.bare[1]))
        return
    with tempfile.TemporaryDirectory(prefix="resume") as temporary, own_cluster(2) as environment:
        folder = Path(temporary)
        first_lines(Path(options.ptb), folder / "text", 300)
        environment |= {"XDG_CACHE_HOME": str(folder / "cache")}
        load = os.getloadavg()[0]
        print(f"{options.recipe}, {options.rounds} rounds, medians in seconds (load {load:.1f} at the start)")
        print(f"{'workers':<9}{'bare: restored':>16}{'raylm: restored':>17}{'raylm: next step':>18}{'difference':>12}")
        for workers in (1, 2):
            run = folder / "runs" / f"of-{workers}"
            _run(_train(folder, run, workers, options.recipe), environment, folder / "log")
            rounds = [_round(run, workers, index, environment, folder) for index in range(options.rounds)]
            bare_, restored, stepped = (statistics.median(times) for times in zip(*rounds, strict=True))
            more = statistics.median(times[2] - times[0] for times in rounds)
            print(f"{workers:<9}{bare_:>16.1f}{restored:>17.1f}{stepped:>18.1f}{more:>+12.1f}", flush=True)


def bare(workers: int, checkpoint: Path, mark: Path) -> None:
    """Restores the arrays of a checkpoint on Ray Train and writes down when."""
    import ray  # here: the measured script pays for its imports itself, and the measuring one needs none of them
    from ray.train import RunConfig, ScalingConfig
    from ray.train.tensorflow import TensorflowTrainer

    def restore() -> None:
        import tensorflow as tf
        from safetensors.numpy import load_file

        strategy = tf.distribute.MultiWorkerMirroredStrategy() if workers > 1 else tf.distribute.MirroredStrategy()
        with strategy.scope():
            arrays = [load_file(path) for path in sorted(checkpoint.glob("*.safetensors"))]
            variables = [tf.Variable(array) for file in arrays for array in file.values()]
        if ray.train.get_context().get_world_rank() == 0:
            mark.write_text(json.dumps({"time": time.time(), "variables": len(variables)}))

    ray.init(log_to_driver=False)
    trainer = TensorflowTrainer(
        restore,
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(storage_path=str(mark.parent / "ray")),
    )
    trainer.fit()


def _round(
    run: Path, workers: int, index: int, environment: dict[str, str], folder: Path
) -> tuple[float, float, float]:
    """Seconds until restored bare, until restored and until the next step with raylm; who goes first takes turns."""
    seconds: dict[str, tuple[float, ...]] = {}
    for what in ("bare", "raylm") if index % 2 else ("raylm", "bare"):
        began = time.time()
        if what == "bare":
            mark = folder / f"mark-{workers}-{index}"
            checkpoint = max((run / "checkpoints").glob("step-*"))
            script = (sys.executable, __file__, "--workers", str(workers), "--bare", str(checkpoint), str(mark))
            _run([*script], environment, folder / "log")
            seconds[what] = (json.loads(mark.read_text())["time"] - began,)
        else:
            steps = str(STEPS + 1 + index)
            _run(
                [str(BIN / "raylm"), "resume", "--from-checkpoint", str(run), "--steps", steps],
                environment,
                folder / "log",
            )
            events = [event for event in _events(run) if event["time"] > began]
            first = {kind: next(e["time"] for e in events if e["kind"] == kind) for kind in ("resume", "step")}
            seconds[what] = (first["resume"] - began, first["step"] - began)
    return (*seconds["bare"], *seconds["raylm"])  # type: ignore[return-value]


def _train(folder: Path, run: Path, workers: int, recipe: str) -> list[str]:
    return [
        *(sys.executable, "jobs/train_ptb.py", "--recipe", recipe, "--corpus", str(folder / "text")),
        *("--storage-path", str(run.parent), "--name", run.name, "--workers", str(workers), "--steps", str(STEPS)),
        *("--report.log-every", "1", "--report.sample-every", "0"),
    ]


def _run(command: list[str], environment: dict[str, str], log: Path) -> None:
    code = start(command, environment, log).wait()
    if code:
        raise SystemExit(f"{' '.join(command)}: exit code {code}\n{log.read_text()[-3000:]}")


def _events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How long a resume takes, beside a bare Ray Train script.")
    default = os.environ.get("RAYLM_PTB_DIR", str(ROOT.parent / "shared" / "ptb"))
    parser.add_argument("--ptb", default=default, help="folder of ptb.train.txt; default $RAYLM_PTB_DIR")
    parser.add_argument("--recipe", default="ptb-small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--bare", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
