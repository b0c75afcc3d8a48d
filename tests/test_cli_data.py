"""`raylm prepare` and `raylm data`: what is printed, where, with which exit code, and that nothing is left behind."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raylm.cli import data, prepare
from raylm.cli.main import guarded
from raylm.cli.options import parse_options
from raylm.cli.prepare import PrepareCommand
from raylm.cli.progress import ByteProgress
from raylm.cli.tables import print_facts, print_table, shown_word
from raylm.config import DataConfig, RunConfig
from raylm.data.dataset import open_dataset
from raylm.data.description import describe
from raylm.data.options import PrepareOptions
from raylm.data.provenance import sample_rows, where
from raylm.data.sentences import Sentences
from raylm.data.streams import Streams
from raylm.errors import UserError
from raylm.observe.events import EventLog
from raylm.observe.positions import position_of
from raylm.observe.run_folder import RunRecord, create_run_folder

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def raylm(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, standard output, standard error."""

    def run(command: str, *words: object) -> tuple[int, str, str]:
        main = {"prepare": prepare.main, "data": data.main}[command]
        code = guarded(main, [str(word) for word in words], f"raylm {command}")
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: train.txt and valid.txt."""
    draw = random.Random(3)
    words = ["the", "of", "mr.", "N", "naïve", *(f"w{number}" for number in range(40))]
    for name, lines in (("train", 200), ("valid", 30)):
        text = "".join(" ".join(draw.choices(words, k=draw.randrange(1, 12))) + "\n" for _ in range(lines))
        (tmp_path / f"{name}.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def train(folder: Path, raylm: Run) -> Path:
    """A dataset of several shards."""
    sizes = ["--split-bytes", 2000, "--chunk-tokens", 64, "--shard-tokens", 256, "--processes", 1]
    assert raylm("prepare", "train.txt", "--output", "data/train", "--tokenizer", "whitespace", *sizes)[0] == 0
    return folder / "data/train"


def facts(printed: str) -> dict[str, str]:
    lines = (re.split(r"  +", line, maxsplit=1) for line in printed.splitlines())
    return dict(lines)


# prepare


def test_the_table_says_what_was_prepared(folder: Path, raylm: Run) -> None:
    code, out, err = raylm("prepare", "train.txt", "--output", "out", "--vocab-size", "20")
    assert (code, err) == (0, "")
    dataset = open_dataset(folder / "out")
    told = facts(out)
    assert list(told)[:6] == ["dataset", "dataset_id", "tokens", "rows", "vocabulary", "unknowns"]
    assert told["dataset_id"] == dataset.dataset_id
    assert (told["tokens"], told["rows"]) == (f"{dataset.tokens:,}", f"{dataset.rows:,}")
    assert told["vocabulary"] == "20 words"
    assert told["unknowns"] == f"{dataset.unknowns:,} ({dataset.unknowns / dataset.tokens:.2%})"
    assert float(told["seconds"]) > 0
    assert int(told["tokens/s"].replace(",", "")) > 0


def test_the_json_is_the_result_and_nothing_else(folder: Path, raylm: Run) -> None:
    code, out, err = raylm("prepare", "train.txt", "--output", "out", "--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert told["dataset_id"] == open_dataset(folder / "out").dataset_id
    assert told["lines"] == 200


def test_a_vocabulary_is_taken_from_another_dataset(train: Path, raylm: Run) -> None:
    assert raylm("prepare", "valid.txt", "--output", "data/valid", "--vocab", "data/train")[0] == 0
    assert open_dataset("data/valid").vocabulary == open_dataset(train).vocabulary


def test_processes_change_nothing_but_the_time(train: Path, folder: Path, raylm: Run) -> None:
    sizes = ["--split-bytes", 2000, "--chunk-tokens", 64, "--shard-tokens", 256]
    words = ["train.txt", "--output", "two", "--tokenizer", "whitespace", *sizes, "--processes", 2]
    assert raylm("prepare", *words)[0] == 0
    assert open_dataset("two").dataset_id == open_dataset(train).dataset_id


def test_rejects_long_rows_and_empty_lines_are_told_where_there_are_any(folder: Path, raylm: Run) -> None:
    (folder / "train.txt").write_bytes(b"a b c d e\n\ncaf\xe9\n")
    words = ["train.txt", "--output", "out", "--max-reject-fraction", "0.5", "--max-row-tokens", "3"]
    told = facts(raylm("prepare", *words)[1])
    assert told["rejects"] == "1 (listed in out/rejects/rejects.jsonl)"
    assert Path("out/rejects/rejects.jsonl").is_file()
    assert (told["long rows"], told["empty lines"]) == ("1", "1")


def test_inputs_may_stand_anywhere_and_are_taken_as_they_are(raylm: Run) -> None:
    for words in (
        ["a,b.txt", "[c]", "--output", "o"],
        ["a,b.txt", "--output", "o", "[c]"],
        ["--ray", "a,b.txt", "--output=o", "--", "[c]"],
    ):
        command = parse_options(PrepareCommand, words, program="raylm prepare", about="")
        assert (command.input, command.output) == (("a,b.txt", "[c]"), "o")


OTHER = {"tokenizer": "bytes", "long_rows": "drop", "malformed": "error", "vocab": "there", "text_column": "body"}


@pytest.mark.parametrize("name", PrepareOptions.model_fields)
def test_every_option_of_preparing_is_an_option_of_the_command(name: str) -> None:
    value = OTHER.get(name, "0.5" if name == "max_reject_fraction" else "7")
    words = ["a", "--output", "o", f"--{name.replace('_', '-')}", value]
    command = parse_options(PrepareCommand, words, program="raylm prepare", about="")
    assert str(getattr(command, name)) == value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--output is missing"),
        (["--output", "out"], "name at least one file to prepare, as in: raylm prepare train.txt"),
        (["train.txt"], "--output is missing; --help says what it is"),
        (["train.txt", "--output"], "--output: expected one argument"),
        (["train.txt", "--outptu", "out"], "there is no option --outptu; did you mean --output?"),
        (["train.txt", "--output", "out", "--tokenizer", "word"], "--tokenizer word: should be 'words', 'whitespace'"),
        (["train.txt", "--output", "out", "--processes", "0"], "--processes 0: should be greater than 0"),
        (["train.txt", "--output", "out", "--address", "auto"], "--address is of use with --ray alone"),
        (["none.txt", "--output", "out"], "none.txt does not exist"),
        (["train.txt", "--output", "valid.txt"], "valid.txt: there is something already"),
        (["train.txt", "--output", "out", "--vocab", "nowhere"], "nowhere: no dataset can be opened here"),
        (["train.txt", "--output", "ftp://x/y"], "use a path, s3:// or gs://"),
        (["latin.txt", "--output", "out"], "1 of 1 lines are rejected, over --max-reject-fraction 0.01"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(words: list[str], said: str, folder: Path, raylm: Run) -> None:
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")
    before = sorted(folder.rglob("*"))
    code, out, err = raylm("prepare", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("raylm prepare: ")
    assert said in err
    assert sorted(folder.rglob("*")) == before


def process(*words: object) -> list[str]:
    return [sys.executable, "-c", "from raylm.cli.main import main; main()", *map(str, words)]


def _mind_ctrl_c() -> None:
    """A shell's background job ignores Ctrl-C, and so does all that it starts; these tests may run in one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(
    ("number", "code", "processes"), [(signal.SIGINT, 130, 1), (signal.SIGINT, 130, 2), (signal.SIGTERM, 143, 2)]
)
def test_an_interrupted_command_leaves_nothing(number: int, code: int, processes: int, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("of all that is said of it, this is a line\n" * 400_000)
    words = process("prepare", text, "--output", tmp_path / "out", "--split-bytes", 200_000, "--processes", processes)
    running = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=_mind_ctrl_c)
    while not any(path.name.startswith(".out.") for path in tmp_path.iterdir()) and running.poll() is None:
        time.sleep(0.02)
    time.sleep(0.1)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == code
    assert said == ("raylm prepare: interrupted; nothing is left behind\n" if number == signal.SIGINT else "")
    assert list(tmp_path.iterdir()) == [text]


