"""Makes a corpus of many words in many shards, to try `lm1b` without the One Billion Word benchmark.

    python jobs/zipf_corpus.py data/zipf
    python jobs/train_ptb.py --recipe lm1b --corpus data/zipf --data.lanes 20 --learning-rate 0.02 --steps 200

Words come by Zipf's law, each by itself: beside how long a row is, there is nothing to learn but their shares. With
so few lanes the recipe's own learning rate makes the loss leap.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raylm.cli.main import guarded, leave
from raylm.data.caching import new_folder
from raylm.data.options import PrepareOptions
from raylm.data.prepare import prepare

WORDS, TOKENS, HELD_OUT, ROW = 120_000, 3_000_000, 5_000, 20
SHARD_TOKENS = 1 << 18


def make(folder: Path, words: int = WORDS, tokens: int = TOKENS) -> None:
    """Datasets train, valid and test below a folder that is not there yet; train holds those of `words` words that were
    drawn, with the defaults some 115,000.

    Raises:
        UserError: the folder cannot be written to.
    """
    shares = 1 / np.arange(1, words + 1)
    options = PrepareOptions(tokenizer="whitespace", shard_tokens=SHARD_TOKENS, chunk_tokens=SHARD_TOKENS // 8)
    with new_folder(folder) as staging, tempfile.TemporaryDirectory() as texts:
        for seed, (split, count) in enumerate({"train": tokens, "valid": HELD_OUT, "test": HELD_OUT}.items()):
            ranks = np.random.default_rng(seed).choice(words, (count // ROW, ROW), p=shares / shares.sum())
            text = Path(texts, f"{split}.txt")
            text.write_text("".join(" ".join(f"w{rank:x}" for rank in row) + "\n" for row in ranks.tolist()))
            given = None if split == "train" else str(staging / "train")
            prepare([text], staging / split, options.model_copy(update={"vocab": given}))


def main(arguments: Sequence[str], program: str) -> int:
    """The exit code. Raises: UserError: the folder cannot be written to."""
    parser = argparse.ArgumentParser(program, description="Makes a corpus of many words in many shards.")
    parser.add_argument("folder", type=Path, help="where train, valid and test go; not there yet")
    parser.add_argument("--words", type=int, default=WORDS, help="that are drawn from")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of the training text")
    options = parser.parse_args(arguments)
    make(options.folder, options.words, options.tokens)
    print(f"made {options.folder}: train with it by --corpus {options.folder}")
    return 0


if __name__ == "__main__":
    leave(guarded(main, sys.argv[1:], "python jobs/zipf_corpus.py"))
