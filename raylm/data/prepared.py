"""Datasets that were prepared before, as the corpus of a run."""

from __future__ import annotations

from pathlib import Path

from raylm.data.dataset import open_dataset
from raylm.data.manifest import MANIFEST
from raylm.data.remote import below, without_secrets
from raylm.errors import UserError

SPLITS = ("train", "valid", "test")


def find_prepared(corpus: tuple[str, ...], tokenizer: str | None = None) -> dict[str, str] | None:
    """The datasets of train, valid and test below one folder or URI; None where the corpus is something else.

    Raises:
        UserError: one of them is missing or damaged, their vocabularies differ, or `tokenizer` is not theirs.
    """
    if len(corpus) != 1:
        return None
    place = corpus[0]
    if "://" not in place and not any((Path(place).expanduser() / split / MANIFEST).is_file() for split in SPLITS):
        return None
    if "://" not in place:
        place = str(Path(place).expanduser().resolve())
    datasets = {split: below(place, split) for split in SPLITS}
    shown = {split: without_secrets(path) for split, path in datasets.items()}
    opened = {split: open_dataset(path) for split, path in datasets.items()}
    theirs = opened["train"].tokenizer
    if tokenizer not in (None, theirs):
        raise UserError(
            f"{shown['train']} was prepared with the tokenizer {theirs}, not {tokenizer}: prepare the text again "
            f"with --tokenizer {tokenizer}, or choose --data.tokenizer {theirs}"
        )
    vocabularies = {split: dataset.vocabulary for split, dataset in opened.items()}
    for split in SPLITS[1:]:
        if vocabularies[split] != vocabularies["train"]:
            raise UserError(
                f"{shown[split]} has another vocabulary than {shown['train']}: prepare it again with "
                f"--vocab {shown['train']}"
            )
    return datasets
