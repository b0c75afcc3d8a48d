"""`raylm generate`, `eval`, `score` and `export` on the folder of a run."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import training_runner
from made_datasets import make_dataset, random_rows
from tiny_runs import WORDS
from trained_runs import load, make_run

from raylm.cli import main as command_line
from raylm.data.corpora import find_corpus
from raylm.data.dataset import open_dataset
from raylm.data.prepare import prepare_corpus
from raylm.training.evaluate import Evaluator
from raylm.training.inference import make_model

Answer = tuple[int, str, str]
Command = Callable[..., Answer]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "made")


@pytest.fixture
def raylm(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    """Exit code, standard output and standard error of `raylm WORDS`."""

    def command(*given: object, stdin: bytes = b"") -> Answer:
        monkeypatch.setattr(sys, "argv", ["raylm", *map(str, given)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(os.fdopen(os.dup(1), "wb"), "utf-8"))
        with pytest.raises(SystemExit) as end:
            command_line.main()
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return int(end.value.code or 0), out.decode(), err.decode()

    return command


@pytest.fixture
def refusal(raylm: Command) -> Callable[..., str]:
    """What `raylm WORDS` says, in one line, before it ends with exit code 2."""

    def refused(*given: object, stdin: bytes = b"") -> str:
        code, out, err = raylm(*given, stdin=stdin)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"raylm {given[0]}: ")
        return err

    return refused


# eval


def test_eval_is_the_evaluation_of_the_training(run: Path, raylm: Command) -> None:
    code, out, _ = raylm("eval", run, "--json")
    found = json.loads(out)
    trained = load(run)
    evaluator = Evaluator(make_model(trained))
    assert (code, found["state_sha256"], found["step"]) == (0, trained.state_sha256, 21)
    for text, split in zip(found["texts"], ("valid", "test"), strict=True):
        dataset = open_dataset(trained.datasets[split])
        score = evaluator.score(dataset)
        assert (text["text"], text["tokens"]) == (split, score.tokens)
        assert text["nats"] == pytest.approx(score.nats, abs=1e-6)
        assert text["perplexity"] == pytest.approx(math.exp(text["nats"]))
        unknowns = int((dataset.read(1, dataset.tokens) == 1).sum())
        assert (text["unknowns"], text["unknown_rate"]) == (unknowns, pytest.approx(unknowns / score.tokens))


def test_eval_prints_a_row_for_each_text_whatever_its_kind(run: Path, tmp_path: Path, raylm: Command) -> None:
    """A split, a folder of datasets, a dataset, and the same words as text."""
    trained = load(run)
    own = make_dataset(tmp_path / "own", np.array([5, 1, 7, 0, 8, 0]), np.array([4, 2]), WORDS)
    text = tmp_path / "own.txt"
    text.write_text("w5 what w7\n\nw8\n")
    code, out, _ = raylm("eval", run, "--data", "valid", run.parent / "data", tmp_path / "own", text)
    head, *rows = [line.split() for line in out.splitlines()]
    assert (code, head) == (0, ["perplexity", "nats/token", "tokens", "unknown", "time", "text"])
    names = ["valid", trained.datasets["valid"], trained.datasets["test"], str(tmp_path / "own"), str(text)]
    assert [row[-1] for row in rows] == names
    assert rows[0][:4] == rows[1][:4] != rows[2][:4]
    assert rows[3][:4] == rows[4][:4]
    assert rows[3][2:4] == [str(own.tokens - 1), "20.00%"]


def test_eval_with_the_cache_and_dynamic_evaluation_says_so(run: Path, raylm: Command) -> None:
    plain, adapted = (
        json.loads(raylm("eval", run, "--data", "valid", "--json", *options)[1])
        for options in ((), ("--cache", "--cache-lambda", 0.3, "--dynamic", "--dynamic-window", 30))
    )
    assert (plain["cache"], plain["dynamic"]) == (None, None)
    assert (adapted["cache"]["weight"], adapted["dynamic"]["window"]) == (0.3, 30)
    assert plain["texts"][0]["nats"] != adapted["texts"][0]["nats"]


def test_a_model_of_sentences_is_evaluated_and_continued_as_it_was_trained(tmp_path: Path, raylm: Command) -> None:
    run = make_run(tmp_path / "made", data={"mode": "sentences"})
    trained = load(run)
    score = Evaluator(make_model(trained), trained.config.data).score(open_dataset(trained.datasets["valid"]))
    found = json.loads(raylm("eval", run, "--data", "valid", "--json")[1])
    assert (found["read"], found["texts"][0]["tokens"]) == ("sentences", score.tokens)
    assert found["texts"][0]["nats"] == pytest.approx(score.nats, abs=1e-6)
    stream = json.loads(raylm("eval", run, "--data", "valid", "--read", "stream", "--json")[1])
    assert stream["read"] == "stream"
    assert stream["texts"][0]["tokens"] > score.tokens
    (tmp_path / "text.txt").write_text("w3 w4\n")
    rows = [json.loads(line) for line in raylm("score", run, tmp_path / "text.txt")[1].splitlines()]
    assert [row["log_probability"] is None for row in rows] == [True, False, False]
    code, out, _ = raylm("generate", run, "--prompt", "w3", "--words", 1000, "--seed", 1)
    assert (code, out.rstrip().count("\n")) == (0, 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cache-theta", "0.5"], "--cache-theta is of use with --cache alone: add --cache, or leave"),
        (["--dynamic-clip", "1"], "--dynamic-clip is of use with --dynamic alone"),
        (["--cache", "--cache-lambda", "1"], "--cache-lambda 1: should be less than 1"),
        (["--data", "no-such.txt"], "no-such.txt does not exist"),
        (["--cache", "--read", "sentences"], "adapt to a text as it goes on, sentences are read alone"),
        (["--data"], "--data: expected at least one value"),
    ],
)
def test_eval_refuses_what_makes_no_sense(words: list[str], said: str, run: Path, refusal: Callable[..., str]) -> None:
    assert said in refusal("eval", run, *words)


def test_eval_refuses_a_dataset_of_other_words_and_a_text_of_one(
    run: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    make_dataset(tmp_path / "other", *random_rows(5, vocabulary=WORDS + 1), WORDS + 1)
    assert "has another vocabulary than the model" in refusal("eval", run, "--data", tmp_path / "other")
    make_dataset(tmp_path / "one", np.array([0]), np.array([1]), WORDS)
    assert "has no token to predict" in refusal("eval", run, "--data", tmp_path / "one")


# score


def test_score_prints_json_lines_or_writes_parquet(run: Path, tmp_path: Path, raylm: Command) -> None:
    (tmp_path / "text.txt").write_text("w3 what\nw4\n")
    code, out, _ = raylm("score", run, tmp_path / "text.txt")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, [row["word"] for row in rows]) == (0, ["w3", "<unk>", "<eos>", "w4", "<eos>"])
    code, out, _ = raylm("score", run, tmp_path / "text.txt", "--output", tmp_path / "out.parquet")
    assert (code, out) == (0, f"5 tokens: {tmp_path / 'out.parquet'}\n")
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == rows


def test_score_refuses_what_it_cannot_read_or_write(run: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    (tmp_path / "bad.txt").write_bytes(b"w3\n\xff\n")
    assert "name a checkpoint and at least one text file" in refusal("score", run)
    assert "no.txt does not exist" in refusal("score", run, tmp_path / "no.txt")
    assert "there is no folder" in refusal("score", run, tmp_path / "bad.txt", "--output", tmp_path / "no" / "out")
    assert "is a folder: name a file in it" in refusal("score", run, tmp_path / "bad.txt", "--output", tmp_path)
    assert "bad.txt: line 2: not UTF-8" in refusal("score", run, tmp_path / "bad.txt")
    assert "--ray writes a Parquet file" in refusal("score", run, tmp_path / "bad.txt", "--ray")
    assert "--address is of use with --ray" in refusal("score", run, tmp_path / "bad.txt", "--address", "x:1")


@pytest.mark.parametrize("place", ["n" * 300, "~no-such-user/there"])
def test_a_place_that_cannot_be_is_refused_in_one_line(
    place: str, run: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    (tmp_path / "text.txt").write_text("w3\n")
    refusal("export", run, "--output", place)
    refusal("score", run, tmp_path / "text.txt", "--output", place)
    refusal("score", run, place)
    refusal("eval", run, "--data", place)
    refusal("generate", place)


# export


def test_export_writes_what_the_other_commands_read(run: Path, tmp_path: Path, raylm: Command) -> None:
    code, out, _ = raylm("export", run, "--best", "--output", tmp_path / "weights")
    assert (code, out) == (0, f"step 14 of run: {tmp_path / 'weights'}\n")
    best, exported = (json.loads(raylm("eval", *words, "--json")[1]) for words in (
        (run, "--best", "--data", run.parent / "data"), (tmp_path / "weights", "--data", run.parent / "data"),
    ))  # fmt: skip
    assert [text["nats"] for text in exported["texts"]] == [text["nats"] for text in best["texts"]]
    code, out, _ = raylm("export", run, "--format", "saved-model")
    place = run / "exports" / "step-00000021-saved-model"
    assert (code, out) == (0, f"step 21 of run: {place}\n")
    assert (place / "saved_model.pb").is_file()


def test_export_refuses_a_place_that_is_taken_and_a_split_of_an_export_is_none(
    run: Path, tmp_path: Path, raylm: Command, refusal: Callable[..., str]
) -> None:
    assert raylm("export", run, "--output", tmp_path / "out")[0] == 0
    assert "exists already" in refusal("export", run, "--output", tmp_path / "out")
    assert raylm("export", run, "--output", tmp_path / "out", "--force")[0] == 0
    assert "is no export of raylm's" in refusal("export", run, "--output", tmp_path, "--force")
    assert "say where the export goes: add --output" in refusal("export", "s3://bucket/run")
    assert "is an export and knows no valid text" in refusal("eval", tmp_path / "out")


@pytest.mark.parametrize("name", ["generate", "eval", "export"])
def test_a_model_has_to_be_named_and_to_be_there(name: str, refusal: Callable[..., str]) -> None:
    assert "name a run, a checkpoint or exported weights, as in: raylm" in refusal(name)
    assert "does not exist" in refusal(name, "/no/such/run")


# generate


def test_generate_prints_the_prompt_and_what_goes_on_from_it(run: Path, raylm: Command) -> None:
    words = ("generate", run, "--words", 60, "--temperature", 5, "--seed", 3, "--prompt", "w3 W4 what", "w5")
    code, out, err = raylm(*words)
    assert (code, err) == (0, "raylm generate: not in the vocabulary, read as <unk>: what\n")
    assert out.startswith("w3 w4 <unk> ")
    assert "\n\nw5 " in out
    assert raylm(*words)[1] == out
    assert out.count("<unk>") > 1
    assert raylm(*words, "--no-unknown")[1].count("<unk>") == 1


def test_generate_reads_prompts_from_standard_input(run: Path, raylm: Command, refusal: Callable[..., str]) -> None:
    words = ("generate", run, "--words", 5, "--temperature", 0, "--top-k", 3, "--top-p", 0.9)
    given = raylm(*words, "--prompt", "w3", "w4")
    assert raylm(*words, "--prompt", "-", stdin=b"w3\r\n\nw4")[1] == given[1]
    assert "standard input: line 1: not UTF-8" in refusal(*words, "--prompt", "-", stdin=b"\xff\n")
    assert "not UTF-8" in refusal(*words, "--prompt", "w3\udcff")


def generate_for_ever(run: Path, output: Path) -> None:
    """`raylm generate`, far too many words, its output in a file, as a process of its own."""
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(os.open(output.with_suffix(".err"), os.O_WRONLY | os.O_CREAT), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
    sys.argv = ["raylm", "generate", str(run), "--words", "100000000", "--prompt", "w3"]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command_line.main()
    except SystemExit as end:
        os._exit(int(end.code or 0))


def test_generate_shows_each_word_at_once_and_ctrl_c_ends_it_cleanly(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "text"
    process = training_runner.Call(generate_for_ever, run, output).process
    limit = time.monotonic() + 120
    while not (output.exists() and output.stat().st_size > 20):
        assert time.monotonic() < limit
        assert process.is_alive()
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    assert output.read_bytes().endswith(b"\n")
    assert output.with_suffix(".err").read_bytes() == b""


def test_a_model_of_bytes_reads_any_file_and_speaks_text(raylm: Command, tmp_path: Path) -> None:
    """Empty lines, carriage returns and bytes that are not UTF-8 are kept; bits a byte stand beside the perplexity."""
    content = b"caf\xe9 \xff\r\n\n\tone two\n" * 20
    (tmp_path / "my.bin").write_bytes(content)
    corpus = find_corpus(str(tmp_path / "my.bin"), cache_dir=tmp_path / "cache", say=str, as_bytes=True)
    texts = prepare_corpus(corpus, tmp_path / "datasets", str, tokenizer="bytes").train.parent
    datasets = [open_dataset(texts / split) for split in ("train", "valid", "test")]
    ids = np.concatenate([dataset.read(0, dataset.tokens) for dataset in datasets])
    assert bytes(np.where(ids == 256, ord("\n"), ids).astype(np.uint8)) == content
    run = make_run(tmp_path / "made", texts=texts)
    code, out, _ = raylm("eval", run, "--data", "valid", tmp_path / "my.bin", "--json")
    valid, file = json.loads(out)["texts"]
    assert code == 0
    assert (valid["tokens"], file["tokens"]) == (datasets[1].tokens - 1, len(content) - 1)
    assert valid["bits_per_byte"] == pytest.approx(valid["nats"] / math.log(2))
    assert raylm("eval", run)[1].split()[0] == "bits/byte"
    text = raylm("generate", run, "--prompt", "é\n\nb", "--words", "5", "--top-k", "1")[1]
    assert text.startswith("é\n\nb")
    assert "<0x" not in text
    assert raylm("export", run, "--output", tmp_path / "out")[0] == 0
    assert "A byte language model" in (tmp_path / "out" / "README.txt").read_text()
