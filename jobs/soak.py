"""Kills a run at random instants until it is done, and shows that it ends as if nothing had happened.

python jobs/soak.py --ptb DIR                                     20 SIGKILLs
python jobs/soak.py --ptb DIR --kills 3 --lines 300 --epochs 1    a shorter one

The model is ptb-small's with dropout, in windows of jittered length, on two workers, on the first lines of the Penn
Treebank, so that each epoch is resumed several times. Victims are rank 0, rank 1 and the driver, as often as each
other; who and when is drawn from the seed: at any update and any instant after it, and every fourth time while the
workers start again. A killed driver is answered with `raylm resume`; nothing else is done by hand. Only processes of
this run are killed, on a Ray cluster of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from own_cluster import BIN, ROOT, kill, own_cluster, start

VICTIMS = ("rank 0", "rank 1", "driver")


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: when, of whom, and the step of the last event before it."""

    seconds: float
    victim: str
    step: int


def main() -> int:
    """0 where the killed run ends with the unbroken one's state after all its kills."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="soak") as temporary, own_cluster(2) as environment:
        folder = Path(temporary)
        first_lines(Path(options.ptb), folder / "text", options.lines)
        environment |= {"XDG_CACHE_HOME": str(folder / "cache")}
        began = time.monotonic()
        unbroken = start(_train(folder, "unbroken", options), environment, folder / "unbroken.log")
        if unbroken.wait(options.minutes * 60):
            return _fail("the unbroken run failed", folder / "unbroken.log")
        steps = _summary(folder / "runs" / "unbroken")["steps"]
        print(f"unbroken: {steps} updates in {time.monotonic() - began:.0f} s", flush=True)
        kills, problem = _soak(folder, steps, options, environment)
        if problem:
            return _fail(problem, folder / "killed.log")
        return _tell(folder / "runs", kills)


def _soak(folder: Path, steps: int, options: argparse.Namespace, environment: dict[str, str]) -> tuple[list[Kill], str]:
    """The kills of the run `killed`, and what went wrong."""
    run, log = folder / "runs" / "killed", folder / "killed.log"
    kills: list[Kill] = []
    began = time.monotonic()
    driver = start(_train(folder, "killed", options), environment, log)
    try:
        for victim, share, delay in _instants(options):
            while True:  # a victim that dies with another one before its turn is waited for again
                if driver.poll() is not None:
                    return kills, f"the run ended by itself after {len(kills)} kills"
                if time.monotonic() - began > 60 * options.minutes:
                    return kills, f"{options.minutes:g} minutes were not enough"
                time.sleep(0.05)
                process = driver.pid if victim == "driver" else _worker(run, victim)
                if process is not None and _step(run) >= share * steps:
                    time.sleep(delay)
                    step = _step(run)
                    if kill(process):
                        break
            kills.append(Kill(time.monotonic() - began, victim, step))
            print(f"{kills[-1].seconds:6.0f} s  {victim} after step {step}", flush=True)
            if victim == "driver":
                driver.wait()
                driver = start(_resume(run), environment, log)
            _wait_while_alive(process)
        if driver.wait(60 * options.minutes):
            return kills, "the killed run failed"
        return kills, ""
    finally:
        driver.kill()


def _instants(options: argparse.Namespace) -> Iterator[tuple[str, float, float]]:
    """Of each kill: the victim, the share of the updates after which it strikes, and the seconds after that.

    One in each of as many equal parts of the run; every fourth strikes as soon as there is the victim again, or some
    seconds later.
    """
    chance = random.Random(options.seed)
    victims = [victim for _ in range(options.kills) for victim in chance.sample(VICTIMS, len(VICTIMS))]
    for index in range(options.kills):
        share = (index + chance.random()) / options.kills
        if index % 4 == 3:
            yield victims[index], 0.0, chance.uniform(0, 10)
        else:
            yield victims[index], max(share, 1e-9), chance.uniform(0, 0.5)


def _tell(runs: Path, kills: list[Kill]) -> int:
    """Prints the tables and whether the two runs ended alike."""
    unbroken, killed = (_summary(runs / name) for name in ("unbroken", "killed"))
    events = _events(runs / "killed")
    resumes = [event for event in events if event["kind"] == "resume"]
    again = [
        max(before["step"] for before in events[: events.index(event)] if before["kind"] in ("step", "resume"))
        - event["step"]
        for event in resumes
    ]
    print("\nkilled          " + "  ".join(f"{name} {n}" for name, n in Counter(k.victim for k in kills).items()))
    print(f"updates         {killed['steps']}, {sum(again)} of them computed again, at most {max(again)} at once")
    print("resumes         " + _per_epoch(resumes, events))
    print(f"test perplexity {killed['test_perplexity']:.3f} against {unbroken['test_perplexity']:.3f}")
    print(f"unbroken        {unbroken['state_sha256']}\nkilled          {killed['state_sha256']}")
    same = killed["state_sha256"] == unbroken["state_sha256"]
    print("the same state, bit for bit" if same else "ANOTHER STATE")
    return 0 if same else 1


def _per_epoch(resumes: list[dict[str, Any]], events: list[dict[str, Any]]) -> str:
    epochs = 1 + max(event["epoch"] for event in events if event["kind"] == "step")
    counts = Counter(event["epoch"] for event in resumes)
    return f"{len(resumes)}, by epoch: " + ", ".join(str(counts[epoch]) for epoch in range(epochs))


def _train(folder: Path, name: str, options: argparse.Namespace) -> list[str]:
    return [
        *(sys.executable, "jobs/train_ptb.py", "--recipe", "ptb-small", "--corpus", str(folder / "text")),
        *("--storage-path", str(folder / "runs"), "--name", name, "--epochs", str(options.epochs), "--workers", "2"),
        *("--model.dropout", "0.3", "--data.jitter", "--checkpoint-every", str(options.checkpoint_every)),
        *("--report.log-every", "1", "--report.sample-every", "0", "--cluster.max-failures", str(options.kills)),
    ]


def _resume(run: Path) -> list[str]:
    return [str(BIN / "raylm"), "resume", "--from-checkpoint", str(run)]


def first_lines(ptb: Path, folder: Path, lines: int) -> None:
    """The first lines of each split."""
    folder.mkdir()
    for split, share in (("train", 1.0), ("valid", 0.05), ("test", 0.05)):
        text = (ptb / f"ptb.{split}.txt").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{split}.txt").write_text("".join(text[: int(lines * share)]), encoding="utf-8")


def _worker(run: Path, victim: str) -> int | None:
    """The process of a rank of this run, known by the log that it writes; None while there is none."""
    log = str(run.resolve() / "logs" / f"worker-{victim.removeprefix('rank ')}.log")
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and os.readlink(entry / "fd" / "1") == log:
                return int(entry.name)
        except OSError:
            continue
    return None


def _wait_while_alive(process: int) -> None:
    """Until a killed process is gone, so that it is not taken for the next one."""
    with suppress(OSError):
        while Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.05)


def _step(run: Path) -> int:
    """The step of the newest event; -1 before the first checkpoint, from which a resume could go on."""
    if not list(run.glob("checkpoints/step-*/MANIFEST.json")):
        return -1
    return int(_events(run)[-1]["step"])


def _events(run: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (run / "events.jsonl").read_text().splitlines(keepends=True) if line[-1] == "\n"
    ]


def _summary(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


def _fail(problem: str, log: Path) -> int:
    print(f"{problem}; its last words:\n" + "\n".join(log.read_text().splitlines()[-20:]), file=sys.stderr)
    return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kills a run at random instants; it must end as the unbroken one.")
    default = os.environ.get("RAYLM_PTB_DIR", str(ROOT.parent / "shared" / "ptb"))
    parser.add_argument("--ptb", default=default, help="folder of ptb.train.txt; default $RAYLM_PTB_DIR")
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs")
    parser.add_argument("--seed", type=int, default=0, help="of the victims and the instants")
    parser.add_argument("--lines", type=int, default=3000, help="lines of the training text")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--checkpoint-every", type=int, default=10, help="updates between checkpoints")
    parser.add_argument("--minutes", type=float, default=60, help="most time for each run")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
