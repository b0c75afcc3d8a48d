"""`raylm explain`: what printed numbers mean, found from the numbers, or said to be open."""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from raylm.cli import main as command_line
from raylm.cli.explain import lines
from raylm.config import RunConfig
from raylm.errors import UserError
from raylm.observe.advice import Facts
from raylm.observe.explanation import Explanation, explain
from raylm.observe.printout import Point, Printout, point, read_printout
from raylm.observe.rates import judge_rate
from raylm.observe.run_folder import RunRecord, create_run_folder

THE_POST = (
    *("--vocab", "10000", "--optimizer", "sgd", "--lr", "1.0", "--loss", "0=9.2027", "--average", "0=0.092027"),
    *("--loss", "100=496.782", "--average", "100=4.96782"),
)


def answer(printout: dict[str, str], **facts: Any) -> Explanation:
    """Of series as `STEP=VALUE STEP=VALUE`."""
    series = {
        name: tuple(point(int(step), value) for step, value in (pair.split("=") for pair in pairs.split()))
        for name, pairs in printout.items()
    }
    return explain(Printout(series), Facts(**facts))


def told(found: Explanation) -> str:
    return " ".join(" ".join(lines(found, 100)).split())


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Exit code, output and errors of `raylm explain WORDS`."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["raylm", "explain", *words])
        with pytest.raises(SystemExit) as end:
            command_line.main()
        output = capsys.readouterr()
        return int(end.value.code or 0), output.out, output.err

    return run


# The numbers of the question


def test_the_numbers_of_the_question_are_read_as_they_were_meant(said: Callable[..., tuple[int, str, str]]) -> None:
    code, output, _ = said(*THE_POST)
    flat = " ".join(output.split())
    assert code == 0
    assert output.startswith("The printout is wrong, not (yet) the training: the loss falls.\n")
    for words in (
        "loss a running sum over the steps since the line before",
        "496.782 at step 100 is 100 × 4.96782, not a loss of 496.782",
        "average the loss divided by 100 on every line, from step 0 on",
        "0.092027 is 9.2027 / 100",
        "9.2027 nats a token; ln 10,000 = 9.2103: a fresh model that knows nothing: healthy",
        "did not rise from 9.2027 to 496.782 or from 0.092027 to 4.96782: it fell from 9.203 to a mean of 4.968 nats",
        "Plain SGD at 1 on a mean over tokens is not high",
        "The same 1 for Adam would be far too high",
        "loss_sum / tokens",
    ):
        assert words in flat


def test_the_decay_and_the_labels_are_spoken_of_where_they_are_named(
    said: Callable[..., tuple[int, str, str]],
) -> None:
    flat = " ".join(said(*THE_POST, "--decay-steps", "5000", "--one-hot")[1].split())
    assert "The decay has not begun: its first step down is at step 5,000" in flat
    assert (
        "One-hot labels cost V times the memory of ids: 40,000 bytes a target instead of 4, and change nothing" in flat
    )


def test_the_sick_twin_is_called_wrong_and_its_rate_blamed() -> None:
    found = answer(
        {"loss": "0=9.2027 100=2496.78", "average": "0=0.092027 100=24.9678"},
        vocabulary=10_000,
        optimizer="adam",
        learning_rate=1.0,
    )
    assert (found.health, found.printout, found.learning_rate.level) == ("wrong", "misleading", "too high")
    assert "worse than guessing" in found.verdict
    assert found.rate_answer[0] == "Yes."


def test_the_answer_is_json_too(said: Callable[..., tuple[int, str, str]]) -> None:
    found = json.loads(said(*THE_POST, "--json")[1])
    assert (found["health"], found["printout"]) == ("healthy", "misleading")
    assert [(each["step"], round(each["nats"], 3)) for each in found["course"]] == [(0, 9.203), (100, 4.968)]
    assert found["readings"][0]["probability"] > 0.9
    json.loads(said("--vocab", "50", "--loss", "0=nan", "--json")[1])


# Synthetic printouts of every kind


def loss_curve(vocabulary: int, steps: int, seed: int) -> list[float]:
    """Nats a token of every step: from ln V towards a share of it, with a batch's noise."""
    draw = random.Random(seed)
    start, end = math.log(vocabulary), draw.uniform(0.4, 0.75) * math.log(vocabulary)
    pace = draw.uniform(0.1, 0.6) * steps
    curve = [end + (start - end) * math.exp(-step / pace) for step in range(steps)]
    return [curve[0], *(loss * math.exp(draw.gauss(0, 0.015)) for loss in curve[1:])]


