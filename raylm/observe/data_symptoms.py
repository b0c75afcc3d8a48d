"""Rules that tell what is wrong with a training's data, before it trains or afterwards. As those of `symptoms`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raylm.data.dataset import open_dataset
from raylm.data.repeats import SHORTEST, Repeats, repeats
from raylm.observe.findings import Finding


@dataclass(frozen=True)
class DataEvidence:
    """Of the train text, and of the valid text beside it."""

    repeats: Repeats
    unknown_rate: float
    words: int
    tokens: int


def data_evidence(train: str, valid: str) -> DataEvidence:
    """What the rules look at, counted.

    Raises:
        UserError: a dataset is missing or damaged.
    """
    text, held_out = open_dataset(train), open_dataset(valid)
    unknown_rate = text.unknowns / max(1, text.tokens)
    return DataEvidence(repeats(text, held_out), unknown_rate, len(text.vocabulary), text.tokens)


def data_findings(seen: DataEvidence) -> Sequence[Finding]:
    """What is wrong with the data, the weightiest first."""
    found = (valid_in_train(seen), repeated_rows(seen), unknown_words(seen), words_without_text(seen))
    return [each for each in found if each is not None]


def valid_in_train(seen: DataEvidence) -> Finding | None:
    """A tenth of the valid rows stands in the train text too; of PTB's 1.6 % do."""
    share = seen.repeats.valid_in_train
    if share < 0.1:
        return None
    return Finding(
        "valid in train",
        "wrong" if share > 0.5 else "suspect",
        f"{share:.0%} of the valid text is in the train text: its perplexity flatters.",
        (f"of the valid rows of {SHORTEST} tokens or more, {share:.1%} equal one of the train text's",),
        "Divide the text again, by document, after rows that repeat are left out.",
        "of PTB's valid rows 1.6 % are in its train text",
    )


def repeated_rows(seen: DataEvidence) -> Finding | None:
    """A fifth of the train rows repeats an earlier one; of PTB's 1.4 % do."""
    share = seen.repeats.repeated
    if share < 0.2:
        return None
    return Finding(
        "repeated rows",
        "suspect",
        f"{share:.0%} of the train text's rows repeat an earlier one.",
        (f"of {seen.repeats.rows:,} rows of {SHORTEST} tokens or more, {share:.1%}",),
        "Leave repeated rows out: the model learns them by heart (Lee et al. 2022, arXiv:2107.06499).",
        "of PTB's train rows 1.4 % do",
    )


def unknown_words(seen: DataEvidence) -> Finding | None:
    """A fifth of the tokens is `<unk>`: a low perplexity is then that of guessing `<unk>`."""
    if seen.unknown_rate < 0.2:
        return None
    return Finding(
        "unknown words",
        "suspect",
        f"{seen.unknown_rate:.0%} of the train text is <unk>: a low perplexity says little.",
        (f"{seen.unknown_rate:.1%} of {seen.tokens:,} tokens, with a vocabulary of {seen.words:,} words",),
        "Take a larger vocabulary, or prepare with --tokenizer characters.",
        "of PTB's train tokens 4.8 % are <unk>, with 10,000 words",
    )


def words_without_text(seen: DataEvidence) -> Finding | None:
    """Fewer than ten tokens a word of the vocabulary: most rows of the embedding are hardly ever trained."""
    if seen.tokens >= 10 * seen.words:
        return None
    return Finding(
        "little text",
        "note",
        f"There are only {seen.tokens / seen.words:.1f} tokens for each word of the vocabulary.",
        (f"{seen.tokens:,} tokens, {seen.words:,} words",),
        "Most words' embeddings will stay as they were drawn: take a smaller vocabulary, or more text.",
        "PTB has 93 tokens a word",
    )
