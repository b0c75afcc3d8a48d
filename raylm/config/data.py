"""What is read, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator

from raylm.config.section import Section


class DataConfig(Section):
    corpus: tuple[str, ...] = Field(("auto",), min_length=1)
    """What to train on: auto (PTB where it can be had, else the sample), ptb, sample, one or more text files, or a
    folder (for datasets of `raylm prepare` also a URI) with train, valid and test."""
    data_dir: Path | None = None
    """Folder that holds ptb.train.txt, ptb.valid.txt and ptb.test.txt."""
    cache_dir: Path | None = None
    """Where downloads and prepared datasets are kept; default $XDG_CACHE_HOME/raylm, else ~/.cache/raylm."""
    tokenizer: Literal["words", "whitespace", "characters", "bytes"] | None = None
    """How text becomes tokens: words (the Penn Treebank's way), whitespace (words as given), characters or bytes, which
    read any file and know no <unk>; none: as a dataset of `raylm prepare` was made, else whitespace."""
    vocabulary_size: PositiveInt = 10_000
    """Most words kept for a text of one's own; rarer ones become <unk>. PTB and the sample bring their own."""
    mode: Literal["stream", "sentences"] = "stream"
    """stream: each lane reads on where its last window ended, its state carried (truncated BPTT). sentences: padded
    and masked, in batches of like length, each from a state of zero."""
    lanes: PositiveInt = 20
    """Parallel streams of the global batch, or its sentences, whatever the number of workers."""
    window: PositiveInt = 20
    """stream: time steps of truncated back-propagation (BPTT length)."""
    jitter: bool = False
    """stream: draw the length of each window, around `window` and now and then around half of it, and multiply the
    learning rate by length / window (AWD-LSTM)."""
    order: Literal["sequential", "chunk"] = "sequential"
    """stream: order of an epoch, as the text stands, or its chunks permuted anew each epoch."""
    buckets: tuple[PositiveInt, ...] = (8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128)
    """sentences: widths that batches are padded to, in targets; what is longer than the last is read in pieces."""
    pool_chunks: PositiveInt = 16
    """sentences: chunks of the dataset whose rows are sorted by length together."""

    @field_validator("jitter")
    @classmethod
    def _is_of_streams(cls, jitter: bool, others: ValidationInfo) -> bool:
        if jitter and others.data.get("mode") == "sentences":
            raise ValueError("sentences have lengths of their own: leave it out, or choose --data.mode stream")
        return jitter

    @property
    def widths_vary(self) -> bool:
        """Whether windows are of different widths."""
        return self.jitter or self.mode == "sentences"
