"""The stages of preparing a dataset: count, choose the vocabulary, encode, put what came of it in its place.

Each stage hands the splits to a `Runner`; nothing as large as the corpus ever is in this process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, TypeVar

from raylm.data.caching import storing
from raylm.data.counts import Counted, choose_vocabulary, count_split, merge_partition, partitions_for
from raylm.data.dataset import open_dataset
from raylm.data.encode import Encoded, Encoding, Reject, encode_split
from raylm.data.inputs import Split, shown
from raylm.data.manifest import REJECTS, FileRecord
from raylm.data.options import WORDS_VOCABULARY_SIZE, PrepareOptions
from raylm.data.runners import Runner
from raylm.data.shard import HashedFile, ShardRecord
from raylm.data.tokenize import BYTE_VOCABULARY
from raylm.data.vocabulary import Vocabulary
from raylm.data.workspace import Workspace
from raylm.data.writer import shard_name
from raylm.errors import UserError

PerSplit = TypeVar("PerSplit", Counted, Encoded)

_VOCABULARY = "vocabulary"


@dataclass(frozen=True)
class Progress:
    """How far `prepare` is: bytes of text done, of all, in this stage."""

    stage: Literal["counting", "encoding"]
    done: int
    total: int


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Job:
    """What is prepared, how, by whom, and where files on the way go."""

    splits: Sequence[Split]
    options: PrepareOptions
    work: Workspace
    run: Runner
    report: Report


@dataclass(frozen=True)
class Words:
    """The tokenizer's name and its vocabulary; `given_by` is the dataset_id of the dataset it was taken from."""

    tokenizer: str
    vocabulary: Vocabulary
    given_by: str | None = None


def find_words(job: Job) -> Words:
    """The vocabulary of the dataset that is named, or of the words counted.

    Raises:
        UserError: that dataset cannot be opened or has another tokenizer; the inputs cannot be read.
    """
    options = job.options
    if options.vocab is not None:
        dataset = open_dataset(options.vocab)
        tokenizer = str(dataset.manifest.provenance.get("tokenizer", options.tokenizer or "whitespace"))
        if options.tokenizer not in {None, tokenizer}:
            raise UserError(
                f"{shown(options.vocab)} was prepared with the tokenizer {tokenizer}, not {options.tokenizer}: "
                "leave --tokenizer out, or name another dataset"
            )
        return Words(tokenizer, dataset.vocabulary, dataset.dataset_id)
    tokenizer = options.tokenizer or "words"
    if tokenizer == "bytes":
        return Words(tokenizer, Vocabulary(BYTE_VOCABULARY))
    return Words(tokenizer, _count_vocabulary(job, tokenizer))


def encode_splits(job: Job, words: Words) -> list[Encoded]:
    """Encode every split; the results in order of the splits.

    Raises:
        UserError: the inputs cannot be read, too many of their lines are rejected, or none of them has a token.
    """
    options = job.options
    with job.work.scratch() as folder, storing(folder):
        (folder / _VOCABULARY).write_bytes("\n".join(words.vocabulary.words).encode())
        job.work.put(folder / _VOCABULARY, _VOCABULARY)
    encoding = Encoding(
        tokenizer=words.tokenizer,
        vocabulary_file=_VOCABULARY,
        text_column=options.text_column,
        malformed=options.malformed,
        max_row_tokens=options.max_row_tokens,
        long_rows=options.long_rows,
        chunk_tokens=options.chunk_tokens,
        shard_tokens=options.shard_tokens,
    )
    encode = partial(encode_split, encoding=encoding, work=job.work)
    encoded = sorted(_reporting(job, "encoding", job.run(encode, job.splits)), key=lambda part: part.index)
    _refuse_rejects(job, encoded)
    if not any(part.tokens for part in encoded):
        raise UserError(f"{job.splits[0].pieces[0].place} is empty: not one line of it has a token")
    return encoded


def place_shards(job: Job, encoded: Sequence[Encoded]) -> list[ShardRecord]:
    """Give the shards of all splits their places in the dataset; returns their records, in order."""
    shards = [entry for part in encoded for entry in part.shards]
    job.work.place([(name, shard_name(number)) for number, (name, _) in enumerate(shards)])
    return [record for _, record in shards]


def place_rejects(job: Job, encoded: Sequence[Encoded], dataset: Path) -> FileRecord | None:
    """Write the list of all rejects into the dataset: source, line (from 1) and reason; None where there are none."""
    if not any(part.rejected for part in encoded):
        return None
    with storing(dataset):
        path = dataset / REJECTS
        path.parent.mkdir()
        file = HashedFile(path)
        for source, line, reason in _rejects(job, encoded):
            entry = {"source": source, "line": line, "reason": reason}
            file.write((json.dumps(entry, ensure_ascii=False) + "\n").encode())
        return file.seal()


def _count_vocabulary(job: Job, tokenizer: str) -> Vocabulary:
    options, partitions = job.options, partitions_for(job.splits)
    size = options.vocab_size or (WORDS_VOCABULARY_SIZE if tokenizer == "words" else None)
    count = partial(
        count_split,
        tokenizer=tokenizer,
        text_column=options.text_column,
        partitions=partitions,
        work=job.work,
    )
    counted = _reporting(job, "counting", job.run(count, job.splits))
    files = sorted(chain.from_iterable(part.files for part in counted))
    merge = partial(merge_partition, files=files, work=job.work, size=size, min_count=options.min_count)
    return choose_vocabulary(job.run(merge, range(partitions)), size)


def _reporting(job: Job, stage: Literal["counting", "encoding"], results: Iterable[PerSplit]) -> Iterator[PerSplit]:
    """Passes results on, and says after each how much text is done."""
    done, total = 0, sum(split.bytes for split in job.splits)
    job.report(Progress(stage, done, total))
    for result in results:
        done += job.splits[result.index].bytes
        job.report(Progress(stage, done, total))
        yield result


def _refuse_rejects(job: Job, encoded: Sequence[Encoded]) -> None:
    rejected = sum(part.rejected for part in encoded)
    filled = sum(sum(part.piece_lines) - part.empty for part in encoded)
    largest = job.options.max_reject_fraction
    if rejected > largest * filled:
        source, line, reason = next(_rejects(job, encoded))
        raise UserError(
            f"{rejected:,} of {filled:,} lines are rejected, over --max-reject-fraction {largest:g}; "
            f"the first is {source}, line {line:,}: {reason}"
        )


def _rejects(job: Job, encoded: Sequence[Encoded]) -> Iterator[tuple[str, int, str]]:
    """Source, line in the source (from 1) and reason of every reject, in order."""
    line_before = 0
    for split, part in zip(job.splits, encoded, strict=True):
        starts = []
        for piece, lines in zip(split.pieces, part.piece_lines, strict=True):
            line_before = 0 if piece.start == 0 else line_before
            starts.append(line_before)
            line_before += lines
        if part.rejects_file:
            for entry in job.work.read(part.rejects_file).splitlines():
                reject = Reject(*json.loads(entry))
                yield split.pieces[reject.piece].place, starts[reject.piece] + reject.line + 1, reject.reason