Made = tuple[dict[str, Sequence[float]], dict[str, Any]]


def printed(kind: str, loss: Sequence[float], at: Sequence[int]) -> Made:
    """What a program of some kind prints at each step of `at`, by name of the series; and the facts beside it."""
    each = [loss[step] for step in at]
    between = list(itertools.pairwise(at))
    sums = [loss[0], *(math.fsum(loss[before + 1 : step + 1]) for before, step in between)]
    so_far = [math.fsum(loss[: step + 1]) for step in at]
    interval = at[1] - at[0]
    match kind:
        case "mean":
            return {"loss": each}, {}
        case "bits":
            return {"loss": [nats / math.log(2) for nats in each]}, {}
        case "perplexity":
            return {"loss": [math.exp(nats) for nats in each]}, {}
        case "loss and perplexity":
            return {"loss": each, "perplexity": [math.exp(nats) for nats in each]}, {}
        case "sum over time":
            return {"loss": [35 * nats for nats in each]}, {"window": 35, "batch": 64}
        case "sum over batch":
            return {"loss": [64 * nats for nats in each]}, {"window": 35, "batch": 64}
        case "sum over all":
            return {"loss": [35 * 64 * nats for nats in each]}, {"window": 35, "batch": 64}
        case "running sum":
            return {"loss": sums}, {}
        case "running sum and average":
            return {"loss": sums, "average": [value / interval for value in sums]}, {}
        case "average divided":
            return {"average": [value / interval for value in sums]}, {}
        case "sum since the start":
            return {"loss": so_far}, {}
        case "sum since the start and its mean":
            return {"loss": so_far, "average": [value / (step + 1) for value, step in zip(so_far, at, strict=True)]}, {}
        case _:
            raise AssertionError(kind)


KINDS = {
    "mean": "the mean a token",
    "bits": "the mean a token in bits",
    "perplexity": "a perplexity",
    "loss and perplexity": "the mean a token",
    "sum over time": "a sum over 35 terms",
    "sum over batch": "a sum over 64 terms",
    "sum over all": "a sum over 2.24e+03 terms",
    "running sum": "the mean a token added up since the last line",
    "running sum and average": "the mean a token added up since the last line",
    "average divided": "the mean a token added up since the last line divided by",
    "sum since the start": "the mean a token added up since the start",
    "sum since the start and its mean": "the mean a token added up since the start",
}


def made(kind: str, vocabulary: int, interval: int, count: int, seed: int, digits: int) -> Explanation:
    at = [number * interval for number in range(count)]
    series, facts = printed(kind, loss_curve(vocabulary, at[-1] + 1, seed), at)
    points = {
        name: tuple(point(step, f"{value:.{digits}g}") for step, value in zip(at, values, strict=True))
        for name, values in series.items()
    }
    return explain(Printout(points), Facts(vocabulary=vocabulary, **facts))


@settings(max_examples=60, deadline=None)
@given(
    some.sampled_from(sorted(KINDS)),
    some.integers(200, 200_000),
    some.sampled_from([10, 50, 100, 200]),
    some.integers(2, 10),
    some.integers(0, 10**6),
    some.integers(4, 8),
)
def test_a_reading_that_is_stated_as_found_is_never_of_another_scale(
    kind: str, vocabulary: int, interval: int, count: int, seed: int, digits: int
) -> None:
    """Not sure is allowed; a statement that is wrong about the loss is not."""
    found = made(kind, vocabulary, interval, count, seed, digits)
    assert found.health in ("healthy", "cannot tell")
    if found.course:
        at = [number * interval for number in range(count)]
        true = loss_curve(vocabulary, at[-1] + 1, seed)
        for each in found.course:
            window = true[max(0, each.step - interval) : each.step + 1]
            assert 0.9 * min(window) < each.nats < 1.1 * max(window)


def test_each_kind_of_printout_is_found_in_nine_of_ten() -> None:
    right: Counter[str] = Counter()
    draw = random.Random(1)
    trials = 20
    for kind, expected in KINDS.items():
        for seed in range(trials):
            vocabulary, interval = draw.choice([500, 10_000, 33_278]), draw.choice([20, 100, 250])
            found = made(kind, vocabulary, interval, draw.randint(3, 10), seed, 6)
            likeliest = found.readings[0]
            if likeliest.reading.startswith(expected) and likeliest.probability >= 0.9:
                right[kind] += 1
    assert {kind: right[kind] for kind in KINDS if right[kind] < 0.9 * trials} == {}


