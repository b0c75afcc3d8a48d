"""Preparing: the same text gives the same dataset, whoever does the work, and nothing is lost without a word."""

from __future__ import annotations

import gzip
import json
import random
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylm.data.dataset import Dataset, open_dataset
from raylm.data.options import PrepareOptions
from raylm.data.prepare import prepare
from raylm.data.runners import in_processes
from raylm.data.stages import Progress
from raylm.data.vocabulary import Vocabulary
from raylm.data.writer import DatasetWriter
from raylm.errors import UserError

SMALL = {"split_bytes": 700, "chunk_tokens": 64, "shard_tokens": 256}


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def some_text(lines: int = 200, seed: int = 0) -> str:
    draw = random.Random(seed)
    words = [f"w{n}" for n in range(60)] + ["naïve", "don't", "7,500", "end."]
    return "".join(" ".join(draw.choices(words, k=draw.randrange(12))) + "\n" for _ in range(lines))


def text_of(dataset: Dataset) -> str:
    return dataset.vocabulary.decode(dataset.read(0, dataset.tokens)).replace(" <eos>", "\n").replace("\n ", "\n")


def options(**changes: Any) -> PrepareOptions:
    return PrepareOptions(**{"tokenizer": "whitespace", **changes})


def test_the_dataset_is_the_same_whoever_prepares_it_and_in_any_order(tmp_path: Path) -> None:
    inputs = [write(tmp_path / f"{n}.txt", some_text(seed=n)) for n in range(3)]

    def shuffled_and_repeated(work: Any, items: Any) -> Iterator[Any]:
        order = list(items) * 2
        random.Random(7).shuffle(order)
        results = {item: work(item) for item in order}
        yield from results.values()

    chosen = options(tokenizer="words", min_count=2, **SMALL)
    once = prepare(inputs, tmp_path / "once", chosen)
    again = prepare(inputs, tmp_path / "again", chosen, run=shuffled_and_repeated)
    several = prepare(inputs, tmp_path / "several", chosen, run=in_processes(2))
    assert once.dataset_id == again.dataset_id == several.dataset_id
    assert len(list((tmp_path / "once/shards").iterdir())) > 5
    names = sorted(path.relative_to(tmp_path / "once") for path in (tmp_path / "once").rglob("*") if path.is_file())
    for name in names:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "several" / name).read_bytes(), name
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_the_dataset_is_the_same_from_text_gzip_zstd_and_parquet(tmp_path: Path) -> None:
    text = some_text()
    inputs = [
        write(tmp_path / "plain", text),
        write(tmp_path / "gzip", gzip.compress(text.encode())),
        write(tmp_path / "zstd", pa.Codec("zstd").compress(text.encode(), asbytes=True)),
        tmp_path / "parquet",
    ]
    pq.write_table(pa.table({"body": text.splitlines()}), tmp_path / "parquet", row_group_size=70)
    results = [prepare([path], tmp_path / f"of {path.name}", options(text_column="body")) for path in inputs]
    assert len({result.dataset_id for result in results}) == 1
    assert {result.lines for result in results} == {200}
    assert {result.empty_lines for result in results} == {sum(1 for line in text.splitlines() if not line)}


