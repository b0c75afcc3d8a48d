"""The log probability of every token of text files, as tables: one lane, the carry kept from line to line.

As in training, lines follow each other, each ended by `<eos>`; an `<eos>` stands before the first, so that every token
of a file is predicted from something. The carry begins anew with each file.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
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
one it lacks. log_probability: in nats, given all tokens of the file before this one."""

_TOKENS_AT_ONCE = 1 << 13
_ROW_GROUP = 1 << 18


def score_text(
    model: LanguageModel, sources: Sequence[str], tokenizer: str, vocabulary: Vocabulary
) -> Iterator[pa.RecordBatch]:
    """The table of all files, some rows of `SCHEMA` at a time, in order; memory is bounded.

    Raises:
        UserError: a file or a line of it cannot be read; names both.
    """
    words, likelihood = pa.array(vocabulary.words, pa.string()), Likelihood(model)
    for source in sources:
        rows = rows_of_text([source], tokenizer, vocabulary)
        yield from _score_file(likelihood, rows, vocabulary.end_of_sentence, words)


def _score_file(
    likelihood: Likelihood, rows: Iterable[TextRows], end: int, words: pa.Array
) -> Iterator[pa.RecordBatch]:
    waiting: list[pa.RecordBatch] = []

    def ids() -> Iterator[np.ndarray]:
        yield np.array([end], np.int32)
        for each in rows:
            for table in _tables(each, words):
                waiting.append(table)
                yield table["id"].to_numpy()

    logs, known = [], 0
    for part in likelihood.log_probabilities(ids()):
        logs.append(part)
        known += len(part)
        while waiting and known >= len(waiting[0]):
            table, together = waiting.pop(0), np.concatenate(logs)
            logs, known = [together[len(table) :]], known - len(table)
            column = pa.array(together[: len(table)], pa.float32())
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
