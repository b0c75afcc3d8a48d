"""Encoding a corpus, split by split: from text to shards.

`encode_split` depends on the split and the encoding only. It puts the split's shards and its list of rejects into the
workspace under names of their own, so a split can be done anywhere, in any order, and twice.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from raylm.data.caching import storing
from raylm.data.inputs import Piece, Split, lines_before, read_piece
from raylm.data.lines import Block, without_malformed
from raylm.data.packing import ChunkedShards
from raylm.data.rows import LongRows, limit_rows
from raylm.data.shard import ShardRecord
from raylm.data.tokenize import Encoder, Rows, tokenizer_named
from raylm.data.vocabulary import Vocabulary
from raylm.data.workspace import Workspace
from raylm.errors import UserError


@dataclass(frozen=True)
class Encoding:
    """All that decides how text becomes rows, chunks and shards.

    vocabulary_file: its words, one a line: the name of a file in the workspace.
    malformed: what to do with a line that is not UTF-8.
    max_row_tokens: longest row, `<eos>` counted; what happens to longer ones, long_rows says.
    """

    tokenizer: str
    vocabulary_file: str
    text_column: str
    malformed: Literal["reject", "error"]
    max_row_tokens: int
    long_rows: LongRows
    chunk_tokens: int
    shard_tokens: int


class Reject(NamedTuple):
    """A line that was left out: its piece of the split, its number (from 0) in the piece, and why."""

    piece: int
    line: int
    reason: str


@dataclass(frozen=True)
class Encoded:
    """What encoding one split left behind in the workspace.

    shards: name and record of each shard, in order; none where the split has no tokens.
    piece_lines: lines of each piece.
    empty: lines without tokens. long: rows over the limit.
    rejects: how many, and the file that lists them (empty where there are none).
    """

    index: int
    shards: tuple[tuple[str, ShardRecord], ...]
    piece_lines: tuple[int, ...]
    empty: int
    long: int
    rejected: int
    rejects_file: str

    @property
    def tokens(self) -> int:
        """Ids in all shards."""
        return sum(chunk.tokens for _, shard in self.shards for chunk in shard.chunks)


def encode_split(split: Split, *, encoding: Encoding, work: Workspace) -> Encoded:
    """Encode a split into files of a workspace.

    Raises:
        UserError: the input cannot be read, a line is not UTF-8 or too long and that is to be an error, a token is not
            in a vocabulary without `<unk>`, or the workspace cannot be written.
    """
    vocabulary, encode = _vocabulary_and_encoder(encoding.tokenizer, work, encoding.vocabulary_file)
    is_text = tokenizer_named(encoding.tokenizer).is_text
    rejects: list[Reject] = []
    piece_lines: list[int] = []
    empty, long = 0, 0
    name = f"{split.index:06d}"
    rejects_file = f"{name}-rejects.jsonl"
    with ExitStack() as stack:
        folder = stack.enter_context(work.scratch())
        shards = ChunkedShards(
            lambda number: folder / _shard_file(name, number),
            vocabulary,
            chunk_tokens=encoding.chunk_tokens,
            shard_tokens=encoding.shard_tokens,
        )
        stack.enter_context(shards)
        for number, piece in enumerate(split.pieces):
            lines = 0
            for block in read_piece(piece, text_column=encoding.text_column):
                rows, bad = encode_block(block, piece, encode, is_text=is_text, refuse=encoding.malformed == "error")
                with_rows = len(rows.lines if block.numbers is None else np.unique(block.numbers[rows.lines]))
                empty += max(block.lines - with_rows - len(bad), 0)
                rows, over = limit_rows(rows, encoding.max_row_tokens, encoding.long_rows, vocabulary.end_of_sentence)
                long += len(over)
                if over and encoding.long_rows in {"drop", "error"}:
                    bad += [
                        (row.line, f"row of {row.tokens:,} tokens, over {encoding.max_row_tokens:,}") for row in over
                    ]
                if over and encoding.long_rows == "error":
                    raise _at(piece, block, *bad[-len(over)], "choose what to do with it (--long-rows)")
                rejects += [Reject(number, block.number(line), reason) for line, reason in bad]
                shards.append(rows.ids, rows.lengths)
                lines += block.lines
            piece_lines.append(lines)
        finished = tuple((_shard_file(name, number), record) for number, record in enumerate(shards.finish()))
        for shard, _ in finished:
            work.put(folder / shard, shard)
        if rejects:
            with storing(folder):
                (folder / rejects_file).write_text("".join(json.dumps(reject) + "\n" for reject in rejects))
            work.put(folder / rejects_file, rejects_file)
    listed = rejects_file if rejects else ""
    return Encoded(split.index, finished, tuple(piece_lines), empty, long, len(rejects), listed)


def _shard_file(name: str, number: int) -> str:
    return f"{name}-{number:04d}.arrow"


def encode_block(
    block: Block, piece: Piece, encode: Encoder, *, is_text: bool, refuse: bool
) -> tuple[Rows, list[tuple[int, str]]]:
    """The rows of a block, and its lines (from 0) that are left out because they are not UTF-8, with the reason.

    Raises:
        UserError: names file and line: with `refuse`, for the first such line; a token is not in a vocabulary without
            `<unk>`.
    """
    bad: list[tuple[int, str]] = []
    if is_text:
        block, malformed = without_malformed(block)
        bad = [(line.line, line.reason) for line in malformed]
        if bad and refuse:
            raise _at(piece, block, *bad[0], "save the text as UTF-8")
    try:
        return encode(block.data), bad
    except UserError:
        for line, text in enumerate(block.data.split(b"\n")):
            try:
                encode(text)
            except UserError as error:
                raise _at(piece, block, line, str(error), "use a vocabulary that has it") from None
        raise


def _at(piece: Piece, block: Block, line: int, what: str, next_step: str) -> UserError:
    number = lines_before(piece) + block.number(line) + 1
    return UserError(f"{block.source}: line {number:,}: {what}; {next_step}")


@lru_cache(maxsize=1)
def _vocabulary_and_encoder(tokenizer: str, work: Workspace, vocabulary_file: str) -> tuple[Vocabulary, Encoder]:
    """Kept from split to split: the encoder remembers the words it has met."""
    vocabulary = Vocabulary(tuple(work.read(vocabulary_file).decode().split("\n")))
    return vocabulary, tokenizer_named(tokenizer).encoder(vocabulary)


def forget_encoder() -> None:
    """Let go of the memory of the encoder that was used last."""
    _vocabulary_and_encoder.cache_clear()
