"""Sampled text is a pure function of weights, prompt, options and seed; the options mean what they say."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from made_datasets import words

from raylm.config import ModelConfig
from raylm.data.tokenize import BYTE_VOCABULARY
from raylm.data.vocabulary import Vocabulary
from raylm.errors import UserError
from raylm.model.language_model import LanguageModel
from raylm.training.generate import Generator, Sampling, draw, read_prompt, shown

SHARES = np.array([0.05, 0.4, 0.2, 0.3, 0.05])
LOGITS = np.log(SHARES).astype(np.float32)
DRAWS = 4000


def random(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, 0]))


def frequencies(sampling: Sampling) -> np.ndarray:
    source = random()
    return np.bincount([draw(LOGITS, sampling, source) for _ in range(DRAWS)], minlength=len(SHARES)) / DRAWS


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(), [0, 1, 2, 3, 4]),
        (Sampling(top_k=2), [1, 3]),
        (Sampling(top_k=99), [0, 1, 2, 3, 4]),
        (Sampling(top_p=0.39), [1]),
        (Sampling(top_p=0.41), [1, 3]),
        (Sampling(top_p=0.9), [1, 2, 3]),
        (Sampling(top_p=1e-9), [1]),
        (Sampling(top_k=3, top_p=0.7), [1, 3]),
        (Sampling(never=(1,)), [0, 2, 3, 4]),
        (Sampling(never=(1,), top_k=1), [3]),
        (Sampling(temperature=0), [1]),
        (Sampling(temperature=0, never=(1,)), [3]),
        (Sampling(temperature=1e-6), [1]),
    ],
)
def test_words_are_drawn_by_their_share_among_those_that_may_come(sampling: Sampling, kept: list[int]) -> None:
    expected = np.zeros(len(SHARES))
    expected[kept] = SHARES[kept] / SHARES[kept].sum()
    np.testing.assert_allclose(frequencies(sampling), expected, atol=4 * 0.5 / np.sqrt(DRAWS))


def test_the_temperature_is_a_power_of_the_shares() -> None:
    expected = SHARES**2 / (SHARES**2).sum()
    np.testing.assert_allclose(frequencies(Sampling(temperature=0.5)), expected, atol=4 * 0.5 / np.sqrt(DRAWS))


def test_of_equally_likely_words_the_lower_id_is_kept() -> None:
    assert {draw(np.zeros(9, np.float32), Sampling(top_k=2), random(seed)) for seed in range(40)} == {0, 1}


def test_a_text_is_decided_by_its_context_and_seed() -> None:
    model = LanguageModel(ModelConfig(layers=1, hidden=6, init_scale=0.9), 30, seed=0)
    generator, again = Generator(model), Generator(model)
    first = list(islice(generator.ids([0, 5, 7], Sampling(), random(1)), 30))
    assert list(islice(again.ids([0, 5, 7], Sampling(), random(1)), 30)) == first
    assert list(islice(again.ids([0, 5, 7], Sampling(), random(2)), 30)) != first
    assert list(islice(again.ids([0, 5, 8], Sampling(temperature=0), random(1)), 30)) != list(
        islice(again.ids([0, 5, 7], Sampling(temperature=0), random(1)), 30)
    )


def test_a_sentence_ends_with_the_last_word_asked_for() -> None:
    generator = Generator(LanguageModel(ModelConfig(layers=1, hidden=6, init_scale=0.9), 30, seed=0))
    endless = list(islice(generator.ids([5], Sampling(), random()), 400))
    assert list(generator.ids([5], Sampling(), random(), last=0)) == endless[: endless.index(0) + 1]


def test_a_prompt_is_read_as_a_line_of_the_training_text() -> None:
    vocabulary = words(9)
    assert read_prompt("w3 w5", vocabulary, "whitespace") == ([3, 5], [])
    assert read_prompt("W3 what w5", vocabulary, "whitespace") == ([3, 1, 5], ["what"])
    assert read_prompt(" \n w3", vocabulary, "whitespace") == ([3], [])
    assert read_prompt("", vocabulary, "whitespace") == ([], [])
    assert read_prompt("W3, (w5)?!", vocabulary, "words") == ([3, 5], [])
    letters = Vocabulary(("<eos>", "<unk>", "a", "b", " "))
    assert read_prompt("a bé", letters, "characters") == ([2, 4, 3, 1], ["é"])
    assert read_prompt("é", Vocabulary(BYTE_VOCABULARY), "bytes") == ([0xC3, 0xA9], [])
    with pytest.raises(UserError, match="'what' is not in the vocabulary"):
        read_prompt("what", Vocabulary(("<eos>", "w")), "whitespace")


def test_words_stand_apart_lines_end_and_characters_and_bytes_stand_together() -> None:
    def text(ids: list[int], vocabulary: Vocabulary, tokenizer: str, begins_line: bool = False) -> bytes:
        return b"".join(shown(ids, vocabulary, tokenizer, begins_line=begins_line))

    assert text([3, 4, 0, 5, 6], words(9), "whitespace") == b" w3 w4\nw5 w6"
    assert text([3, 4], words(9), "words", begins_line=True) == b"w3 w4"
    assert text([2, 3, 0, 2], Vocabulary(("<eos>", "<unk>", "ä", "b")), "characters") == "äb\nä".encode()
    assert text([0xC3, 0xA9, 256, 65], Vocabulary(BYTE_VOCABULARY), "bytes") == "é\nA".encode()
