"""`raylm diagnose`: planted faults get the right first finding, healthy runs none above a note."""

from __future__ import annotations

import json
import math
import random
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_datasets import make_dataset

from raylm.cli import main as command_line
from raylm.config import RunConfig
from raylm.data.corpora import find_corpus
from raylm.data.prepare import prepare_corpus
from raylm.observe.chart import spark
from raylm.observe.data_symptoms import DataEvidence, data_evidence, data_findings
from raylm.observe.events import EventLog
from raylm.observe.findings import Evidence, evidence_of, first_step, smooth
from raylm.observe.run_folder import RunRecord, create_run_folder
from raylm.observe.story import Points, untold_story
from raylm.observe.summary import Summary, write_summary
from raylm.observe.symptoms import RULES, diagnose
from raylm.recipes import RECIPES

LN_V = math.log(10_000)


def curve(steps: int, end: float, pace: float, seed: int, every: int = 20, noise: float = 0.12) -> Points:
    """A loss as a small window shows it: from ln V towards `end`, with the noise of a few hundred tokens."""
    draw = random.Random(seed)
    at = [1, *range(every, steps + 1, every)]
    return [(step, end + (LN_V - end) * math.exp(-step / pace) + draw.gauss(0, noise)) for step in at]


def healthy(seed: int = 0, steps: int = 2000, **changes: Any) -> Evidence:
    """A run of ptb-small's kind: SGD 1 on a sum over 20 steps, clip 5, 400 tokens an update."""
    draw = random.Random(seed)
    loss = curve(steps, draw.uniform(4.5, 5.2), draw.uniform(40, 400), seed)
    seen = Evidence(
        loss=loss,
        norm=[(step, 4 * math.exp(draw.gauss(0, 0.5)) * (1 + 5 * math.exp(-step / 50))) for step, _ in loss],
        rate=[(step, 1.0) for step, _ in loss],
        speed=[(step, 9000 * math.exp(draw.gauss(0, 0.1))) for step, _ in loss],
        valid=[
            (step, 5.0 + 4 * math.exp(-step / 400) + draw.gauss(0, 0.005)) for step, _ in loss[5 :: 1 + len(loss) // 5]
        ],
        last_step=steps,
        uniform=LN_V,
        unigram=6.529,
        bigram=5.435,
        optimizer="sgd",
        peak_rate=1.0,
        terms=20,
        tokens=400,
        clip=5.0,
        steps_total=steps,
        clipped=[(step, draw.uniform(0.1, 0.6)) for step, _ in loss],
        signals={name: [(step, value * math.exp(draw.gauss(0, 0.2))) for step, _ in loss] for name, value in SOUND},
        window=20,
        lanes=20,
        dropout=0.0,
    )
    return replace(seen, **changes)


SOUND = (
    ("update_ratio", 0.01),
    ("update_ratio/embedding", 0.01),
    ("update_ratio/softmax", 0.01),
    ("saturated/layer0", 0.2),
    ("cell/layer0", 0.5),
    ("carry_read", 0.3),
    ("row_dead", 0.0),
    ("row_largest", 2.0),
    ("ranks_agree", 1.0),
)


def signalled(seen: Evidence, name: str, value: float) -> Evidence:
    """With one signal that stands at a value."""
    return replace(seen, signals={**seen.signals, name: [(step, value) for step, _ in seen.loss]})


def bent(seen: Evidence, change: Callable[[int, float], float]) -> Points:
    return [(step, change(step, loss)) for step, loss in seen.loss]


def planted(name: str, seed: int, steps: int) -> Evidence:
    """A run with one fault."""
    sound = healthy(seed, steps)
    draw = random.Random(seed)
    match name:
        case "adam at 1":
            loss = bent(sound, lambda step, _: LN_V if step == 1 else 20 + draw.uniform(0, 20))
            return replace(sound, loss=loss, optimizer="adam")
        case "sgd at 100":
            loss = bent(sound, lambda step, _: LN_V if step == 1 else 11 + draw.uniform(0, 3))
            return replace(sound, loss=loss, peak_rate=100.0)
        case "diverged":
            return replace(sound, loss=bent(sound, lambda step, loss: loss + (1.5 if step > 0.7 * steps else 0)))
        case "targets are inputs":
            return replace(sound, loss=bent(sound, lambda step, _: 0.3 + 9 * math.exp(-step / 60)))
        case "rate of 1e-5":
            return replace(sound, loss=bent(sound, lambda step, _: LN_V - 0.02 + draw.gauss(0, 0.01)), peak_rate=1e-5)
        case "no gradient":
            norm = [(step, 1e-9) for step, _ in sound.norm]
            return replace(sound, loss=bent(sound, lambda step, _: LN_V), norm=norm)
        case "context ignored":
            loss = curve(steps, 6.529, 60, seed)
            return replace(sound, loss=loss)
        case "large first weights":
            return replace(sound, loss=[(1, 14.0), *sound.loss[1:]])
        case "huge first weights, and it diverges":
            return replace(sound, loss=[(step, 38.0) for step, _ in sound.loss])
        case "decay in the wrong unit":
            return replace(sound, rate=[(step, 0.1 ** (step // 15)) for step, _ in sound.rate])
        case "no clip":
            norm = [*sound.norm[:-3], (sound.norm[-3][0], 4000.0), *sound.norm[-2:]]
            return replace(sound, clip=None, norm=norm, peak_rate=0.05)
        case "overfit":
            valid = [(step, 4.9 + abs(step - 0.4 * steps) / steps) for step, _ in sound.valid]
            return replace(sound, valid=valid)
        case "explodes":
            return replace(
                sound, clip=None, verdicts=tuple((step, "OPTIMISATION: exploded") for step in (100, 130, 150))
            )
        case "failed":
            return replace(sound, failed="the loss is nan: 8 rollbacks", verdicts=((steps, "OPTIMISATION: clip"),))
        case "loss summed over the batch":
            return replace(sound, loss=bent(sound, lambda _, loss: 400 * loss))
        case "loss summed over time":
            return replace(sound, loss=bent(sound, lambda _, loss: 20 * loss))
        case "carry dropped":
            return signalled(sound, "carry_read", 0.0)
        case "tied embedding broken":
            return signalled(sound, "update_ratio/embedding", 0.0)
        case "dead first weights":
            return replace(signalled(sound, "update_ratio/softmax", 0.0), loss=bent(sound, lambda step, _: LN_V))
        case "gates saturated":
            return signalled(sound, "saturated/layer0", 0.97)
        case "carry grows":
            return signalled(sound, "cell/layer0", 40.0)
        case "carry grows and nothing is learnt":
            return replace(signalled(sound, "cell/layer0", 40.0), loss=bent(sound, lambda step, _: 0.97 * LN_V))
        case "embedding rows explode":
            return signalled(sound, "row_largest", 300.0)
        case "embedding rows die":
            return signalled(sound, "row_dead", 0.3)
        case "updates too long":
            return signalled(sound, "update_ratio", 0.4)
        case "warm-up in tokens":
            return replace(sound, rate=[(step, step / 1e6) for step, _ in sound.rate])
        case "dropout in evaluation":
            return signalled(sound, "lanes_apart", 0.05)
        case "ranks disagree":
            return signalled(sound, "ranks_agree", 0.0)
        case "adam at 0.3, it learns":
            return replace(sound, optimizer="adam", peak_rate=0.3)
        case _:
            raise AssertionError(name)


EXPECTED = {
    "adam at 1": ("wrong", "worse than guessing"),
    "sgd at 100": ("wrong", "worse than guessing"),
    "diverged": ("wrong", "diverged"),
    "targets are inputs": ("wrong", "too good"),
    "rate of 1e-5": ("wrong", "learns nothing"),
    "no gradient": ("wrong", "learns nothing"),
    "context ignored": ("wrong", "context ignored"),
    "large first weights": ("suspect", "first loss"),
    "huge first weights, and it diverges": ("wrong", "first loss"),
    "decay in the wrong unit": ("suspect", "decayed too soon"),
    "no clip": ("suspect", "no clip"),
    "overfit": ("suspect", "overfit"),
    "explodes": ("wrong", "explodes again"),
    "failed": ("wrong", "failed"),
    "adam at 0.3, it learns": ("suspect", "learning rate"),
    "loss summed over the batch": ("wrong", "loss is a sum"),
    "loss summed over time": ("wrong", "loss is a sum"),
    "carry dropped": ("wrong", "carry dropped"),
    "tied embedding broken": ("wrong", "weight never moves"),
    "dead first weights": ("wrong", "weight never moves"),
    "gates saturated": ("suspect", "gates saturated"),
    "carry grows": ("healthy", "carry grows"),
    "carry grows and nothing is learnt": ("suspect", "carry grows"),
    "embedding rows explode": ("suspect", "embedding rows"),
    "embedding rows die": ("suspect", "embedding rows"),
    "updates too long": ("suspect", "updates too long"),
    "warm-up in tokens": ("wrong", "never warm"),
    "ranks disagree": ("wrong", "ranks disagree"),
    "dropout in evaluation": ("wrong", "dropout in evaluation"),
}


@pytest.mark.parametrize("steps", [2000, 6000])
@pytest.mark.parametrize("fault", EXPECTED)
def test_a_planted_fault_is_the_first_finding(fault: str, steps: int) -> None:
    found = [diagnose(planted(fault, seed, steps)) for seed in range(10)]
    right = [each.findings and (each.verdict, each.findings[0].rule) == EXPECTED[fault] for each in found]
    assert sum(map(bool, right)) >= 9


def test_healthy_runs_have_no_finding_above_a_note() -> None:
    draw = random.Random(0)
    for seed in range(100):
        found = diagnose(healthy(seed, draw.choice([20, 60, 200, 1000, 5000])))
        assert found.verdict == "healthy", (seed, found)


def test_a_run_that_is_slow_but_well_is_not_called_stuck() -> None:
    slow = healthy(steps=400)
    slow = replace(slow, loss=bent(slow, lambda step, _: 6.53 + 2.7 * math.exp(-step / 60)))
    assert diagnose(slow).verdict == "healthy"


def test_adam_at_one_is_called_wrong_within_fifty_steps_with_the_fix() -> None:
    loss = [(1, 9.21), (20, 31.0), (40, 27.0)]
    found = diagnose(healthy(loss=loss, norm=[], rate=[], speed=[], valid=[], optimizer="adam", last_step=50))
    assert (found.verdict, found.since) == ("wrong", 20)
    first = found.findings[0]
    assert "ln V = 9.210" in first.evidence[0]
    assert first.patch == {"schedule.learning_rate": 0.001}


def test_a_run_that_falls_slowly_past_the_words_frequencies_is_well() -> None:
    """As recipe ptb-next-word does: 0.1 nats in 200 updates of 1,280 tokens."""
    slow = healthy(steps=640, tokens=1280, valid=[])
    slow = replace(slow, loss=bent(slow, lambda step, _: 6.78 - 0.0005 * step if step > 20 else LN_V))
    assert diagnose(slow).verdict == "healthy"


def test_sentences_begin_without_a_carry_and_are_well() -> None:
    assert diagnose(replace(signalled(healthy(), "carry_read", 0.0), sentences=True)).verdict == "healthy"


def test_a_fault_that_was_transient_left_nothing_out() -> None:
    notes = [diagnose(healthy(verdicts=((9, text),))).findings[0].advice for text in ("TRANSIENT: x", "DATA: x")]
    assert [("left out" in note, "had not been" in note) for note in notes] == [(False, True), (True, False)]


def test_an_empty_run_and_one_that_tells_little_break_no_rule() -> None:
    bare = Evidence(loss=[], norm=[], rate=[], speed=[], valid=[], last_step=0)
    assert diagnose(bare).verdict == "healthy"
    for points in ([(1, 5.0)], [(step, 5.0) for step in range(1, 300)], [(step, 0.0) for step in range(1, 300)]):
        seen = Evidence(points, points, points, points, points, 300)
        assert all(rule(seen) is None or rule(seen) for rule in RULES)


def test_at_most_three_findings_are_shown_and_notes_are_last() -> None:
    seen = planted("adam at 1", 0, 2000)
    slow = [(step, 9000.0 if step < 1000 else 900.0) for step, _ in seen.speed]
    seen = replace(seen, speed=slow, loss=[(1, 14.0), *seen.loss[1:]], verdicts=((5, "DATA: x"),))
    found = diagnose(seen)
    assert [each.severity for each in found.findings] == ["wrong", "wrong", "note"]
    assert found.left_out == 1


def test_medians_and_first_steps() -> None:
    points = [(1, 1.0), (2, 9.0), (3, 2.0), (4, 3.0)]
    assert smooth(points, 3) == [(1, 1.0), (2, 5.0), (3, 2.0), (4, 3.0)]
    assert first_step(points, 1.5) == 2
    assert first_step(points, 5.0) is None
    assert spark(points, 10) == "▁█▁▂"
    assert spark([(1, 5.0)], 10) == "▄"
    assert spark([], 10) == ""


# The data


def texts(
    folder: Path, *, rows: int = 200, words: int = 50, repeat: int = 1, shared: int = 0, unknown: int = 0
) -> DataEvidence:
    """Train and valid datasets of rows of ten tokens: `repeat` times each, `shared` of them in both."""
    draw = np.random.default_rng(0)
    train = draw.integers(2, words, (rows, 10))
    valid = draw.integers(2, words, (100, 10))
    valid[:shared] = train[:shared]
    train[:unknown, :6] = 1
    for name, table in (("train", np.tile(train, (repeat, 1))), ("valid", valid)):
        table[:, 9] = 0
        make_dataset(folder / name, table.ravel(), np.full(len(table), 10), words, chunk=640)
    return data_evidence(str(folder / "train"), str(folder / "valid"))


@pytest.mark.parametrize(
    ("made", "severity", "rule"),
    [
        ({"shared": 60}, "wrong", "valid in train"),
        ({"shared": 20}, "suspect", "valid in train"),
        ({"repeat": 3}, "suspect", "repeated rows"),
        ({"unknown": 90}, "suspect", "unknown words"),
        ({"words": 5000}, "note", "little text"),
    ],
)
def test_a_fault_of_the_data_is_found(made: dict[str, int], severity: str, rule: str, tmp_path: Path) -> None:
    found = diagnose(healthy(), texts(tmp_path, **made)).findings
    assert [(each.severity, each.rule) for each in found][:1] == [(severity, rule)]


def test_sound_data_is_no_finding(tmp_path: Path) -> None:
    assert data_findings(texts(tmp_path, shared=5)) == []


def test_repeats_are_counted_exactly(tmp_path: Path) -> None:
    seen = texts(tmp_path, repeat=4, shared=7).repeats
    assert (seen.rows, seen.repeated, seen.valid_in_train) == (800, 0.75, 0.07)


def test_the_penn_treebank_repeats_little(ptb_dir: Path, tmp_path: Path) -> None:
    corpus = find_corpus("ptb", data_dir=ptb_dir, say=lambda line: None)
    splits = prepare_corpus(corpus, tmp_path, lambda line: None, vocabulary_size=10_000)
    seen = data_evidence(str(splits.train), str(splits.valid))
    assert (round(seen.repeats.repeated, 3), round(seen.repeats.valid_in_train, 3)) == (0.014, 0.016)
    assert round(seen.unknown_rate, 3) == 0.048
    assert data_findings(seen) == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_recipe_is_suspect_before_it_trains(recipe: str) -> None:
    config = RunConfig.model_validate(RECIPES[recipe]).model_dump(mode="json")
    assert diagnose(evidence_of(untold_story(config, {}))).verdict == "healthy"


# The command


def sick_run(folder: Path, *, config: bool = True, optimizer: str = "adam") -> Path:
    tree = {"optimizer": {"name": optimizer}, "schedule": {"learning_rate": 1.0}, "name": "sick"}
    places = {split: split for split in ("train", "valid", "test")}
    create_run_folder(folder, RunRecord(RunConfig.model_validate(tree), "ptb", "", places))
    if not config:
        (folder / "config.json").unlink()
    log = EventLog(folder)
    log.append("start", 0, 0, uniform_nats=LN_V, unigram_nats=6.5, bigram_nats=5.4, clip_norm=5.0)
    for step, loss in ((1, 9.21), (20, 31.0), (40, 27.0)):
        log.append("step", step, step, loss=loss, gradient_norm=9.0, learning_rate=1.0, tokens_per_second=9.0)
    log.append("end", 50, 50, status="completed", reason="50 updates")
    write_summary(folder, Summary("completed", "50 updates", 50, 20_000))
    log.close()
    return folder


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["raylm", "diagnose", *words])
        with pytest.raises(SystemExit) as end:
            command_line.main()
        output = capsys.readouterr()
        return int(end.value.code or 0), output.out, output.err

    return run


def test_the_verdict_comes_first_and_the_fix_is_a_configuration(
    tmp_path: Path, said: Callable[..., tuple[int, str, str]]
) -> None:
    run = sick_run(tmp_path / "run")
    code, output, _ = said(str(run), "--apply", str(tmp_path / "mended.toml"))
    assert code == 1
    assert output.startswith("wrong since step 20 (run, 50 updates, completed)\n")
    for words in (
        "1. wrong: The loss is above that of guessing",
        "▁█▇",
        "learning_rate = 0.001",
        "Adam moves each weight",
    ):
        assert words in output
    mended = tomllib.loads((tmp_path / "mended.toml").read_text())
    assert mended["schedule"]["learning_rate"] == 0.001
    assert "name" not in mended
    assert RunConfig.model_validate(mended).optimizer.name == "adam"


def test_the_diagnosis_is_json_too(tmp_path: Path, said: Callable[..., tuple[int, str, str]]) -> None:
    found = json.loads(said(str(sick_run(tmp_path / "run")), "--json")[1])
    assert (found["verdict"], found["since"]) == ("wrong", 20)
    assert found["findings"][0]["patch"] == {"schedule.learning_rate": 0.001}


def test_nothing_found_is_said(tmp_path: Path, said: Callable[..., tuple[int, str, str]]) -> None:
    log = EventLog(tmp_path)
    log.append("start", 0, 0)
    log.close()
    code, output, _ = said(str(tmp_path))
    assert code == 0
    assert output.splitlines() == [
        f"healthy ({tmp_path.name}, 0 updates, not ended)",
        "",
        "No rule found anything.",
        "",
        "The data was not looked at: the run does not say where it is",
    ]


@pytest.mark.parametrize(
    ("made", "line"),
    [
        ({"config": False}, "the run has no config.json to change"),
        ({}, "cannot"),
    ],
)
def test_a_patch_that_cannot_be_written_is_one_line(
    made: dict[str, Any], line: str, tmp_path: Path, said: Callable[..., tuple[int, str, str]]
) -> None:
    run = sick_run(tmp_path / "run", **made)
    target = tmp_path / "mended.toml"
    if not made:
        target.mkdir()
    elif not made.get("config", True):
        log = EventLog(run)
        log.append("start", 50, 50, uniform_nats=LN_V, clip_norm=None)
        log.append("end", 50, 50, status="completed", reason="50 updates")
        log.close()
    code, _, error = said(str(run), "--apply", str(target))
    assert (code, error.count("\n")) == (2, 1)
    assert line in error


def test_before_it_trains_the_configuration_and_the_data_are_looked_at(
    tmp_path: Path, said: Callable[..., tuple[int, str, str]]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"the {n % 7} company said it would buy all of {n % 5} more\n" for n in range(4000)))
    words = ("--preflight", "--corpus", str(text), "--cache-dir", str(tmp_path), "--optimizer.name", "adam")
    code, output, _ = said(*words, "--json", "--confirm", "0")
    found = json.loads(output)
    assert (code, found["verdict"]) == (1, "wrong")
    assert [each["rule"] for each in found["findings"]] == ["valid in train", "learning rate", "repeated rows"]
    assert "did you mean --corpus?" in said("--preflight", "--corpsu", "x")[2]


def test_data_that_is_gone_or_elsewhere_is_said_not_to_be_looked_at(
    tmp_path: Path, said: Callable[..., tuple[int, str, str]]
) -> None:
    run = sick_run(tmp_path / "run")
    assert "The data was not looked at: train" in said(str(run))[1]
    record = json.loads((run / "config.json").read_text())
    record["datasets"]["train"] = "s3://bucket/train"
    (run / "config.json").write_text(json.dumps(record))
    assert "it is in an object store" in said(str(run))[1]


def test_where_the_configuration_mends_nothing_apply_says_so(
    tmp_path: Path, said: Callable[..., tuple[int, str, str]]
) -> None:
    EventLog(tmp_path).append("start", 0, 0)
    code, _, error = said(str(tmp_path), "--apply", str(tmp_path / "mended.toml"))
    assert code == 2
    assert "no finding has a change of the configuration" in error
