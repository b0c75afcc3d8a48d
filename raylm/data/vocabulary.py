"""Words and their ids.

A vocabulary is an ordered tuple of distinct words; a word's id is its place in it. `<unk>` stands for every
word left out, `<eos>` ends each line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from raylm.errors import UserError

UNKNOWN = "<unk>"
END_OF_SENTENCE = "<eos>"


@dataclass(frozen=True)
class Vocabulary:
    """An ordered set of words.

    Raises:
        UserError: a word is there twice, or `<eos>` is missing.
    """

    words: tuple[str, ...]
    ids: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ids = {word: index for index, word in enumerate(self.words)}
        if len(ids) != len(self.words):
            twice = next(word for index, word in enumerate(self.words) if ids[word] != index)
            raise UserError(f"vocabulary: the word {twice!r} is there twice; every word needs one id")
        if END_OF_SENTENCE not in ids:
            raise UserError(f"vocabulary: {END_OF_SENTENCE} is missing; every line ends with it")
        object.__setattr__(self, "ids", ids)

    def __len__(self) -> int:
        return len(self.words)

    @property
    def end_of_sentence(self) -> int:
        """The id of `<eos>`."""
        return self.ids[END_OF_SENTENCE]

    @property
    def unknown(self) -> int | None:
        """The id of `<unk>`, or None where the vocabulary has no such word."""
        return self.ids.get(UNKNOWN)

    @property
    def sha256(self) -> str:
        """Hex digest over the words in order, one a line, UTF-8."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()

    @property
    def id_type(self) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
        """The smallest of uint16 and uint32 that holds every id."""
        return np.dtype(np.uint16) if len(self) <= 1 << 16 else np.dtype(np.uint32)

    def encode(self, words: Iterable[str]) -> list[int]:
        """Ids of words; a word that is not there becomes `<unk>`.

        Raises:
            UserError: a word is not there and the vocabulary has no `<unk>`.
        """
        ids, unknown = self.ids, self.unknown
        if unknown is not None:
            return [ids.get(word, unknown) for word in words]
        try:
            return [ids[word] for word in words]
        except KeyError as missing:
            raise UserError(
                f"the word {missing} is not in the vocabulary of {len(self):,} words, which has no {UNKNOWN}"
            ) from None

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Words joined by spaces.

        Raises:
            UserError: an id is outside the vocabulary.
        """
        outside = [int(index) for index in ids if not 0 <= index < len(self)]
        if outside:
            raise UserError(f"token id {outside[0]} is outside the vocabulary of {len(self):,} words")
        return " ".join(self.words[int(index)] for index in ids)
