"""The log probability of every token of text files, as tables.

Read as one lane, lines follow each other, each ended by `<eos>`; an `<eos>` stands before the first, so that every
token of a file is predicted from something. Read line by line, each is alone and its first token given. Either way the
carry begins anew with each file.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raylm.data.caching import storing
from raylm.data.textrows import TextRows, rows_of_text
from raylm.data.vocabulary import Vocabulary
from raylm.model.language_model import LanguageModel
from raylm.training.likelihood import Likelihood
from raylm.training.texts import sentences

SCHEMA = pa.schema(
    [
        pa.field("file", pa.dictionary(pa.int32(), pa.string())),
        pa.field("row", pa.int64()),
        pa.field("position", pa.int32()),
        pa.field("word", pa.string()),
        pa.field("id", pa.int32()),
        pa.field("log_probability", pa.float32()),
    ]
)
"""row: the line of the file, from 1. position: the token of the row, from 0. word: of the vocabulary, so `<unk>` for
one it lacks. log_probability: in nats, given all tokens before this one, of the file
or of the line; null for a first token that is given."""

_TOKENS_AT_ONCE = 1 << 13
_ROW_GROUP = 1 << 18


def score_text(
    model: LanguageModel,
    sources: Sequence[str],
    tokenizer: str,
    vocabulary: Vocabulary,
    longest: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """The table of all files, some rows of `SCHEMA` at a time, in order; memory is bounded.

    longest: read line by line, each alone, and longer ones in pieces of so many targets; the first token of a line has
    no log probability then.

    Raises:
        UserError: a file or a line of it cannot be read; names both.
    """
    words, likelihood = pa.array(vocabulary.words, pa.string()), Likelihood(model)
    for source in sources:
        waiting: deque[pa.RecordBatch] = deque()
        rows = _noted(rows_of_text([source], tokenizer, vocabulary), words, waiting)
        if longest is None:
            stream = chain([np.array([vocabulary.end_of_sentence], np.int32)], (each.ids for each in rows))
            logs = likelihood.log_probabilities(stream)
        else:
            alone = sentences((each.ids, each.lengths) for each in rows)
            logs = (np.append(np.float32(np.nan), each) for each in likelihood.of_sentences(alone, longest))
        yield from _completed(waiting, logs)


def _noted(rows: Iterable[TextRows], words: pa.Array, waiting: deque[pa.RecordBatch]) -> Iterator[TextRows]:
    """The rows as they are taken, a few tokens at a time, their tables put where they wait."""
    for each in rows:
        waiting.extend(_tables(each, words))
        yield each


def _completed(waiting: deque[pa.RecordBatch], logs: Iterable[np.ndarray]) -> Iterator[pa.RecordBatch]:
    """The waiting tables, each as soon as the log probabilities of all its tokens are known."""
    parts: list[np.ndarray] = []
    known = 0
    for part in logs:
        parts.append(part)
        known += len(part)
        while waiting and known >= len(waiting[0]):
            table, together = waiting.popleft(), np.concatenate(parts)
            parts, known = [together[len(table) :]], known - len(table)
            column = pa.array(together[: len(table)], pa.float32(), from_pandas=True)  # NaN as null
            yield table.set_column(len(SCHEMA) - 1, SCHEMA.field("log_probability"), column)


def _tables(rows: TextRows, words: pa.Array) -> Iterator[pa.RecordBatch]:
    """The rows of `SCHEMA`, their log probabilities still missing."""
    starts = np.cumsum(rows.lengths) - rows.lengths
    lines = np.repeat(rows.lines, rows.lengths)
    positions = np.arange(len(rows.ids)) - np.repeat(starts, rows.lengths)
    for first in range(0, len(rows.ids), _TOKENS_AT_ONCE):
        part = slice(first, first + _TOKENS_AT_ONCE)
        ids = pa.array(rows.ids[part].astype(np.int32))
        columns = [
            pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(ids), np.int32)), pa.array([rows.source])),
            pa.array(lines[part]),
            pa.array(positions[part].astype(np.int32)),
            words.take(ids),
            ids,
            pa.nulls(len(ids), pa.float32()),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def write_parquet(tables: Iterable[pa.RecordBatch], output: Path) -> int:
    """Writes a Parquet file, whole or not at all; the number of tokens.

    Raises:
        UserError: the file cannot be written.
    """
    tokens = 0
    with storing(output):
        handle, name = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.parent)
        os.close(handle)
        try:
            with pq.ParquetWriter(name, SCHEMA) as writer:
                for group in _together(tables):
                    writer.write_table(group)
                    tokens += len(group)
            Path(name).chmod(0o644)
            os.replace(name, output)
        finally:
            Path(name).unlink(missing_ok=True)
    return tokens


def joined(parts: Iterable[tuple[str, Path]]) -> Iterator[pa.RecordBatch]:
    """The tables of files that `write_parquet` wrote one by one, in order, some rows at a time.

    parts: what each file is called in the table, and where its own table is.
    """
    for name, path in parts:
        for table in pq.ParquetFile(path).iter_batches(_TOKENS_AT_ONCE):
            called = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(table), np.int32)), pa.array([name]))
            yield table.set_column(0, SCHEMA.field("file"), called)


def _together(tables: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of about `_ROW_GROUP` rows: a Parquet file of many small groups is slow to read."""
    waiting: list[pa.RecordBatch] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= _ROW_GROUP:
            yield pa.Table.from_batches(waiting, SCHEMA).unify_dictionaries()
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting, SCHEMA).unify_dictionaries()


def write_lines(tables: Iterable[pa.RecordBatch], stream: TextIO) -> int:
    """Prints one JSON object a token; the number of tokens."""
    tokens = 0
    for table in tables:
        for row in table.to_pylist():
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        stream.flush()
        tokens += len(table)
    return tokens
