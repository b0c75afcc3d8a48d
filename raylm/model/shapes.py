"""The sizes that follow from a configuration: of the weights, of what is held of the logits, of gradients. Without
TensorFlow, for those who only count."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from raylm.config import ModelConfig, RunConfig

_HELD_AT_ONCE = 2**24  # logits: 64 MiB
_HELD_IN_PIECES = 2**22
_MOST_AT_ONCE = 2**31 - 1  # places that an int32 tells apart
_ALIGNED = 16  # words: pieces begin at multiples of 64 bytes, whatever the width
_MANY_ROWS = 1024  # where their number is not known
_MOST_WORDS = 2**24  # ids travel among floats, which count exactly so far


def weight_shapes(config: ModelConfig, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Every weight's shape, in the order in which they are drawn and saved."""
    shapes: dict[str, tuple[int, ...]] = {"embedding": (vocabulary, config.widths[0])}
    for layer, (units, (inputs, outputs)) in enumerate(zip(config.units, pairwise(config.widths), strict=True)):
        shapes[f"lstm{layer}/kernel"] = (inputs, 4 * units)
        shapes[f"lstm{layer}/recurrent"] = (outputs, 4 * units)
        shapes[f"lstm{layer}/bias"] = (4 * units,)
        if config.peepholes:
            shapes[f"lstm{layer}/peepholes"] = (3, units)
        if config.projection:
            shapes[f"lstm{layer}/projection"] = (units, outputs)
        for number in range(config.mogrifier_rounds):
            shapes[f"lstm{layer}/mogrifier{number}"] = (inputs, outputs) if number % 2 else (outputs, inputs)
    if not config.tie_weights:
        shapes["softmax"] = (vocabulary, config.widths[-1])
    shapes["softmax/bias"] = (vocabulary,)
    return shapes


def words_at_once(setting: int | Literal["auto"] | None, rows: int | None, words: int) -> int:
    """Words whose logits are computed at once: the setting; for `auto` all where 64 MiB hold them for all rows, else
    as many as 16 MiB hold."""
    if setting != "auto":
        return min(setting or words, words, _MOST_AT_ONCE // (rows or _MANY_ROWS))
    logits = (rows or _MANY_ROWS) * words
    if logits <= _HELD_AT_ONCE:
        return words
    pieces = -(-logits // _HELD_IN_PIECES)
    return min(-(-words // (pieces * _ALIGNED)) * _ALIGNED, words)


def rows_of(config: RunConfig, words: int) -> dict[str, int]:
    """The weights of a model of so many words whose gradients stay rows in this run, and how many of their ids come
    first and are the same on every replica. None where virtual shards fix the order of every sum."""
    read = config.data.lanes * (config.data.window if config.data.mode == "stream" else max(config.data.buckets))
    if config.cluster.exact_elastic or config.model.tie_weights:
        return {}
    drawn = config.model.sampled_softmax
    common = {"embedding": 0} | ({"softmax": min(drawn, words)} if drawn else {})
    return {name: count for name, count in common.items() if stays_rows(read + count, words)}


def updated_by_rows(config: RunConfig, words: int) -> frozenset[str]:
    """The weights of which this run's updates write rows alone: Adam moves every row."""
    return frozenset() if config.optimizer.name == "adam" else frozenset(rows_of(config, words))


def stays_rows(lookups: int, words: int) -> bool:
    """Whether the gradient of a table of so many words is cheaper as rows where all replicas together look up so many.

    Independent of how the lookups are divided: so is the order of every sum.
    """
    return 2 * lookups <= words <= _MOST_WORDS
