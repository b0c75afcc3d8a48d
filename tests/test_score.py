"""Every token of a text file gets its row, its place and its log probability; memory holds a part of it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_datasets import words

from raylm.config import ModelConfig
from raylm.data.inputs import plan_splits
from raylm.data.textrows import rows_of_text
from raylm.errors import UserError
from raylm.model.language_model import LanguageModel
from raylm.training import score
from raylm.training.likelihood import Likelihood
from raylm.training.score import SCHEMA, score_text, write_lines, write_parquet

VOCABULARY = words(30)
TEXT = "w3 never w5\n\n \nw7\nw8 w9 w10 w11\n"
ROWS = [(1, [3, 1, 5, 0]), (4, [7, 0]), (5, [8, 9, 10, 11, 0])]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(ModelConfig(layers=1, hidden=6, init_scale=0.9), len(VOCABULARY), seed=0)


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def table(model: LanguageModel, *files: str) -> list[dict[str, object]]:
    return pa.Table.from_batches(score_text(model, files, "whitespace", VOCABULARY), SCHEMA).to_pylist()


def test_every_token_has_its_row_place_word_and_log_probability(model: LanguageModel, file: str) -> None:
    found = table(model, file)
    places = [(row, place, word) for row, ids in ROWS for place, word in enumerate(ids)]
    assert [(each["row"], each["position"], each["id"]) for each in found] == places
    assert [each["word"] for each in found] == [VOCABULARY.words[word] for _, _, word in places]
    assert {each["file"] for each in found} == {file}
    ids = np.array([0, *(word for _, _, word in places)])
    expected = np.concatenate(list(Likelihood(model).log_probabilities([ids])))
    np.testing.assert_allclose([each["log_probability"] for each in found], expected, atol=1e-6)


def test_lines_that_stand_alone_have_no_log_probability_of_their_first_word(model: LanguageModel, file: str) -> None:
    found = pa.Table.from_batches(score_text(model, [file], "whitespace", VOCABULARY, longest=9), SCHEMA)
    expected: list[float | None] = []
    for _, ids in ROWS:
        expected += [None, *next(Likelihood(model).of_sentences([np.array(ids)], 9)).tolist()]
    assert found["log_probability"].to_pylist() == [each if each is None else pytest.approx(each) for each in expected]
    assert found["row"].to_pylist() == [row for row, ids in ROWS for _ in ids]


def test_each_file_is_read_anew_also_the_same_one_twice(model: LanguageModel, file: str) -> None:
    once, twice = table(model, file), table(model, file, file)
    assert twice == once + once


@pytest.mark.parametrize("at_once", [1, 3, 7])
def test_how_many_tokens_are_worked_on_at_once_changes_nothing(
    at_once: int, model: LanguageModel, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = table(model, file)
    monkeypatch.setattr(score, "_TOKENS_AT_ONCE", at_once)
    assert table(model, file) == expected


def test_parquet_and_json_lines_hold_the_same(
    model: LanguageModel, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "_TOKENS_AT_ONCE", 2)
    monkeypatch.setattr(score, "_ROW_GROUP", 5)
    expected = table(model, file, file)
    output, printed = tmp_path / "out.parquet", io.StringIO()
    assert write_parquet(score_text(model, [file, file], "whitespace", VOCABULARY), output) == len(expected) == 22
    assert pq.read_table(output).to_pylist() == expected
    assert pq.read_schema(output).equals(SCHEMA)
    assert pq.ParquetFile(output).metadata.num_row_groups > 2
    assert write_lines(score_text(model, [file, file], "whitespace", VOCABULARY), printed) == 22
    assert [json.loads(line) for line in printed.getvalue().splitlines()] == expected


def test_a_bad_line_is_named_and_leaves_what_was_at_the_output(
    model: LanguageModel, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, output = tmp_path / "bad.txt", tmp_path / "out.parquet"
    bad.write_bytes(b"w3\nw4 \xff\n")
    output.write_text("what was here")
    with pytest.raises(UserError, match=r"bad\.txt: line 2: not UTF-8: byte offset 6 \(0xff\)"):
        write_parquet(score_text(model, [file, str(bad)], "whitespace", VOCABULARY), output)
    assert output.read_text() == "what was here"
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "bad.txt", "out.parquet"}


@pytest.mark.parametrize(("content", "said"), [(None, "does not exist"), (b"\n \n", "holds no text"), (b"", "no text")])
def test_a_missing_or_empty_file_is_refused(
    content: bytes | None, said: str, model: LanguageModel, tmp_path: Path
) -> None:
    place = tmp_path / "text.txt"
    if content is not None:
        place.write_bytes(content)
    with pytest.raises(UserError, match=said):
        table(model, str(place))


def test_an_output_that_cannot_be_written_is_one_line(model: LanguageModel, file: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="out: cannot be written"):
        write_parquet(score_text(model, [file], "whitespace", VOCABULARY), Path(file) / "out")


def test_rows_keep_their_line_numbers_where_a_file_is_cut_into_pieces(tmp_path: Path) -> None:
    place = tmp_path / "long.txt"
    place.write_text("".join(f"w{line % 20 + 2}\n" * (line % 3 > 0) + "\n" * (line % 3 == 0) for line in range(200)))
    assert len(plan_splits([place], split_bytes=50)) > 5
    pieces = list(rows_of_text([place], "whitespace", VOCABULARY, split_bytes=50))
    lines = np.concatenate([piece.lines for piece in pieces])
    assert lines.tolist() == [line + 1 for line in range(200) if line % 3]
    firsts = np.concatenate([piece.ids for piece in pieces])[::2]
    assert firsts.tolist() == [line % 20 + 2 for line in range(200) if line % 3]
