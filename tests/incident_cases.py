"""Incidents with a planted cause, made without a run, and what is found about them; for processes of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from raylm.checkpoint.snapshot import Snapshot
from raylm.config import RunConfig
from raylm.guard.diagnosis import Findings, Verdict
from raylm.guard.drills import parse_drills
from raylm.guard.judge import Outcome
from raylm.model.language_model import carry_names, initial_weights
from raylm.training.diagnose import diagnose
from raylm.training.incident import Incident, RecordedStep, read_incident, write_incident, write_verdict
from raylm.training.probe import Probe
from raylm.training.replay import replay

WORDS, RARE, LANES, TIME = 60, 59, 8, 5
BASE: dict[str, Any] = {
    "data": {"lanes": LANES, "window": TIME},
    "model": {"layers": 2, "hidden": 6, "init_scale": 0.3},
    "optimizer": {"name": "sgd", "clip_norm": 5.0},
    "schedule": {"kind": "constant", "learning_rate": 0.5},
}


def incident(seed: int = 0, steps: int = 4, shares: int = 1, drill: str | None = None, **changes: Any) -> Incident:
    """A sound run of some steps, no word of which is RARE, with a drill at the last."""
    tree = {key: {**BASE[key], **changes.get(key, {})} for key in BASE}
    config = RunConfig.model_validate({**tree, "seed": seed})
    random = np.random.default_rng(seed)
    recorded = []
    for step in range(steps):
        inputs, targets = random.integers(0, RARE, (2, LANES, TIME)).astype(np.int32)
        weights = np.ones((LANES, TIME), np.float32)
        rate = config.schedule.learning_rate
        recorded.append(RecordedStep(step, step, 0, rate, inputs, targets, weights, np.zeros(LANES, bool)))
    struck = None if drill is None else parse_drills([drill])[0]
    recorded[-1] = replace(recorded[-1], drill=struck)
    snapshot = Snapshot(
        step=0,
        weights=initial_weights(config.model, WORDS, seed),
        slots={},
        carry={name: np.zeros((LANES, config.model.hidden), np.float32) for name in carry_names(config.model.layers)},
        cursor={"dataset_id": "0" * 64, "position": 0},
        ledger={"left_out": [], "slow_downs": []},
        rng={"seed": seed},
    )
    where = tuple(f"text of lane {lane}" for lane in range(LANES))
    return Incident(
        config, WORDS, shares, "non-finite", "the loss is nan", float("nan"), where, snapshot, tuple(recorded)
    )


def with_last(made: Incident, **arrays: np.ndarray) -> Incident:
    """The incident with other arrays in its last window."""
    return replace(made, steps=(*made.steps[:-1], replace(made.last, **arrays)))


def bad_id(seed: int, name: str, lane: int, value: int) -> Incident:
    made = incident(seed)
    ids = getattr(made.last, name).copy()
    ids[lane, seed % TIME] = value
    return with_last(made, **{name: ids})


def no_target(seed: int) -> Incident:
    made = incident(seed, drill="no-target@3:sticky")
    return with_last(made, weights=np.zeros((LANES, TIME), np.float32))


def poisonous_word(seed: int, lane: int) -> Incident:
    """A word that one window alone reads, whose embedding is finite and overflows in the dropout."""
    made = incident(seed, model={"dropout": 0.5})
    weights = {name: value.copy() for name, value in made.snapshot.weights.items()}
    weights["embedding"][RARE] = 3e38
    inputs = made.last.inputs.copy()
    inputs[lane, 1:4] = RARE
    return with_last(replace(made, snapshot=replace(made.snapshot, weights=weights)), inputs=inputs)


def exploding(seed: int, learning_rate: float) -> Incident:
    """Plain SGD that no clip holds, up to the first loss that is far worse than guessing; a spike."""
    made = incident(
        seed,
        steps=40,
        optimizer={"clip_norm": None},
        schedule={"learning_rate": learning_rate},
    )
    probe = Probe(made)
    probe.to_snapshot()
    for number, step in enumerate(made.steps):
        result = probe.step(step)
        if result.loss > 2 * np.log(WORDS) + 1 or not result.finite:
            kind = "spike" if result.finite else "non-finite"
            return replace(made, kind=kind, loss=result.loss, steps=made.steps[: number + 1])
    raise AssertionError(f"learning rate {learning_rate} does not explode")


def leaping(seed: int) -> Incident:
    """A gradient that nothing clips leaps a million times in the last step."""
    made = incident(seed, steps=20, drill="explosion@19:sticky", optimizer={"clip_norm": None})
    return replace(made, kind="leap", reason="the gradient's norm leapt", loss=4.0)


RATES = (300.0, 1000.0, 3000.0, 1e4, 1e5, 1e6)


def planted(
    lanes: Sequence[int] = range(LANES), seeds: Sequence[int] = range(3), rates: Sequence[float] = RATES
) -> dict[str, tuple[str, Incident]]:
    """Each case's name, with the true verdict: every drill in a lane of its own; of the other causes, those in the
    lanes, of the seeds and at the learning rates that are asked for."""
    cases: dict[str, tuple[str, Incident]] = {}
    for lane in range(LANES):
        drill = (
            f"{('nan', 'inf', 'neginf')[lane % 3]}-{('embedding', 'hidden', 'logits')[lane // 3]}@3:sticky,lane={lane}"
        )
        cases[drill] = ("DATA", incident(lane, shares=1 + lane % 2, drill=drill))
    for lane in lanes:
        cases[f"id too large in lane {lane}"] = ("DATA", bad_id(lane, "inputs", lane, WORDS + lane))
        cases[f"negative target in lane {lane}"] = ("DATA", bad_id(lane, "targets", lane, -1 - lane))
        cases[f"poisonous word in lane {lane}"] = ("INTERACTION", poisonous_word(lane, lane))
    for seed in seeds:
        cases[f"no target {seed}"] = ("DATA", no_target(seed))
        cases[f"leap {seed}"] = ("OPTIMISATION", leaping(seed))
        cases[f"sound elsewhere {seed}"] = ("DEVICE", incident(seed, shares=2, drill="nan-loss@3:sticky,replica=1"))
    for learning_rate in rates:
        cases[f"learning rate {learning_rate:g}"] = (
            "OPTIMISATION",
            exploding(RATES.index(learning_rate), learning_rate),
        )
    return cases


def verdicts(*some: Sequence[Any]) -> dict[str, tuple[str, Verdict, Findings]]:
    """The true verdict of every case that is `planted`, the one found, and the findings."""
    return {name: (truth, *diagnose(made)[:2]) for name, (truth, made) in planted(*some).items()}


def unknown() -> tuple[Verdict, Findings]:
    """A gradient that fails whatever is read."""
    return diagnose(incident(0, drill="nan-gradient@3:sticky"))[:2]


def written(folder: Path) -> tuple[Any, Any]:
    """A folder's incident as it was and as it is read back."""
    made = incident(1, drill="nan-hidden@3:sticky,lane=2")
    write_incident(folder, made, Outcome(3, 3, 0, float("nan"), 40, 1.0, False, 0.5))
    verdict, findings, trace = diagnose(made)
    write_verdict(folder, verdict, findings, trace)
    return made, read_incident(folder)


def replayed(folder: Path, **options: Any) -> Any:
    lines: list[str] = []
    told = replay(folder, say=lines.append, **options)
    return told, lines