def test_neither_ray_nor_tensorflow_is_imported_before_it_is_needed() -> None:
    script = (
        "import sys, raylm, raylm.cli.main, raylm.cli.prepare, raylm.cli.data\n"
        "print([name for name in ('ray', 'tensorflow') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


# data


def flip(path: Path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


def test_verify_says_whole_with_exit_code_0(train: Path, raylm: Run) -> None:
    code, out, err = raylm("data", "verify", train)
    assert (code, err) == (0, "")
    assert re.fullmatch(rf"whole: \d+ files, [\d,]+ bytes, dataset_id {open_dataset(train).dataset_id}\n", out)


def test_verify_names_each_fault_with_exit_code_1(train: Path, raylm: Run) -> None:
    flip(train / "shards/00001.arrow", 300)
    (train / "shards/00002.arrow").unlink()
    code, out, _ = raylm("data", "verify", train)
    first, second, last = out.splitlines()
    assert (code, last[:17]) == (1, "damaged: 2 faults")
    assert "00001.arrow: " in first
    assert "00002.arrow: the file is missing" in second
    code, out, _ = raylm("data", "verify", train, "--json")
    assert (code, json.loads(out)["faults"]) == (1, [first, second])


def test_verify_of_no_dataset_is_a_mistake_with_exit_code_2(folder: Path, raylm: Run) -> None:
    code, out, err = raylm("data", "verify", folder)
    assert (code, out) == (2, "")
    assert f"{folder}: no dataset can be opened here" in err


def test_a_damaged_manifest_is_a_fault_and_no_mistake(train: Path, raylm: Run) -> None:
    flip(train / "manifest.json", 100)
    code, out, _ = raylm("data", "verify", train)
    assert code == 1
    assert "manifest.json" in out


def test_show_tells_what_is_in_it(train: Path, raylm: Run) -> None:
    found = describe(open_dataset(train), 3)
    code, out, _ = raylm("data", "show", train, "--top", 3)
    head, lengths, words = out.split("\n\n")
    told = facts(head)
    assert code == 0
    assert told["tokens"] == f"{found.dataset.tokens:,}"
    assert told["entropy"] == f"{found.entropy:.4f} nats a token: unigram perplexity {found.unigram_perplexity:,.2f}"
    assert told["tokenizer"] == "whitespace"
    assert [line.split()[-1] for line in words.splitlines()[1:]] == [word.word for word in found.most_frequent]
    assert len(lengths.splitlines()) == 1 + len(found.row_lengths)


def test_show_as_json_has_the_same_figures(train: Path, raylm: Run) -> None:
    found = describe(open_dataset(train), 3)
    told = json.loads(raylm("data", "show", train, "--top", 3, "--json")[1])
    assert (told["tokens"], told["entropy"]) == (found.dataset.tokens, found.entropy)
    assert [word["word"] for word in told["most_frequent"]] == [word.word for word in found.most_frequent]
    assert sum(bin["rows"] for bin in told["row_lengths"]) == told["rows"] == 200
    assert told["provenance"]["tokenizer"] == "whitespace"


def test_where_prints_what_every_lane_reads(train: Path, raylm: Run) -> None:
    words = ["data", "where", train, "--position", 7, "--lanes", 4, "--window", 5, "--seed", 2, "--order", "chunk"]
    expected = where(Streams(open_dataset(train), lanes=4, window=5, seed=2, order="chunk"), 7)
    code, out, _ = raylm(*words)
    head, table = out.split("\n\n")
    assert (code, head) == (0, "position 7: window 7 of epoch 0 (both from 0)")
    for line, reading in zip(table.splitlines()[1:], expected, strict=True):
        assert line.endswith(f"{reading.shard}  {reading.text}")
        assert line.split()[:2] == [str(reading.lane), str(reading.chunk)]
    told = json.loads(raylm(*words, "--json")[1])
    assert [lane["text"] for lane in told["lanes"]] == [reading.text for reading in expected]
    assert (told["position"], told["window"]) == (7, 7)


@pytest.fixture
def run_folder(train: Path) -> Path:
    """A run of 3 lanes and windows of 4 that left one window out."""
    run = train.parents[1] / "runs/ptb-small-20260101-120000"
    config = RunConfig(data=DataConfig(lanes=3, window=4, order="chunk"), seed=9)
    create_run_folder(run, RunRecord(config, "text", "", dict.fromkeys(("train", "valid", "test"), str(train))))
    log = EventLog(run)
    log.append("start", 0, 0)
    log.append("step", 20, 19)
    log.append("rollback", 30, 30, to_step=20, skip=[25, 26])
    log.append("step", 40, 40)
    log.append("step", 600, 600)
    log.close()
    return run


@pytest.mark.parametrize(("step", "position"), [(1, 0), (20, 19), (25, 24), (26, 26), (40, 40), (41, 41)])
def test_where_finds_the_window_of_a_step_of_a_run(
    step: int, position: int, run_folder: Path, train: Path, raylm: Run
) -> None:
    told = json.loads(raylm("data", "where", "--run", run_folder, "--step", step, "--json")[1])
    expected = where(Streams(open_dataset(train), lanes=3, window=4, seed=9, order="chunk"), position)
    assert told["position"] == position
    assert [lane["text"] for lane in told["lanes"]] == [reading.text for reading in expected]


def test_where_tells_the_sentences_of_a_run_s_batch(tmp_path: Path, train: Path, raylm: Run) -> None:
    config = RunConfig(data=DataConfig(mode="sentences", lanes=3, buckets=(4, 9)), seed=9)
    create_run_folder(
        tmp_path / "run", RunRecord(config, "text", "", dict.fromkeys(("train", "valid", "test"), str(train)))
    )
    told = json.loads(raylm("data", "where", "--run", tmp_path / "run", "--position", 5, "--json")[1])
    expected = where(Sentences(open_dataset(train), rows=3, seed=9, buckets=(4, 9)), 5)
    assert [lane["text"] for lane in told["lanes"]] == [reading.text for reading in expected]


def test_sample_prints_rows_of_the_dataset(train: Path, raylm: Run) -> None:
    rows = sample_rows(open_dataset(train), 4, 5)
    code, out, _ = raylm("data", "sample", train, "--rows", 4, "--seed", 5)
    assert code == 0
    assert [line.split("  ")[-1] for line in out.splitlines()[1:]] == [row.text for row in rows]
    told = json.loads(raylm("data", "sample", train, "--rows", 4, "--seed", 5, "--json")[1])
    assert [row["number"] for row in told["rows"]] == [row.number for row in rows]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["wher"], "'wher' is nothing that can be done with a dataset; did you mean where?"),
        (["xyzzy"], "there are: verify, show, where, sample"),
        (["verify"], "name a dataset, as in: raylm data verify data/train"),
        (["show", "a", "b"], "'b' is a word too many: DATASET is 'a' already"),
        (["show", "data/train", "--tpo", "3"], "there is no option --tpo; did you mean --top?"),
        (["sample", "nowhere"], "nowhere: no dataset can be opened here"),
        (["where", "--position", "3"], "name a dataset, or a run with --run"),
        (["where", "data/train"], "say where: either --position P, or --step N of a run"),
        (["where", "data/train", "--position", "3", "--step", "3"], "say where: either"),
        (["where", "data/train", "--step", "3"], "--step 3: of which run? Add --run RUN"),
        (["where", "data/train", "--position", "-1"], "--position -1: should be greater than or equal to 0"),
        (["where", "--run", "runs/ptb-small-20260101-120000", "--step", "601"], "has applied updates 1 to 600"),
        (["where", "--run", "data", "--step", "1"], "data has no config.json: it is no run's folder"),
        (["where", "data/train", "--position", "0", "--lanes", "100000"], "100000 lanes need at least"),
    ],
)
def test_a_mistake_in_looking_is_one_line(words: list[str], said: str, run_folder: Path, raylm: Run) -> None:
    code, out, err = raylm("data", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def examples(text: str) -> list[str]:
    return re.findall(r"^(?:examples?: | +)(raylm .*)$", text, re.MULTILINE)


def test_every_example_in_the_help_runs(run_folder: Path, capsys: pytest.CaptureFixture[str], raylm: Run) -> None:
    shown: list[str] = []
    for command, *words in (("prepare",), ("data", "verify"), ("data", "show"), ("data", "where"), ("data", "sample")):
        with pytest.raises(SystemExit) as ended:
            raylm(command, *words, "--help")
        assert ended.value.code == 0
        found = [example for example in examples(capsys.readouterr().out) if "s3://" not in example]
        assert found
        shown += found
    for example in shown:
        _, command, *words = shlex.split(example.replace("data/train --tok", "data/again --tok"))
        assert raylm(command, *words)[0] == 0, example


def test_data_alone_lists_what_can_be_done(raylm: Run) -> None:
    code, out, _ = raylm("data")
    assert code == 0
    assert all(name in out for name in ("verify", "show", "where", "sample"))


# what they share


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_tables_are_aligned_and_hold_no_control_character() -> None:
    for stream in (io.StringIO(), Terminal()):
        print_facts(stream, [("a", "1"), ("longer", "x\x1b[2Jy")])
        print_table(stream, ["count", "word"], [["1", "one"], ["1,000", "two\x1b[2J three"]])
        assert "\x1b[2J" not in stream.getvalue()
        assert "three" in stream.getvalue()
    stream = io.StringIO()
    print_table(stream, ["count", "word"], [["1", "one"], ["1,000", "two"]])
    assert stream.getvalue() == "count  word\n    1  one\n1,000  two\n"


def test_words_that_cannot_be_seen_are_shown_escaped() -> None:
    assert [shown_word(word) for word in ("a", " ", "\t", "\x00")] == ["a", "' '", r"'\t'", r"'\x00'"]


def test_what_is_soon_done_shows_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", stream := Terminal())
    with ByteProgress() as progress:
        progress.tell("counting", 1, 2)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_what_takes_longer_shows_how_far_it_is(kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", stream := kind())
    with ByteProgress(after=0.0, every=0.01, refresh=0.01) as progress:
        progress.tell("counting", 1 << 20, 4 << 20)
        until(lambda: "counting" in stream.getvalue())
        progress.tell("encoding", 3 << 20, 4 << 20)
        until(lambda: "encoding" in stream.getvalue())
    if kind is io.StringIO:
        assert "counting: 25% of 4.0 MiB, 0 s\n" in stream.getvalue()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_progress_outlives_a_standard_error_that_points_elsewhere(capfd: pytest.CaptureFixture[str]) -> None:
    other, before = os.open(os.devnull, os.O_WRONLY), os.dup(2)
    with ByteProgress(after=0.05, every=0.01):
        os.dup2(other, 2)
        time.sleep(0.3)
    os.dup2(before, 2)
    assert "starting" in capfd.readouterr().err


def settle(position: int, skips: list[tuple[int, int]]) -> int:
    for first, last in sorted(skips):
        if first <= position < last:
            position = last
    return position


def histories(seed: int) -> Iterator[tuple[list[dict[str, Any]], dict[int, int]]]:
    """A run with rollbacks and resumes, step by step: its events so far, and the window that each update used."""
    draw = random.Random(seed)
    every = draw.choice([1, 3, 20])
    events: list[dict[str, Any]] = [{"kind": "start", "step": 0, "position": 0}]
    step, position, used = 0, 0, {}
    skips: list[tuple[int, int]] = []
    saved: dict[int, tuple[int, list[tuple[int, int]]]] = {0: (0, [])}
    for _ in range(120):
        choice = draw.random()
        if choice < 0.85:
            step, used = step + 1, {**used, step + 1: position}
            if step % every == 0:
                events.append({"kind": "step", "step": step, "position": position})
            position = settle(position + 1, skips)
            if step % 7 == 0:
                saved[step] = (position, list(skips))
                events.append({"kind": "checkpoint", "step": step, "position": position})
        elif choice < 0.95:
            to_step = max(saved)
            skip = draw.choice([None, [position, position + 1], [max(position - 3, 0), position + 2]])
            events.append({"kind": "rollback", "step": step, "position": position, "to_step": to_step, "skip": skip})
            position, skips = saved[to_step][0], list(saved[to_step][1])
            if skip and max(skip[0], position) < skip[1]:
                skips.append((max(skip[0], position), skip[1]))
            step, position = to_step, settle(position, skips)
            saved[to_step] = (position, list(skips))
        else:
            step = draw.choice(list(saved))
            position, skips = saved[step][0], list(saved[step][1])
            events += [{"kind": kind, "step": step, "position": position} for kind in ("resume", "start")]
            saved = {at: state for at, state in saved.items() if at <= step}
        used = {at: window for at, window in used.items() if at <= step}
        saved = {at: state for at, state in saved.items() if at <= step}
        yield [*events, {"kind": "end", "step": step, "position": position}], used


@pytest.mark.parametrize("seed", range(20))
def test_the_window_of_a_step_is_known_through_rollbacks_and_resumes(seed: int) -> None:
    for events, used in histories(seed):
        assert {step: position_of(events, step) for step in used} == used
        with pytest.raises(UserError, match=r"has applied updates 1 to"):
            position_of(events, len(used) + 1)
