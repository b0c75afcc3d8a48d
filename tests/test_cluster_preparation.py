"""Preparing on Ray Data: the same bytes for any number of workers and after killed ones, little on the driver."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from raylm.data.dataset import open_dataset
from raylm.data.options import PrepareOptions
from raylm.data.prepare import PrepareResult, prepare
from raylm.data.runners import Runner, WorkersLost
from raylm.data.workspace import FolderWorkspace
from raylm.errors import UserError

pytestmark = pytest.mark.ray

OPTIONS = PrepareOptions(vocab_size=40, min_count=2, split_bytes=400, chunk_tokens=64, shard_tokens=256)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """A cluster of two cores, this process connected to it; its address."""
    import ray

    here = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}  # for the functions below
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=here)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture
def on_ray(cluster: str) -> Callable[..., Runner]:
    from raylm.cluster.preparation import on_ray

    return on_ray


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    draw = random.Random(5)
    paths = [tmp_path / f"{number}.txt" for number in range(2)]
    for path in paths:
        words = [f"w{number}" for number in range(60)]
        path.write_text("".join(" ".join(draw.choices(words, k=draw.randrange(12))) + "\n" for _ in range(60)))
    with paths[1].open("ab") as file:
        file.write(b"caf\xe9\n")
    return paths


@pytest.fixture
def here(texts: list[Path], tmp_path: Path) -> PrepareResult:
    """The same prepared in this process."""
    return prepare(texts, tmp_path / "here", OPTIONS.model_copy(update={"max_reject_fraction": 0.5}))


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def lenient(**changes: Any) -> PrepareOptions:
    return OPTIONS.model_copy(update={"max_reject_fraction": 0.5, **changes})


@pytest.mark.parametrize("tasks", [1, 2, None])
def test_the_dataset_is_the_same_byte_for_byte_for_any_number_of_workers(
    tasks: int | None, on_ray: Callable[..., Runner], texts: list[Path], here: PrepareResult, tmp_path: Path
) -> None:
    there = prepare(texts, tmp_path / "there", lenient(), run=on_ray(tasks))
    assert there.dataset_id == here.dataset_id
    assert (there.rejects, there.lines, there.unknowns) == (1, here.lines, here.unknowns)
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert len(files(tmp_path / "there")) > 8


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a killed process goes on")


@dataclass(frozen=True)
class DyingWorkspace(FolderWorkspace):
    """Kills the process that puts a file here, right after."""

    def put(self, file: Path, name: str) -> None:
        super().put(file, name)
        die()


def dies_once(work: Any, marks: Path, when: str, item: Any) -> Any:
    """The work; the first time, for every third item, the process that does it is killed before, amid or after it."""
    number = getattr(item, "index", item)
    mark = marks / f"{work.func.__name__}-{number}"
    if number % 3 or mark.exists():
        return work(item)
    mark.write_text(str(os.getpid()))
    if when == "amid":
        work(item, work=DyingWorkspace(work.keywords["work"].dataset))
    if when == "after":
        work(item)
    die()


@pytest.mark.parametrize("when", ["before", "amid", "after"])
def test_killed_workers_change_no_byte(
    when: str, on_ray: Callable[..., Runner], texts: list[Path], here: PrepareResult, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()

    def run(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
        return on_ray(2)(partial(dies_once, work, marks, when), items)

    there = prepare(texts, tmp_path / "there", lenient(), run=run)
    killed = {mark.name: int(mark.read_text()) for mark in marks.iterdir()}
    assert {name.split("-")[0] for name in killed} == {"count_split", "merge_partition", "encode_split"}
    assert len(killed) >= 5
    for pid in killed.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert there.dataset_id == here.dataset_id
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def always_dies(item: int) -> int:
    die()


def test_a_task_that_kills_every_worker_ends_in_one_clear_line(on_ray: Callable[..., Runner]) -> None:
    with pytest.raises(WorkersLost, match="a task could not be done") as lost:
        list(on_ray()(always_dies, [1]))
    assert "\n" not in str(lost.value)


def test_a_mistake_of_the_user_s_arrives_as_it_is_and_nothing_is_left(
    on_ray: Callable[..., Runner], texts: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"1\.txt: line 61: not UTF-8: .*; save the text as UTF-8$"):
        prepare(texts, tmp_path / "there", lenient(malformed="error"), run=on_ray())
    assert sorted(tmp_path.iterdir()) == texts


def test_the_driver_gets_records_and_never_text_or_tokens(on_ray: Callable[..., Runner], tmp_path: Path) -> None:
    from ray import cloudpickle

    text = tmp_path / "text.txt"
    text.write_text("of all that is said of it, this is a line\n" * 50_000)
    sizes: list[int] = []

    def run(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
        for result in on_ray()(work, items):
            sizes.append(len(cloudpickle.dumps(result)))
            yield result

    prepare([text], tmp_path / "out", PrepareOptions(split_bytes=1 << 19), run=run)
    assert sum(sizes) < text.stat().st_size / 200


def test_a_dataset_goes_straight_to_a_uri(
    on_ray: Callable[..., Runner], texts: list[Path], here: PrepareResult, tmp_path: Path
) -> None:
    there = prepare(texts, (tmp_path / "there").as_uri(), lenient(), run=on_ray())
    assert there.dataset_id == here.dataset_id == open_dataset(tmp_path / "there").dataset_id
    assert files(tmp_path / "there") == files(tmp_path / "here")


def test_scores_are_those_of_one_process_to_the_last_bit(on_ray: Callable[..., Runner], tmp_path: Path) -> None:
    import pyarrow.parquet as pq
    from trained_runs import load, make_run

    from raylm.cluster.scoring import score_parts
    from raylm.training.inference import make_model
    from raylm.training.score import score_text, write_parquet

    trained = load(make_run(tmp_path / "made"))
    words = trained.vocabulary.words[2:]
    for number in range(3):
        lines = [" ".join(random.Random(number + line).choices(words, k=line % 9)) for line in range(200)]
        (tmp_path / f"{number}.txt").write_text("\n".join(lines))
    files = [str(tmp_path / f"{number}.txt") for number in (2, 0, 1, 0)]
    for longest in (None, 5):
        tables = score_text(make_model(trained), files, trained.tokenizer, trained.vocabulary, longest)
        tokens = write_parquet(tables, tmp_path / "here.parquet")
        assert score_parts(trained, files, longest, tmp_path / "there.parquet", on_ray(2)) == tokens
        assert pq.read_table(tmp_path / "there.parquet").equals(pq.read_table(tmp_path / "here.parquet"))
    (tmp_path / "1.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"1\.txt: line 1: not UTF-8"):
        score_parts(trained, files, None, tmp_path / "bad.parquet", on_ray(2))
    assert {path.suffix for path in tmp_path.iterdir()} == {"", ".txt", ".parquet"}
    assert not (tmp_path / "bad.parquet").exists()


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-c", "from raylm.cli.main import main; main()", "prepare", *map(str, words)]


def raylm(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=120, check=False)


def test_the_command_uses_the_cluster_at_an_address(
    cluster: str, texts: list[Path], here: PrepareResult, tmp_path: Path
) -> None:
    chosen = OPTIONS.model_dump(include={"vocab_size", "min_count", "split_bytes", "chunk_tokens", "shard_tokens"})
    words = [word for name, value in chosen.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    where = ["--output", tmp_path / "there", "--ray", "--address", cluster, "--processes", "1"]
    ended = raylm(*texts, *where, *words, "--max-reject-fraction", "0.5", "--json")
    assert (ended.returncode, ended.stderr.count("Traceback")) == (0, 0)
    assert json.loads(ended.stdout)["dataset_id"] == here.dataset_id


def mind_ctrl_c() -> None:
    """A shell's background job ignores Ctrl-C, and so does all that it starts; these tests may run in one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_leaves_nothing(number: int, code: int, cluster: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("of all that is said of it, this is a line\n" * 400_000)
    words = command(text, "--output", tmp_path / "out", "--split-bytes", "1000000", "--ray", "--address", cluster)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=mind_ctrl_c)
    while not any(path.name.startswith(".out.") for path in tmp_path.iterdir()) and process.poll() is None:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in said
    time.sleep(1)
    assert list(tmp_path.iterdir()) == [text]


