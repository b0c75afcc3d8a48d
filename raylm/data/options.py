"""What one can choose when a dataset is prepared: the options of `raylm prepare`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from raylm.config import Section
from raylm.data.inputs import SPLIT_BYTES
from raylm.data.rows import LongRows
from raylm.data.tokenize import TokenizerName

WORDS_VOCABULARY_SIZE = 10_000


class PrepareOptions(Section):
    tokenizer: TokenizerName | None = None
    """How text becomes tokens: words (the Penn Treebank's way), whitespace (words as given), characters or bytes;
    default words, or that of --vocab."""
    vocab_size: PositiveInt | None = None
    """Most words in the vocabulary, <unk> and <eos> among them; default 10,000 for words, else all."""
    min_count: PositiveInt = 1
    """Words seen less often become <unk>."""
    vocab: str | None = None
    """Dataset whose vocabulary to use, for validation and test text."""
    text_column: str = "text"
    """Column of Parquet files that holds the text."""
    max_row_tokens: int = Field(1 << 16, ge=2)
    """Longest row, <eos> counted."""
    long_rows: LongRows = "split"
    """What becomes of longer rows: split into several (the stream of tokens stays the same), truncate, drop (listed
    among the rejects) or error."""
    malformed: Literal["reject", "error"] = "reject"
    """What becomes of lines that are not UTF-8: reject leaves them out and lists them."""
    max_reject_fraction: float = Field(0.01, ge=0.0, le=1.0)
    """Largest share of lines that may be rejected before preparing fails."""
    chunk_tokens: PositiveInt = 1 << 16
    """Tokens in a chunk, the unit that is read, checked and permuted."""
    shard_tokens: PositiveInt = 1 << 24
    """Most tokens in a shard."""
    split_bytes: PositiveInt = SPLIT_BYTES
    """Bytes of text worked on at a time; shards end where splits end."""