# What the numbers say of the training


@pytest.mark.parametrize(
    ("loss", "facts", "health", "words"),
    [
        ("0=9.21 100=6.9 200=6.5", {}, "healthy", "Nothing is wrong by these numbers: the loss falls"),
        ("0=9.21 100=25 200=31 300=28", {}, "wrong", "above ln V, worse than guessing"),
        ("0=9.21 100=nan", {}, "wrong", "At step 100 it is nan"),
        ("0=9.21 100=inf", {}, "wrong", "An id outside the vocabulary is a third"),
        ("0=9.21 200=9.21 400=9.20", {}, "suspect", "has stayed at ln V"),
        ("0=9.21 100=6 200=5 300=6.9 400=7.1", {}, "suspect", "rises again"),
        ("0=16.1 100=15.6", {"optimizer": "adam", "learning_rate": 0.1}, "wrong", "worse than guessing"),
        ("0=9.21 50=6.1", {"optimizer": "adam", "learning_rate": 1.0}, "suspect", "do not show harm yet"),
        ("0=9.21 50=6.9", {"optimizer": "adam", "learning_rate": 0.01}, "healthy", "do not show harm."),
        ("0=9.21 100=26 200=31", {"optimizer": "sgd", "learning_rate": 1.0}, "wrong", "Not by itself"),
        ("0=9.21 100=26 200=31", {"optimizer": "adam", "learning_rate": 0.03}, "wrong", "Probably: it is high"),
        ("0=9.21 100=9.0", {"optimizer": "sgd", "learning_rate": 1e-4}, "healthy", "No: it is low"),
        ("0=2.0 100=1.9 200=1.7", {}, "healthy", "in whichever way they are read"),
        ("0=9.21", {}, "cannot tell", "a second value"),
    ],
)
def test_the_verdict_is_about_the_training(loss: str, facts: dict[str, Any], health: str, words: str) -> None:
    found = answer({"loss": loss}, vocabulary=10_000, **facts)
    assert found.health == health
    assert words in told(found)


def test_numbers_that_fit_two_readings_say_so_and_what_to_add() -> None:
    found = answer({"loss": "0=9.2027 100=2500"}, vocabulary=10_000, optimizer="sgd", learning_rate=30.0)
    assert found.printout == "cannot tell"
    assert found.health == "wrong"  # by every reading of them
    assert "What may be printed" in told(found)
    assert any("next steps" in each for each in found.add)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("0=6.0 100=5.4 200=5.2", "this model was trained before, or V is another"),
        ("0=11.0 100=9.1 200=8.9", "worse than guessing from the start; the first weights are too large"),
    ],
)
def test_the_first_loss_tells_a_model_that_is_not_fresh(loss: str, words: str) -> None:
    pairs = (pair.split("=") for pair in loss.split())
    perplexities = " ".join(f"{step}={math.exp(float(value)):.6g}" for step, value in pairs)
    assert words in told(answer({"loss": loss, "perplexity": perplexities}, vocabulary=10_000))


def test_without_a_vocabulary_it_is_asked_for() -> None:
    found = answer({"loss": "100=680 200=610"})
    assert found.add[0].startswith("--vocab")
    assert "ln V" not in " ".join(found.statements)


def test_a_sum_over_something_unnamed_is_told_with_its_size() -> None:
    found = answer({"loss": "0=322.4 100=250 200=215 300=207"}, vocabulary=10_000)
    assert "added up over about 35 terms" in told(found)
    assert any("--window and --batch" in each for each in found.add)
    assert found.learning_rate.level == "unknown"


def test_an_average_that_nothing_explains_is_told_as_such() -> None:
    found = answer({"loss": "0=9.2 100=7.4 200=6.9", "average": "0=1.3143 100=1.0571 200=0.98571"}, vocabulary=10_000)
    assert "divided by 7 on every line, of which I know no reason" in told(found)


def test_a_perplexity_of_a_sum_is_called_none() -> None:
    found = answer({"loss": "0=184.2 1=181.0", "perplexity": "0=1e80 1=4.06e78"}, vocabulary=10_000, window=20)
    assert "no perplexity" in told(found)


def test_other_kinds_of_series_beside_the_loss_are_named() -> None:
    found = answer({"loss": "0=9.21 100=6.9 200=6.5", "average": "0=8.7 100=2.6 200=3.5"}, vocabulary=10_000)
    assert "not made of the loss" in told(found)