def workers_of(cluster_pid: int) -> list[int]:
    """The processes below one that do a task of Ray Data."""
    found, parents = [], {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            status = (entry / "stat").read_text()
            parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])
            if (entry / "cmdline").read_bytes().startswith(b"ray::Map(prepare_piece)"):
                found.append(int(entry.name))
    return [pid for pid in found if parents.get(parents.get(pid, 0)) == cluster_pid]


def test_workers_that_die_too_often_are_told_with_exit_code_1(cluster: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("of all that is said of it, this is a line\n" * 2_000_000)
    words = command(text, "--output", tmp_path / "out", "--ray", "--address", cluster)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        for pid in workers_of(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    said = process.stderr.read().splitlines()[-1] if process.stderr else ""
    assert process.returncode == 1
    found = re.fullmatch(r"raylm prepare: a task could not be done \(.+\); what Ray printed is in (.+\.log)", said)
    assert found
    Path(found[1]).unlink()
    assert list(tmp_path.iterdir()) == [text]


def test_a_cluster_that_is_not_there_is_one_clear_line(texts: list[Path], tmp_path: Path) -> None:
    ended = raylm(texts[0], "--output", tmp_path / "there", "--ray", "--address", "127.0.0.1:9")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("raylm prepare: no Ray cluster answers at 127.0.0.1:9")
    assert sorted(tmp_path.iterdir()) == texts
