"""The three datasets of a training run: the counts that are known, one vocabulary, and nothing prepared twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylm.data.corpora import Corpus
from raylm.data.dataset import Dataset, open_dataset
from raylm.data.prepare import prepare_corpus
from raylm.errors import UserError


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def text_of(dataset: Dataset) -> str:
    return dataset.vocabulary.decode(dataset.read(0, dataset.tokens)).replace(" <eos>", "\n").replace("\n ", "\n")


def corpus_of(folder: Path, train: str, valid: str = "a\n", test: str = "a\n") -> Corpus:
    parts = [
        (write(folder / f"{name}.txt", text),) for name, text in (("train", train), ("valid", valid), ("test", test))
    ]
    return Corpus("text", *parts, is_ptb=False, note="")


def test_the_penn_treebanks_known_counts_come_out(ptb_dir: Path, tmp_path: Path) -> None:
    files = [(ptb_dir / f"ptb.{part}.txt",) for part in ("train", "valid", "test")]
    prepared = prepare_corpus(Corpus("ptb", *files, is_ptb=True, note=""), tmp_path, print)
    train, valid, test = (open_dataset(path) for path in (prepared.train, prepared.valid, prepared.test))
    assert [train.tokens, valid.tokens, test.tokens] == [929_589, 73_760, 82_430]
    assert [train.rows, valid.rows, test.rows] == [42_068, 3_370, 3_761]
    assert len(train.vocabulary) == 10_000
    assert round(100 * train.unknowns / train.tokens, 2) == 4.84
    assert train.vocabulary.words[:6] == ("the", "<unk>", "<eos>", "N", "of", "to")
    assert train.vocabulary == valid.vocabulary == test.vocabulary
    text = " ".join((ptb_dir / "ptb.valid.txt").read_text().replace("\n", "<eos>").split())
    assert valid.vocabulary.decode(valid.read(0, valid.tokens)) == text


def test_words_unseen_in_training_are_unknown_in_held_out_text(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, "b a\n\n  \na a c\n", valid="a new word\n", test="c\n")
    prepared = prepare_corpus(corpus, tmp_path / "cache", print)
    train, valid = open_dataset(prepared.train), open_dataset(prepared.valid)
    assert train.vocabulary.words == ("a", "<eos>", "b", "c", "<unk>")
    assert text_of(train) == "b a\na a c\n"
    assert text_of(valid) == "a <unk> <unk>\n"


def test_text_of_ones_own_keeps_its_most_frequent_words(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, "a a b b c d\n" * 3)
    prepared = prepare_corpus(corpus, tmp_path / "cache", print, vocabulary_size=4)
    assert open_dataset(prepared.train).vocabulary.words == ("<unk>", "a", "b", "<eos>")
    with pytest.raises(UserError, match="vocabulary of 2 has no room"):
        prepare_corpus(corpus, tmp_path / "cache", print, vocabulary_size=2)


def test_prepared_text_is_used_again_until_the_text_changes(tmp_path: Path) -> None:
    said: list[str] = []
    corpus = corpus_of(tmp_path, "a b\n")
    prepared = prepare_corpus(corpus, tmp_path / "cache", said.append)
    assert prepare_corpus(corpus, tmp_path / "cache", said.append) == prepared
    assert len(said) == 1
    changed = prepare_corpus(corpus_of(tmp_path, "a b c\n"), tmp_path / "cache", said.append)
    assert changed != prepared
    assert len(said) == 2


def test_prepared_text_that_is_damaged_is_prepared_again(tmp_path: Path) -> None:
    said: list[str] = []
    corpus = corpus_of(tmp_path, "a b\n")
    prepared = prepare_corpus(corpus, tmp_path / "cache", said.append)
    (prepared.valid / "index.arrow").write_bytes(b"no index")
    assert prepare_corpus(corpus, tmp_path / "cache", said.append) == prepared
    assert "index.arrow" in said[1]
    assert open_dataset(prepared.valid).tokens == 2


def test_text_that_cannot_be_prepared_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.txt is empty"):
        prepare_corpus(corpus_of(tmp_path / "a", ""), tmp_path / "cache", print)
    with pytest.raises(UserError, match=r"valid\.txt is empty"):
        prepare_corpus(corpus_of(tmp_path / "b", "a\n", valid="\n"), tmp_path / "cache", print)
    latin = corpus_of(tmp_path / "c", "a\n")
    write(latin.test[0], b"a\na \xe9\n")
    with pytest.raises(UserError, match=r"test\.txt: line 2: not UTF-8: byte offset 4 \(0xe9\)"):
        prepare_corpus(latin, tmp_path / "cache", print)
    assert list((tmp_path / "cache").iterdir()) == []
