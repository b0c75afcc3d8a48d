"""Tokenizers: from lines of text to tokens, and from tokens to ids.

Four of them: `words` (the Penn Treebank's way: lower case, numbers to N, no punctuation, 's and n't apart),
`whitespace` (words exactly as given), `characters` and `bytes`. Each counts and encodes whole blocks of lines at
once; a line becomes one row, ended by `<eos>`, and a line without tokens becomes none, but of bytes an empty line too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from raylm.data.ptb_words import ptb_words
from raylm.data.vocabulary import END_OF_SENTENCE, UNKNOWN, Vocabulary
from raylm.errors import UserError

TokenizerName = Literal["words", "whitespace", "characters", "bytes"]

SYMBOLS = ("characters", "bytes")
"""Tokenizers whose tokens stand side by side in a text, without blanks between them."""

_MEMO_WORDS = 1 << 20
_UNICODE_END = 0x110000


@dataclass(frozen=True)
class Rows:
    """The rows of a block of lines.

    ids: uint32 [tokens], every row's ids followed by the id of `<eos>`, one row after the other.
    lengths: int64 [rows], tokens of each row, `<eos>` counted.
    lines: int64 [rows], the line of the block (from 0) that the row came from; lines without tokens have no row.
    """

    ids: NDArray[np.uint32]
    lengths: NDArray[np.int64]
    lines: NDArray[np.int64]


Encoder = Callable[[bytes], Rows]


class Tokenizer(Protocol):
    """How lines become tokens. Blocks are lines divided by b"\\n"; text is UTF-8, checked beforehand."""

    @property
    def name(self) -> TokenizerName: ...

    @property
    def is_text(self) -> bool:
        """Whether the lines have to be UTF-8."""

    def count(self, block: bytes) -> Mapping[str, int]:
        """Raw words of a block and how often each is there; `<eos>` is not among them."""

    def pieces(self, raw: str) -> tuple[str, ...]:
        """The tokens that a raw word counted by `count` becomes."""

    def encoder(self, vocabulary: Vocabulary) -> Encoder:
        """A function from a block to its rows. It raises UserError for a token that is not in the vocabulary,
        where that has no `<unk>`."""


def tokenizer_named(name: str) -> Tokenizer:
    """The tokenizer of that name.

    Raises:
        UserError: there is none.
    """
    for tokenizer in (PtbWords(), WhitespaceWords(), Characters(), Bytes()):
        if tokenizer.name == name:
            return tokenizer
    raise UserError(f"tokenizer {name!r} is unknown; choose words, whitespace, characters or bytes")


@dataclass(frozen=True)
class WhitespaceWords:
    """Words as given, divided by white space."""

    name: TokenizerName = "whitespace"
    is_text: bool = True

    def count(self, block: bytes) -> Mapping[str, int]:
        return Counter(block.decode().split())

    def pieces(self, raw: str) -> tuple[str, ...]:
        return (raw,)

    def encoder(self, vocabulary: Vocabulary) -> Encoder:
        ids = _IdsByWord(vocabulary)
        end = vocabulary.end_of_sentence

        def encode(block: bytes) -> Rows:
            words, counts = _words_of_lines(block)
            return _rows(np.fromiter(map(ids.__getitem__, words), np.uint32, len(words)), counts, end)

        return encode


@dataclass(frozen=True)
class PtbWords:
    """Words the Penn Treebank's way (Mikolov's preparation); its own text passes through unchanged."""

    name: TokenizerName = "words"
    is_text: bool = True

    def count(self, block: bytes) -> Mapping[str, int]:
        return Counter(block.decode().split())

    def pieces(self, raw: str) -> tuple[str, ...]:
        return ptb_words(raw)

    def encoder(self, vocabulary: Vocabulary) -> Encoder:
        ids = _IdsByWord(vocabulary)
        end = vocabulary.end_of_sentence
        memo = _PiecesByRawWord(ids)

        def encode(block: bytes) -> Rows:
            memo.forget_when_full()
            words, raw_counts = _words_of_lines(block)
            raw = np.fromiter(map(memo.__getitem__, words), np.int64, len(words))
            flat, piece_counts = memo.expand(raw)
            ends = np.concatenate([[0], np.cumsum(piece_counts)])[np.cumsum(raw_counts)]
            return _rows(flat, np.diff(ends, prepend=0), end)

        return encode


@dataclass(frozen=True)
class Characters:
    """Unicode code points; white space inside a line is kept, the line's end is not."""

    name: TokenizerName = "characters"
    is_text: bool = True

    def count(self, block: bytes) -> Mapping[str, int]:
        points = _code_points(block)
        found, counts = np.unique(points[points != ord("\n")], return_counts=True)
        return {chr(int(point)): int(count) for point, count in zip(found, counts, strict=True)}

    def pieces(self, raw: str) -> tuple[str, ...]:
        return (raw,)

    def encoder(self, vocabulary: Vocabulary) -> Encoder:
        nowhere = len(vocabulary)
        unknown = nowhere if vocabulary.unknown is None else vocabulary.unknown
        table = np.full(_UNICODE_END, unknown, np.uint32)
        for index, character in enumerate(vocabulary.words):
            if len(character) == 1:
                table[ord(character)] = index

        def encode(block: bytes) -> Rows:
            points = _code_points(block)
            kept, counts = _without_line_ends(points)
            flat = table[kept]
            if unknown == nowhere and (missing := np.flatnonzero(flat == nowhere)).size:
                raise _not_in(vocabulary, chr(int(kept[missing[0]])))
            return _rows(flat, counts, vocabulary.end_of_sentence)

        return encode