@pytest.mark.parametrize("tokenizer", ["whitespace", "words", "characters", "bytes"])
def test_no_token_is_lost_at_the_borders_of_splits(tokenizer: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", some_text())
    whole = prepare([path], tmp_path / "whole", options(tokenizer=tokenizer))
    cut = prepare([path], tmp_path / "cut", options(tokenizer=tokenizer, **SMALL))
    a, b = open_dataset(tmp_path / "whole"), open_dataset(tmp_path / "cut")
    assert a.vocabulary == b.vocabulary
    assert np.array_equal(a.read(0, a.tokens), b.read(0, b.tokens))
    assert (whole.tokens, whole.rows, whole.empty_lines) == (cut.tokens, cut.rows, cut.empty_lines)
    assert whole.tokens == a.tokens


def test_a_vocabulary_is_reused_with_its_tokenizer(tmp_path: Path) -> None:
    prepare([write(tmp_path / "t.txt", "The dog's bone.\n" * 2)], tmp_path / "train")
    valid = write(tmp_path / "v.txt", "The cat's bone.\n")
    prepare([valid], tmp_path / "valid", PrepareOptions(vocab=str(tmp_path / "train")))
    assert open_dataset(tmp_path / "valid").vocabulary == open_dataset(tmp_path / "train").vocabulary
    assert text_of(open_dataset(tmp_path / "valid")) == "the <unk> 's bone\n"
    with pytest.raises(UserError, match="tokenizer words, not bytes"):
        prepare([valid], tmp_path / "other", PrepareOptions(vocab=str(tmp_path / "train"), tokenizer="bytes"))
    with pytest.raises(UserError, match="no dataset"):
        prepare([valid], tmp_path / "other", PrepareOptions(vocab=str(tmp_path / "nowhere")))


def test_rare_words_become_unknown(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a a a b b c\n")
    prepare([path], tmp_path / "counted", options(min_count=2))
    assert open_dataset(tmp_path / "counted").vocabulary.words == ("a", "b", "<eos>", "<unk>")
    result = prepare([path], tmp_path / "sized", options(vocab_size=3))
    assert open_dataset(tmp_path / "sized").vocabulary.words == ("<unk>", "a", "<eos>")
    assert (result.unknowns, result.vocabulary) == (3, 3)


def test_counting_is_the_same_in_many_partitions_and_with_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.txt", some_text())
    plain = prepare([path], tmp_path / "plain", options(vocab_size=30, **SMALL))
    monkeypatch.setattr("raylm.data.counts._PARTITION_BYTES", 500)
    monkeypatch.setattr("raylm.data.counts._DISTINCT_AT_ONCE", 10)
    assert prepare([path], tmp_path / "spilled", options(vocab_size=30, **SMALL)).dataset_id == plain.dataset_id


def test_lines_that_are_not_utf8_are_rejected_listed_and_counted(tmp_path: Path) -> None:
    good = [b"line %d\n" % n for n in range(100)]
    good[61] = b"caf\xe9\n"
    paths = [write(tmp_path / "a.txt", b"".join(good)), write(tmp_path / "b.txt", b"fine\n\xff\xfe\n")]
    result = prepare(paths, tmp_path / "out", options(max_reject_fraction=0.5, **{**SMALL, "split_bytes": 64}))
    assert (result.rejects, result.lines, result.rows) == (2, 102, 100)
    listed = [json.loads(line) for line in (tmp_path / "out/rejects/rejects.jsonl").read_text().splitlines()]
    assert listed == [
        {
            "source": str(paths[0]),
            "line": 62,
            "reason": f"not UTF-8: byte offset {len(b''.join(good[:61])) + 3} (0xe9)",
        },
        {"source": str(paths[1]), "line": 2, "reason": "not UTF-8: byte offset 5 (0xff)"},
    ]
    with pytest.raises(UserError, match=r"2 of 102 lines are rejected.*0\.01.*a\.txt, line 62: not UTF-8"):
        prepare(paths, tmp_path / "strict", options())
    with pytest.raises(UserError, match=r"a\.txt: line 62: not UTF-8"):
        prepare(paths, tmp_path / "strict", options(malformed="error", split_bytes=64))
    assert not (tmp_path / "strict").exists()
    assert prepare(paths, tmp_path / "bytes", options(tokenizer="bytes")).rejects == 0


@pytest.mark.parametrize(
    ("policy", "text", "rejects"),
    [
        ("split", "a b c d e f g\nh i\n", 0),
        ("truncate", "a b\nh i\n", 0),
        ("drop", "h i\n", 1),
    ],
)
def test_rows_over_the_limit_are_counted(policy: str, text: str, rejects: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a b c d e f g\nh i\n")
    chosen = options(max_row_tokens=3, long_rows=policy, max_reject_fraction=1.0)
    result = prepare([path], tmp_path / "out", chosen)
    assert text_of(open_dataset(tmp_path / "out")) == text
    assert (result.long_rows, result.rejects) == (1, rejects)


def test_rows_over_the_limit_can_be_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a\n" * 40 + "a b c d\n")
    with pytest.raises(UserError, match=r"a\.txt: line 41: row of 5 tokens, over 3; .*--long-rows"):
        prepare([path], tmp_path / "out", options(max_row_tokens=3, long_rows="error", split_bytes=20))


def test_a_token_that_a_vocabulary_without_unknown_lacks_is_located(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "ab", Vocabulary(("a", "b", "<eos>"))) as writer:
        writer.append(np.array([0, 2]), np.array([2]))
        writer.commit()
    path = write(tmp_path / "a.txt", "a b\n" * 50 + "a c\n")
    with pytest.raises(UserError, match=r"a\.txt: line 51: the token 'c' is not in the vocabulary of 3 words"):
        prepare([path], tmp_path / "out", options(vocab=str(tmp_path / "ab"), split_bytes=64))


def test_an_output_that_is_taken_is_refused_and_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a\n")
    write(tmp_path / "out/precious", "keep me")
    with pytest.raises(UserError, match="out: there is something already"):
        prepare([path], tmp_path / "out", options())
    assert (tmp_path / "out/precious").read_text() == "keep me"
    with pytest.raises(UserError, match=r"a\.txt/out: cannot be written"):
        prepare([path], path / "out", options())


@pytest.mark.parametrize("limit", [20, 2_000, 12_000, 40_000])
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(limit: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", some_text(3000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written|cannot write"):
            prepare([path], tmp_path / "out", options())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [found.name for found in tmp_path.iterdir()] == ["a.txt"]


def test_inputs_without_a_token_are_refused(tmp_path: Path) -> None:
    for name, text in (("nothing.txt", ""), ("blank.txt", " \n\n")):
        with pytest.raises(UserError, match=f"{name} is empty"):
            prepare([write(tmp_path / name, text)], tmp_path / "out", options())
    with pytest.raises(UserError, match="list of inputs is empty"):
        prepare([], tmp_path / "out", options())
    assert not (tmp_path / "out").exists()


def test_a_dataset_is_uploaded_to_a_uri_manifest_last(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a b\n")
    uri = (tmp_path / "store/bucket").as_uri()
    result = prepare([path.as_uri()], uri, options())
    assert result.output == uri
    assert open_dataset(tmp_path / "store/bucket").dataset_id == result.dataset_id
    with pytest.raises(UserError, match="there is a dataset already"):
        prepare([path], uri, options())
    with pytest.raises(UserError, match=r"ftp://x/y: .*use a path, s3:// or gs://"):
        prepare([path], "ftp://x/y", options())


def test_progress_is_reported_in_bytes_of_text(tmp_path: Path) -> None:
    seen: list[Progress] = []
    path = write(tmp_path / "a.txt", some_text())
    prepare([path], tmp_path / "out", options(**SMALL), report=seen.append)
    size = path.stat().st_size
    for stage in ("counting", "encoding"):
        done = [progress.done for progress in seen if progress.stage == stage]
        assert done == sorted(done)
        assert (done[0], done[-1]) == (0, size)
