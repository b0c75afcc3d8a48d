"""Counting the words of a corpus, split by split, and choosing the vocabulary.

`count_split` writes the counts of one split to files, one for each partition of the words; `merge_partition` adds up
one partition over all splits and keeps what can enter a vocabulary. Neither holds more than one split's distinct
words, or one partition's, and doing either again changes nothing, so both can be lost, repeated and spread.
"""

from __future__ import annotations

import heapq
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.feather as feather

from raylm.data.caching import storing
from raylm.data.inputs import Split, read_piece
from raylm.data.lines import without_malformed
from raylm.data.tokenize import tokenizer_named
from raylm.data.vocabulary import END_OF_SENTENCE, UNKNOWN, Vocabulary
from raylm.data.workspace import Workspace
from raylm.errors import UserError

_DISTINCT_AT_ONCE = 1 << 20
_PARTITION_BYTES = 1 << 30


@dataclass(frozen=True)
class Counted:
    """What counting one split left behind: its files."""

    index: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class Candidates:
    """What one partition brings to the vocabulary: its most frequent words, and how many tokens the others make."""

    words: tuple[tuple[str, int], ...]
    left_out: int


def partitions_for(splits: Sequence[Split]) -> int:
    """Into how many partitions the words of these splits go: one for each GiB of text."""
    return 1 + sum(split.bytes for split in splits) // _PARTITION_BYTES


def count_split(split: Split, *, tokenizer: str, text_column: str, partitions: int, work: Workspace) -> Counted:
    """Count the tokens of a split, `<eos>` once for each line that is not blank, into files of a workspace.

    Raises:
        UserError: the input cannot be read, or the workspace cannot be written.
    """
    counter = tokenizer_named(tokenizer)
    raw: Counter[str] = Counter()
    ends = 0
    files: list[str] = []
    for piece in split.pieces:
        for block in read_piece(piece, text_column=text_column):
            if counter.is_text:
                block, _ = without_malformed(block)
            raw.update(counter.count(block.data))
            ends += sum(1 for line in block.data.split(b"\n") if line.strip())
            if len(raw) > _DISTINCT_AT_ONCE:
                files += _write(_tokens(raw, counter.pieces), split.index, len(files), partitions, work)
                raw.clear()
    tokens = _tokens(raw, counter.pieces)
    tokens[END_OF_SENTENCE] += ends
    files += _write(tokens, split.index, len(files), partitions, work)
    return Counted(split.index, tuple(files))


def merge_partition(
    partition: int, *, files: Sequence[str], work: Workspace, size: int | None, min_count: int
) -> Candidates:
    """Add up one partition of the counts of all splits.

    Of its words at least `min_count` times there, the `size` most frequent are candidates (all where it is None);
    `<unk>` and `<eos>` always are.

    Raises:
        UserError: a file of counts is missing or damaged.
    """
    counts: Counter[str] = Counter()
    for name in files:
        if _partition_of(name) == partition:
            try:
                table = feather.read_table(pa.BufferReader(work.read(name)))
            except (OSError, pa.ArrowInvalid) as error:
                raise UserError(f"the counts {name} cannot be read ({error}); prepare again") from None
            for word, count in zip(table["word"].to_pylist(), table["count"].to_pylist(), strict=True):
                counts[word] += count
    special = [(word, counts.pop(word)) for word in (END_OF_SENTENCE, UNKNOWN) if word in counts]
    frequent = ((word, count) for word, count in counts.items() if count >= min_count)
    words = sorted(frequent, key=_rank) if size is None else heapq.nsmallest(size, frequent, key=_rank)
    return Candidates((*special, *words), counts.total() - sum(count for _, count in words))


def choose_vocabulary(candidates: Iterable[Candidates], size: int | None) -> Vocabulary:
    """The `size` most frequent words (all where it is None), `<unk>` and `<eos>` always among them.

    By falling count, then by code point (the order of the literature's reference reader); `<unk>` counts for all that
    is left out.

    Raises:
        UserError: the size does not leave room for one word.
    """
    if size is not None and size < 3:
        raise UserError(f"a vocabulary of {size} has no room: it needs {UNKNOWN}, {END_OF_SENTENCE} and a word")
    parts = tuple(candidates)
    special = {END_OF_SENTENCE: 0, UNKNOWN: sum(part.left_out for part in parts)}
    words: list[tuple[str, int]] = []
    for word, count in sorted((entry for part in parts for entry in part.words), key=_rank):
        if word in special:
            special[word] += count
        else:
            words.append((word, count))
    room = len(words) if size is None else size - len(special)
    special[UNKNOWN] += sum(count for _, count in words[room:])
    return Vocabulary(tuple(word for word, _ in sorted([*words[:room], *special.items()], key=_rank)))


def _rank(entry: tuple[str, int]) -> tuple[int, str]:
    return -entry[1], entry[0]


def _tokens(raw: Mapping[str, int], pieces: Callable[[str], tuple[str, ...]]) -> Counter[str]:
    tokens: Counter[str] = Counter()
    for word, count in raw.items():
        for piece in pieces(word):
            tokens[piece] += count
    return tokens


def _write(tokens: Mapping[str, int], split: int, first: int, partitions: int, work: Workspace) -> list[str]:
    """One file of counts for each partition that has any."""
    parts: list[list[str]] = [[] for _ in range(partitions)]
    for word in tokens:
        parts[zlib.crc32(word.encode()) % partitions].append(word)
    names: list[str] = []
    for partition, words in enumerate(parts):
        if words:
            name = f"{split:06d}-{first + len(names):04d}-{partition:04d}.arrow"
            table = pa.table({"word": pa.array(words, pa.utf8()), "count": [tokens[word] for word in words]})
            with work.scratch() as folder, storing(folder):
                feather.write_feather(table, folder / name, compression="lz4")
                work.put(folder / name, name)
            names.append(name)
    return names


def _partition_of(name: str) -> int:
    return int(name.removesuffix(".arrow").rsplit("-", 1)[1])
