"""The sample corpus: real English, prepared like PTB, the same every time."""

from __future__ import annotations

import ast
import math
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from raylm.data.sample import build_sample, find_sample, sentences, standard_library_texts
from raylm.errors import UserError

STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))


@pytest.fixture(scope="module")
def parts() -> tuple[str, str, str]:
    return build_sample(standard_library_texts(STANDARD_LIBRARY))


def test_the_sample_is_about_as_large_and_as_hard_as_it_is_said_to_be(parts: tuple[str, str, str]) -> None:
    words = Counter("".join(parts).replace("\n", " <eos> ").split())
    tokens = sum(words.values())
    perplexity = math.exp(-sum(count / tokens * math.log(count / tokens) for count in words.values()))
    assert 340_000 < tokens < 440_000
    assert 21_000 < words["<eos>"] < 26_000
    assert 320 < perplexity < 420
    assert len(words) <= 10_000


def test_no_sentence_is_there_twice_and_eight_of_ten_are_for_training(parts: tuple[str, str, str]) -> None:
    train, valid, test = (part.splitlines() for part in parts)
    assert abs(len(train) - 8 * len(valid)) <= 16
    assert len(valid) == len(test)
    whole = [line for line in (*train, *valid, *test) if "<unk>" not in line]
    assert len(set(whole)) == len(whole)


def test_training_has_every_word_of_the_vocabulary_and_unknown_words(parts: tuple[str, str, str]) -> None:
    train, valid, test = (set(part.split()) for part in parts)
    assert valid | test <= train
    assert {"<unk>", "N", "the"} <= train
    assert not any(word != word.lower() for word in train - {"N"})


def test_docstrings_come_in_the_order_of_the_whole_tree() -> None:
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    wanted = []
    for path in sorted((STANDARD_LIBRARY / "asyncio").glob("*.py")):
        nodes = (node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, holders))
        wanted += [text for text in map(ast.get_docstring, nodes) if text]
    assert len(wanted) > 100
    assert list(standard_library_texts(STANDARD_LIBRARY / "asyncio")) == wanted


def test_making_the_sample_imports_nothing() -> None:
    before = set(sys.modules)
    build_sample(standard_library_texts(STANDARD_LIBRARY / "xmlrpc"))
    assert set(sys.modules) == before


def test_the_sample_is_the_same_every_time_and_made_only_once(parts: tuple[str, str, str], tmp_path: Path) -> None:
    said: list[str] = []
    paths = find_sample(tmp_path, said.append)
    assert tuple(path.read_text() for path in paths) == parts
    stamps = [path.stat().st_mtime_ns for path in paths]
    assert find_sample(tmp_path, said.append) == paths
    assert [path.stat().st_mtime_ns for path in paths] == stamps
    assert len(said) == 1


def test_sentences_are_in_the_penn_treebanks_manner() -> None:
    text = "It doesn't return 1,024 bytes.  Don't\nrely on the file's name: use os.path!"
    assert [" ".join(sentence) for sentence in sentences(text)] == [
        "it does n't return N bytes .",
        "do n't rely on the file 's name :",
        "use os . path",
    ]


def test_a_python_without_sources_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def (:\n")
    with pytest.raises(UserError, match="no documentation"):
        build_sample(standard_library_texts(tmp_path))