@dataclass(frozen=True)
class Bytes:
    """Bytes as they are: id 0 to 255 is the byte's value, written `<0x00>` to `<0xFF>`, and 256 is `<eos>`, the line
    feed. Nothing is lost: empty lines and carriage returns are kept; a last line without a line feed gets one."""

    name: TokenizerName = "bytes"
    is_text: bool = False

    def count(self, block: bytes) -> Mapping[str, int]:
        counts = np.bincount(np.frombuffer(block, np.uint8), minlength=256)
        return {f"<0x{byte:02X}>": int(counts[byte]) for byte in range(256) if byte != ord("\n") and counts[byte]}

    def pieces(self, raw: str) -> tuple[str, ...]:
        return (raw,)

    def encoder(self, vocabulary: Vocabulary) -> Encoder:
        if vocabulary.words != BYTE_VOCABULARY:
            raise UserError("the bytes tokenizer has its own vocabulary of 256 bytes and <eos>; this is another")

        def encode(block: bytes) -> Rows:
            ids = np.frombuffer(block if block.endswith(b"\n") or not block else block + b"\n", np.uint8).astype(
                np.uint32
            )
            ids[ids == ord("\n")] = vocabulary.end_of_sentence
            ends = np.flatnonzero(ids == vocabulary.end_of_sentence)
            return Rows(ids, np.diff(ends, prepend=-1), np.arange(len(ends)))

        return encode


BYTE_VOCABULARY = (*(f"<0x{byte:02X}>" for byte in range(256)), END_OF_SENTENCE)


def symbols(line: str, tokenizer: str) -> list[str]:
    """The tokens of a line, of one of the `SYMBOLS`."""
    return [BYTE_VOCABULARY[byte] for byte in line.encode()] if tokenizer == "bytes" else list(line)


def _words_of_lines(block: bytes) -> tuple[list[str], NDArray[np.int64]]:
    """All words of a block, and how many each line has."""
    words: list[str] = []
    counts: list[int] = []
    # No list of lists: tens of thousands of lists alive at once keep the garbage collector busy.
    for line in block.decode().split("\n"):
        of_line = line.split()
        words += of_line
        counts.append(len(of_line))
    return words, np.array(counts, np.int64)


def _rows(flat: NDArray[np.uint32], counts: NDArray[np.int64], end: int) -> Rows:
    """Rows from all tokens of a block and the tokens of each line, `<eos>` put after each line that has any."""
    lines = np.flatnonzero(counts)
    lengths = counts[lines] + 1
    ids = np.full(len(flat) + len(lines), end, np.uint32)
    within = np.ones(len(ids), np.bool_)
    within[np.cumsum(lengths) - 1] = False
    ids[within] = flat
    return Rows(ids, lengths, lines)


def _without_line_ends(symbols: NDArray[np.generic]) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """Symbols without the line ends (line feed, with or without a carriage return before it), and the symbols
    of each line."""
    ends = symbols == ord("\n")
    returns = (symbols[:-1] == ord("\r")) & ends[1:] if len(symbols) else np.zeros(0, np.bool_)
    drop = ends.copy()
    drop[:-1] |= returns
    kept = np.concatenate([[0], np.cumsum(~drop)])
    at_ends = kept[np.flatnonzero(ends)]
    return symbols[~drop], np.diff(np.append(at_ends, kept[-1]), prepend=0)


def _code_points(block: bytes) -> NDArray[np.uint32]:
    return np.frombuffer(block.decode().encode("utf-32-le"), np.uint32)


def _not_in(vocabulary: Vocabulary, token: str) -> UserError:
    return UserError(
        f"the token {token!r} is not in the vocabulary of {len(vocabulary):,} words, which has no {UNKNOWN}"
    )


class _IdsByWord(dict[str, int]):
    """Ids of words, with `<unk>` for those that are not there."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary.ids)
        self._vocabulary = vocabulary
        self._unknown = vocabulary.unknown

    def __missing__(self, word: str) -> int:
        if self._unknown is None:
            raise _not_in(self._vocabulary, word)
        return self._unknown


class _PiecesByRawWord(dict[str, int]):
    """Each raw word met so far, and where the ids of its pieces are, so that a word is cut up once."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        super().__init__()
        self._ids = ids
        self._pieces: list[tuple[int, ...]] = []

    def __missing__(self, raw: str) -> int:
        self._pieces.append(tuple(self._ids[piece] for piece in ptb_words(raw)))
        self[raw] = place = len(self._pieces) - 1
        return place

    def forget_when_full(self) -> None:
        """Keeps memory bounded on text that never stops bringing new words."""
        if len(self) > _MEMO_WORDS:
            self.clear()
            self._pieces.clear()

    def expand(self, places: NDArray[np.int64]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The ids behind places, and how many each has."""
        counts = np.fromiter(map(len, self._pieces), np.int64, len(self._pieces))
        table = np.fromiter(chain.from_iterable(self._pieces), np.uint32, int(counts.sum()))
        wanted = counts[places]
        starts = (np.cumsum(counts) - counts)[places] - (np.cumsum(wanted) - wanted)
        return table[np.repeat(starts, wanted) + np.arange(int(wanted.sum()))], wanted