@pytest.mark.parametrize("values", ["0=-3.1 100=-7", "0=0 100=0"])
def test_values_that_can_be_no_loss_break_nothing(values: str) -> None:
    assert answer({"loss": values}, vocabulary=10_000).health == "cannot tell"


# The learning rate


@pytest.mark.parametrize(
    ("optimizer", "rate", "terms", "clip", "level"),
    [
        ("sgd", 1.0, 1.0, None, "usual"),
        ("sgd", 30.0, 1.0, 0.25, "usual"),
        ("sgd", 30.0, 1.0, None, "high"),
        ("sgd", 1.0, 20.0, 5.0, "usual"),
        ("sgd", 1.0, 20.0, 50.0, "high"),
        ("sgd", 20.0, 20.0, 5.0, "too high"),
        ("sgd", 1.0, None, None, "unknown"),
        ("momentum", 1.0, 1.0, None, "high"),
        ("adam", 0.001, 1.0, None, "usual"),
        ("adam", 0.001, 700.0, None, "usual"),
        ("Adam", 0.01, 1.0, None, "high"),
        ("adam", 0.1, 1.0, None, "too high"),
        ("rmsprop", 1.0, None, None, "too high"),
        ("adagrad", 0.2, None, None, "usual"),
        ("lion", 0.1, 1.0, None, "unknown"),
        (None, 0.1, 1.0, None, "unknown"),
        ("sgd", None, 1.0, None, "unknown"),
    ],
)
def test_a_rate_is_judged_by_the_optimizer_and_the_loss_scale(
    optimizer: str | None, rate: float | None, terms: float | None, clip: float | None, level: str
) -> None:
    assert judge_rate(optimizer, rate, terms, clip).level == level


# Logs

POST = (
    "Epoch 1\nStep 0 Loss: 9.2027 Average loss 0.092027\nthe company said\nStep 100 Loss: 496.782 Average loss 4.96782"
)
KERAS = (
    "Epoch 1/10\r  1/938 [....] - ETA: 3s - loss: 9.2 - accuracy: 0.1\r400/938 [=>..] - ETA: 3s - loss: 8.1\n"
    "Epoch 2/10\n\x1b[1m 50/938\x1b[0m \x1b[32m━━━\x1b[0m \x1b[1m3s\x1b[0m 20ms/step - loss: 5.5 - val_loss: 5.9\n"
)
PYTORCH = (
    "| epoch   1 |   200/ 2323 batches | lr 20.00 | ms/batch 54.32 | loss  6.82 | ppl   920.50\n"
    "| epoch   1 |   400/ 2323 batches | lr 20.00 | ms/batch 54.32 | loss  6.22 | ppl   500.51\n"
    "| end of epoch   1 | time: 30.2s | valid loss  5.9 | valid ppl   365.0\n"
    "| epoch   2 |   200/ 2323 batches | lr 5.00 | ms/batch 54.32 | loss  5.22 | ppl   184.51\n"
)


@pytest.mark.parametrize(
    ("text", "series"),
    [
        (POST, {"loss": {0: 9.2027, 100: 496.782}, "average": {0: 0.092027, 100: 4.96782}}),
        ("step=0 loss=9.2 tokens/s=100\nstep=1,000 loss=6.5", {"loss": {0: 9.2, 1000: 6.5}}),
        (KERAS, {"loss": {1: 9.2, 400: 8.1, 988: 5.5}}),
        (PYTORCH, {"loss": {200: 6.82, 400: 6.22, 2523: 5.22}, "perplexity": {200: 920.5, 400: 500.51, 2523: 184.51}}),
        ("epoch,step,train loss,lr\n0,0,9.2,1\n0,100,5.1,1\n0,200", {"loss": {0: 9.2, 100: 5.1}}),
        ("step\tval_loss\tloss\n0\t1\t9.2", {"loss": {0: 9.2}}),
        ('{"step": 0, "train/loss": 9.21}\n{"step": 10, "train/loss": NaN}\n{"st', {"loss": {0: 9.21, 10: math.nan}}),
        ("Epoch 1: loss 5.5\nEpoch 2: loss 5.1", {"loss": {1: 5.5, 2: 5.1}}),
        (
            "Epoch [1/5], Step [100/600], Loss: 2.2\nEpoch [2/5], Step [100/600], Loss: 2.1",
            {"loss": {100: 2.2, 700: 2.1}},
        ),
        ("iter 10 nll 5\niter 20 nll 4\niter 10 nll 3", {"loss": {10: 5, 20: 4, 30: 3}}),
        ("epoch 1 step 10 loss 5\nepoch 1 step 20 loss 4\nepoch 2 step 5 loss 3", {"loss": {10: 5, 20: 4, 25: 3}}),
        ("epoch 1 step 10 loss 5\nepoch 1 step 20 loss 4\nepoch 1 step 10 loss 3", {"loss": {10: 3, 20: 4}}),
        ("it 5, bpc 1.5, loss: inf", {"loss": {5: math.inf}, "bits": {5: 1.5}}),
    ],
)
def test_common_logs_are_read(text: str, series: dict[str, dict[int, float]]) -> None:
    found = read_printout(text, "a.log")
    shown = {name: {each.step: each.value for each in points} for name, points in found.series.items()}
    assert str(shown) == str(series) or shown == series


