"""Tokenizers: whole blocks at once give what line by line would give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.data.ptb_words import ptb_words
from raylm.data.tokenize import (
    BYTE_VOCABULARY,
    Bytes,
    Characters,
    PtbWords,
    Tokenizer,
    WhitespaceWords,
    tokenizer_named,
)
from raylm.data.vocabulary import Vocabulary
from raylm.errors import UserError

TEXT = st.text(st.sampled_from("ab1.,'$é \t\r\n\u2003"), max_size=40)


def vocabulary_of(tokenizer: Tokenizer, text: str) -> Vocabulary:
    words = {piece for raw in tokenizer.count(text.encode()) for piece in tokenizer.pieces(raw)}
    return Vocabulary((*sorted(words - {"<eos>", "<unk>"}), "<eos>", "<unk>"))


def tokens_of_line(tokenizer: Tokenizer, line: str) -> list[str]:
    match tokenizer.name:
        case "whitespace":
            return line.split()
        case "words":
            return [piece for raw in line.split() for piece in ptb_words(raw)]
        case "characters":
            return list(line.removesuffix("\r"))
        case _:
            raise AssertionError(tokenizer.name)


@pytest.mark.parametrize("tokenizer", [WhitespaceWords(), PtbWords(), Characters()], ids=lambda t: t.name)
@given(text=TEXT)
def test_a_block_has_the_tokens_of_its_lines(tokenizer: Tokenizer, text: str) -> None:
    vocabulary = vocabulary_of(tokenizer, text)
    rows = tokenizer.encoder(vocabulary)(text.encode())
    *lines, last = text.split("\n")
    expected = [tokens_of_line(tokenizer, line) for line in lines]
    # A carriage return that no line feed follows belongs to the text.
    expected.append([*tokens_of_line(tokenizer, last), *_return_at_end(tokenizer, last)])
    assert rows.lines.tolist() == [n for n, tokens in enumerate(expected) if tokens]
    assert rows.lengths.tolist() == [len(tokens) + 1 for tokens in expected if tokens]
    words = [vocabulary.words[index] for index in rows.ids]
    assert words == [word for tokens in expected if tokens for word in (*tokens, "<eos>")]
    counts = {}
    for raw, count in tokenizer.count(text.encode()).items():
        for piece in tokenizer.pieces(raw):
            counts[piece] = counts.get(piece, 0) + count
    if tokenizer.name in {"words", "whitespace"}:
        assert sum(counts.values()) == len(words) - words.count("<eos>")


def _return_at_end(tokenizer: Tokenizer, line: str) -> list[str]:
    return ["\r"] if line.endswith("\r") and tokenizer.name == "characters" else []


@given(content=st.binary(max_size=40) | TEXT.map(str.encode))
def test_no_byte_is_lost_and_every_line_is_a_row(content: bytes) -> None:
    vocabulary = Vocabulary(BYTE_VOCABULARY)
    rows = Bytes().encoder(vocabulary)(content)
    ended = content if content.endswith(b"\n") or not content else content + b"\n"
    assert b"".join(b"\n" if token == vocabulary.end_of_sentence else bytes([token]) for token in rows.ids) == ended
    lengths = [len(line) + 1 for line in ended.split(b"\n")[:-1]]
    assert (rows.lengths.tolist(), rows.lines.tolist()) == (lengths, list(range(len(lengths))))


@pytest.mark.parametrize(
    ("raw", "tokens"),
    [
        ("\"Don't", "do n't"),
        ("company's", "company 's"),
        ("They’ll", "they 'll"),
        ("5,000.", "N"),
        ("-5.2%", "N"),
        ("($3.5", "$ N"),
        ("U.S.", "u.s."),
        ("Mr.", "mr."),
        ("end.", "end"),
        ("and/or", "and/or"),
        ("1990s", "1990s"),
        ("30-year", "30-year"),
        ("well--known", "well known"),
        ("1,000-year", "1,000-year"),
        ("...", ""),
        ("--", ""),
        ("<unk>", "<unk>"),
        ("N", "N"),
    ],
)
def test_words_are_cut_as_in_the_penn_treebank(raw: str, tokens: str) -> None:
    assert ptb_words(raw) == tuple(tokens.split())


def test_the_penn_treebank_itself_passes_unchanged(ptb_dir: Path) -> None:
    words = set((ptb_dir / "ptb.train.txt").read_text().split())
    assert [word for word in words if ptb_words(word) != (word,)] == []


def test_words_met_again_are_encoded_the_same_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raylm.data.tokenize._MEMO_WORDS", 2)
    encode = PtbWords().encoder(Vocabulary(("a", "'s", "<eos>", "<unk>")))
    for _ in range(3):
        assert encode(b"a's b c d\n").ids.tolist() == [0, 1, 3, 3, 3, 2]


@pytest.mark.parametrize("name", ["whitespace", "words", "characters"])
def test_a_token_outside_a_vocabulary_without_unknown_is_named(name: str) -> None:
    with pytest.raises(UserError, match="'z' is not in the vocabulary"):
        tokenizer_named(name).encoder(Vocabulary(("a", " ", "<eos>")))(b"a z\n")


def test_bytes_have_a_vocabulary_of_their_own() -> None:
    with pytest.raises(UserError, match="256 bytes"):
        Bytes().encoder(Vocabulary(("a", "<eos>")))
    assert np.issubdtype(Bytes().encoder(Vocabulary(BYTE_VOCABULARY))(b"\xff\x00").ids.dtype, np.uint32)


def test_an_unknown_tokenizer_is_refused_with_the_list() -> None:
    with pytest.raises(UserError, match="'bpe' is unknown; choose words, whitespace, characters or bytes"):
        tokenizer_named("bpe")
