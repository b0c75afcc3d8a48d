"""The texts that a model is evaluated on, by the names a person gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from raylm.data.caching import default_cache_dir
from raylm.data.corpora import find_corpus
from raylm.data.dataset import Dataset, open_dataset
from raylm.data.inputs import opening, plan_splits
from raylm.data.manifest import MANIFEST
from raylm.data.prepared import SPLITS, find_prepared
from raylm.data.textrows import rows_of_text
from raylm.errors import UserError
from raylm.training.loading import Trained, here

Rows = tuple[np.ndarray, np.ndarray]
"""Some rows of a text: their ids one row after the other, each ended by `<eos>`, and the length of each."""


@dataclass(frozen=True)
class Text:
    """A text in ids of the model's vocabulary; `read` begins it anew."""

    name: str
    read: Callable[[], Iterator[Rows]]


def sentences(rows: Iterator[Rows]) -> Iterator[np.ndarray]:
    """The ids of each row."""
    for ids, lengths in rows:
        yield from np.split(ids, np.cumsum(lengths)[:-1])


def find_texts(names: Sequence[str], trained: Trained, say: Callable[[str], None]) -> list[Text]:
    """The texts of each name, in order.

    A name is a split of the run's own data (train, valid, test); `ptb` or `sample`, for the valid and the test text of
    that corpus; a dataset of `raylm prepare`, or a folder of three, for its valid and test; else a text file, read as
    the training text was.

    Raises:
        UserError: there is no such text, it cannot be read, or its vocabulary is another one.
    """
    return [text for name in names for text in _texts(name, trained, say)]


def _texts(name: str, trained: Trained, say: Callable[[str], None]) -> list[Text]:
    if name in SPLITS:
        if not trained.datasets:
            raise UserError(f"{trained.place} is an export and knows no {name} text: name a file, a dataset, or ptb")
        return [_of_dataset(name, trained.datasets[name], trained)]
    if name in ("ptb", "sample"):
        data = trained.config.data
        cache = (data.cache_dir or default_cache_dir()).expanduser()
        corpus = find_corpus(name, data_dir=data.data_dir and data.data_dir.expanduser(), cache_dir=cache, say=say)
        return [
            _of_files(f"{name} {split}", files, trained)
            for split, files in (("valid", corpus.valid), ("test", corpus.test))
        ]
    if "://" in name:
        return [_of_dataset(name, name, trained)]
    place = here(name)
    with opening(place):
        is_folder, is_dataset = place.is_dir(), (place / MANIFEST).is_file()
    if is_dataset:
        return [_of_dataset(name, str(place), trained)]
    prepared = find_prepared((str(place),)) if is_folder else None
    if prepared:
        return [_of_dataset(prepared[split], prepared[split], trained) for split in ("valid", "test")]
    return [_of_files(name, (place,), trained)]


def _of_dataset(name: str, place: str, trained: Trained) -> Text:
    dataset = open_dataset(place)
    if dataset.vocabulary != trained.vocabulary:
        raise UserError(
            f"{place} has another vocabulary than the model: prepare it again with --vocab, or name its text"
        )
    return Text(name, partial(_rows, dataset))


def _rows(dataset: Dataset) -> Iterator[Rows]:
    for number in range(dataset.manifest.totals.chunks):
        chunk = dataset.chunk(number)
        yield chunk.tokens, np.diff(chunk.row_offsets)


def _of_files(name: str, files: Sequence[Path], trained: Trained) -> Text:
    plan_splits(files)  # a file that is missing is told now, not after minutes of reading others
    return Text(
        name, lambda: ((rows.ids, rows.lengths) for rows in rows_of_text(files, trained.tokenizer, trained.vocabulary))
    )
