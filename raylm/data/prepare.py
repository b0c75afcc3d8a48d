"""From text to datasets."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from raylm.data.caching import new_folder
from raylm.data.corpora import Corpus
from raylm.data.dataset import open_dataset
from raylm.data.inputs import Block, check_utf8, opening, plan_splits, read_split
from raylm.data.tokenize import WhitespaceWords
from raylm.data.vocabulary import END_OF_SENTENCE, UNKNOWN, Vocabulary
from raylm.data.writer import DatasetWriter
from raylm.errors import UserError

_VERSION = 1


@dataclass(frozen=True)
class Prepared:
    """Three datasets that share the vocabulary of train."""

    train: Path
    valid: Path
    test: Path


def prepare_corpus(
    corpus: Corpus, destination: Path, say: Callable[[str], None], *, vocabulary_size: int = 10_000
) -> Prepared:
    """The three datasets of a corpus, below `destination`; taken from there when the same text was prepared before.

    Words are divided by white space, every line ends with `<eos>`, lines without words are left out. PTB keeps its
    own 10,000 words; other text keeps its `vocabulary_size` most frequent, `<unk>` and `<eos>` among them.

    Raises:
        UserError: text is missing, unreadable, empty or not UTF-8, or the destination cannot be written to.
    """
    splits = {"train": corpus.train, "valid": corpus.valid, "test": corpus.test}
    key = _digest(f"{_VERSION} {vocabulary_size} {corpus.is_ptb}", splits)
    folder = destination / f"{corpus.name}-{key[:16]}"
    prepared = Prepared(folder / "train", folder / "valid", folder / "test")
    if folder.is_dir():
        try:
            for path in (prepared.train, prepared.valid, prepared.test):
                open_dataset(path)
            return prepared
        except UserError as damaged:
            say(f"{damaged}; preparing it again")
            shutil.rmtree(folder, ignore_errors=True)
    say(f"preparing {corpus.name}")
    counts = count_words(corpus.train)
    vocabulary = choose_vocabulary(counts, None if corpus.is_ptb else vocabulary_size)
    with new_folder(folder) as staging:
        for name, paths in splits.items():
            _write(paths, vocabulary, staging / name)
    return prepared


def count_words(paths: tuple[Path, ...]) -> Counter[str]:
    """How often each word of the text is there, `<eos>` once for every line that has words.

    Raises:
        UserError: the text has no words, cannot be read or is not UTF-8.
    """
    counts: Counter[str] = Counter()
    tokenizer = WhitespaceWords()
    for _, block in _blocks(paths):
        counts.update(tokenizer.count(block.data))
        counts[END_OF_SENTENCE] += sum(1 for line in block.data.split(b"\n") if line.strip())
    if not counts[END_OF_SENTENCE]:
        raise UserError(f"{paths[0]} is empty: there is nothing to train on")
    return counts


def choose_vocabulary(counts: Mapping[str, int], size: int | None) -> Vocabulary:
    """Words by falling count, then by code point (the order of the literature's reference reader).

    With a `size`, at most so many words, and `<unk>` among them, which counts for all that are left out. Without,
    exactly the words counted.
    """
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if size is None:
        return Vocabulary(tuple(word for word, _ in ranked))
    special = {END_OF_SENTENCE: counts.get(END_OF_SENTENCE, 0), UNKNOWN: counts.get(UNKNOWN, 0)}
    words = [item for item in ranked if item[0] not in special]
    special[UNKNOWN] += sum(count for _, count in words[size - 2 :])
    kept = sorted([*words[: size - 2], *special.items()], key=lambda item: (-item[1], item[0]))
    return Vocabulary(tuple(word for word, _ in kept))


def _write(paths: tuple[Path, ...], vocabulary: Vocabulary, destination: Path) -> None:
    encode = WhitespaceWords().encoder(vocabulary)
    tokens = 0
    with DatasetWriter(destination, vocabulary) as writer:
        for _, block in _blocks(paths):
            rows = encode(block.data)
            writer.append(rows.ids, rows.lengths)
            tokens += len(rows.ids)
        if not tokens:
            raise UserError(f"{paths[0]} is empty: there is nothing to measure the model on")
        writer.commit()


def _blocks(paths: tuple[Path, ...]) -> Iterator[tuple[str, Block]]:
    """Blocks of all files, UTF-8 checked."""
    before: dict[str, int] = {}
    for split in plan_splits(paths):
        for block in read_split(split):
            check_utf8(block, split.source, before.get(split.source, 0))
            yield split.source, block
        before[split.source] = before.get(split.source, 0) + block.first_line + block.lines


def _digest(head: str, splits: Mapping[str, tuple[Path, ...]]) -> str:
    digest = hashlib.sha256(head.encode())
    for name, paths in splits.items():
        for path in paths:
            with opening(path), path.open("rb") as file:
                digest.update(f" {name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()