def test_a_log_tells_the_rate_and_the_vocabulary_too(tmp_path: Path) -> None:
    assert read_printout(PYTORCH, "a.log").learning_rate == 20
    events = '{"kind":"start","step":0,"vocabulary":5721}\n{"kind":"step","step":1,"loss":8.6,"learning_rate":0.1}\n'
    found = read_printout(events, "events.jsonl")
    assert (found.vocabulary, found.learning_rate) == (5721, 0.1)
    assert read_printout(KERAS, "a.log").since_epoch
    assert read_printout("Epoch 1: loss 5", "a.log").in_epochs


@settings(max_examples=60, deadline=None)
@given(
    some.one_of(
        some.text(),
        some.binary().map(lambda raw: raw.decode(errors="replace")),
        some.from_regex(r"(step|epoch|\{\"step\":|loss,step|loss|lr|[:=/,\n ]|[0-9e.\-]{1,400}){0,30}", fullmatch=True),
    )
)
def test_no_text_breaks_the_reading(text: str) -> None:
    try:
        found = read_printout(text, "a.log")
    except UserError:
        return
    explain(found, Facts(vocabulary=100))


def test_a_log_without_an_end_to_its_line_is_read_in_no_time() -> None:
    with pytest.raises(UserError, match="no line has a step and a loss"):
        read_printout("loss " * 400_000, "a.log")


def test_pytorchs_example_is_a_mean_and_its_rate_of_20_is_usual_with_its_clip() -> None:
    found = explain(read_printout(PYTORCH, "a.log"), Facts(vocabulary=33_278, optimizer="sgd", clip=0.25))
    assert (found.health, found.printout, found.learning_rate.level) == ("healthy", "sound", "usual")


def test_a_runs_own_events_are_judged_by_its_configuration(
    tmp_path: Path, said: Callable[..., tuple[int, str, str]]
) -> None:
    run = tmp_path / "run"
    create_run_folder(run, RunRecord(RunConfig(), "ptb", "", {"train": "a", "valid": "b", "test": "c"}))
    events = '{"kind":"start","step":0,"vocabulary":5721}\n'
    events += "".join(f'{{"kind":"step","step":{s},"loss":{8.65 - s / 100}}}\n' for s in (1, 100, 200))
    (run / "events.jsonl").write_text(events)
    _, output, _ = said("--log", str(run / "events.jsonl"))
    assert "Plain SGD at 20 on a mean over tokens (1 × the 20 terms of the sum) is not high" in " ".join(output.split())


# Mistakes


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "name the numbers"),
        (("--loss", "9.2"), "expected STEP=VALUE"),
        (("--loss", "a=9.2"), "expected STEP=VALUE"),
        (("--loss", "-3=9"), "STEP=VALUE"),
        (("--loss", "1=9", "1=8"), "step 1 has a value already"),
        (("--loss", "1=9", "--vocab", "1"), "--vocab 1: should be greater"),
        (("--loss", "1=9", "--loss-scale", "sequence_sum"), "Add --window"),
        (("--los", "1=9"), "did you mean --loss?"),
        (("--log", "no such file"), "cannot be read: No such file"),
        (("--log", "."), "cannot be read"),
    ],
)
def test_a_mistake_is_one_line(words: tuple[str, ...], line: str, said: Callable[..., tuple[int, str, str]]) -> None:
    code, output, error = said(*words)
    assert (code, output, error.count("\n")) == (2, "", 1)
    assert line in error


def test_a_point_keeps_how_exactly_it_was_printed() -> None:
    assert point(1, "4.97") == Point(1, 4.97, 0.005)
    assert point(1, "1.5e3") == Point(1, 1500.0, 50.0)
    assert point(1, "1,234") == Point(1, 1234.0, 0.5)
