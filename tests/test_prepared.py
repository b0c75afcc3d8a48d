"""Datasets that were prepared before, as the corpus of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from raylm.data.prepared import find_prepared
from raylm.data.upload import upload_dataset
from raylm.data.vocabulary import Vocabulary
from raylm.data.writer import DatasetWriter
from raylm.errors import UserError


def _dataset(folder: Path, words: tuple[str, ...] = ("a", "b", "<eos>")) -> None:
    with DatasetWriter(folder, Vocabulary(words)) as writer:
        writer.append(np.array([0, 1, 2]), np.array([3]))
        writer.commit()


def test_a_folder_of_three_datasets_is_a_corpus(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        _dataset(tmp_path / split)
    found = find_prepared((f"{tmp_path}/",))
    assert found == {split: str(tmp_path / split) for split in ("train", "valid", "test")}


def test_so_is_a_uri_whose_options_are_those_of_its_datasets_and_whose_secrets_are_not_told(
    bucket: str, tmp_path: Path
) -> None:
    for split, words in (("train", ("a", "b", "<eos>")), ("valid", ("a", "b", "<eos>")), ("test", ("a", "c", "<eos>"))):
        _dataset(tmp_path / split, words)
        upload_dataset(tmp_path / split, bucket.format(f"data/{split}"))
    with pytest.raises(UserError, match="s3://bucket/data/test has another vocabulary") as refusal:
        find_prepared((bucket.format("data/"),))
    assert "hidden" not in str(refusal.value)
    shutil.rmtree(tmp_path / "test")
    _dataset(tmp_path / "test")
    upload_dataset(tmp_path / "test", bucket.format("data/test"))
    found = find_prepared((bucket.format("data/"),))
    assert found == {split: bucket.format(f"data/{split}") for split in ("train", "valid", "test")}


def test_text_and_names_of_corpora_are_no_datasets(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a\n")
    assert find_prepared((str(tmp_path),)) is None
    assert find_prepared(("ptb",)) is None
    assert find_prepared((str(tmp_path), str(tmp_path))) is None


def test_a_split_that_is_missing_is_named(tmp_path: Path) -> None:
    _dataset(tmp_path / "train")
    _dataset(tmp_path / "valid")
    with pytest.raises(UserError, match=f"{tmp_path}/test"):
        find_prepared((str(tmp_path),))


def test_splits_with_different_vocabularies_are_refused_with_the_option_that_helps(tmp_path: Path) -> None:
    _dataset(tmp_path / "train")
    _dataset(tmp_path / "valid", ("a", "c", "<eos>"))
    _dataset(tmp_path / "test")
    with pytest.raises(UserError, match=f"valid has another vocabulary.*--vocab {tmp_path}/train"):
        find_prepared((str(tmp_path),))


def test_datasets_of_another_tokenizer_than_was_asked_for_are_refused(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        _dataset(tmp_path / split)
    assert find_prepared((str(tmp_path),), "whitespace") is not None
    with pytest.raises(UserError, match=r"the tokenizer whitespace, not bytes: .* --data\.tokenizer whitespace"):
        find_prepared((str(tmp_path),), "bytes")
