"""`raylm generate CHECKPOINT`: text sampled from a trained model, shown word by word.

Exit codes: 0 done · 2 a mistake that the user can mend · 130 ended by Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from raylm.cli.options import parse_options
from raylm.cli.trained import ModelCommand, load, quiet_tensorflow, sayer
from raylm.errors import UserError

SUMMARY = "Sample text from a trained model, word by word as it is drawn."

EXAMPLES = """
examples:
  raylm generate runs/quick --prompt "the company said" --words 30 --temperature 0.8 --no-unknown
  raylm generate runs/quick --prompt "the market" "in new york" --top-k 40 --seed 7
  echo "the president" | raylm generate runs/quick --prompt -"""


class GenerateCommand(ModelCommand):
    prompt: tuple[str, ...] = ("",)
    """Texts to go on from, one after the other; - reads one from each line of standard input."""
    words: PositiveInt = 50
    """Words (of a character model, characters) to sample after each."""
    temperature: NonNegativeFloat = 1.0
    """Divides the logits: below 1 likelier words come more often; 0 always takes the likeliest."""
    top_k: PositiveInt | None = None
    """Draw from the k likeliest words only."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Draw from the likeliest words that together have this share only."""
    seed: NonNegativeInt = Field(0, lt=2**63)
    """Another seed draws another text; the same one draws the same."""
    no_unknown: bool = False
    """Never draw <unk>."""


def main(arguments: Sequence[str], program: str = "raylm generate") -> int:
    """The exit code. Raises: UserError: a mistake of the user's."""
    command = parse_options(GenerateCommand, arguments, program=program, about=SUMMARY + "\n" + EXAMPLES)
    trained = load(command.checkpoint, command.best, program)
    with quiet_tensorflow():
        from raylm.training.generate import Generator, Sampling, read_prompt, shown  # here: TensorFlow takes seconds
        from raylm.training.inference import make_model

    vocabulary, tokenizer, say = trained.vocabulary, trained.tokenizer, sayer(program)
    unknown, end, alone = vocabulary.unknown, vocabulary.end_of_sentence, trained.config.data.mode == "sentences"
    never = (unknown,) if command.no_unknown and unknown is not None else ()
    sampling = Sampling(command.temperature, command.top_k, command.top_p, never)
    generator = Generator(make_model(trained))
    try:
        for number, prompt in enumerate(_prompts(command.prompt)):
            given, missing = read_prompt(prompt, vocabulary, tokenizer)
            if missing:
                say(f"not in the vocabulary, read as <unk>: {' '.join(missing)}")
            random = np.random.Generator(np.random.Philox(key=[command.seed, number]))
            _print("\n" if number else "", *shown(given, vocabulary, tokenizer, begins_line=True))
            # A line of a stream follows the <eos> of the line before; a sentence follows nothing, and ends.
            context = given if alone and given else [end, *given]
            ids = islice(generator.ids(context, sampling, random, last=end if alone else None), command.words)
            for piece in shown(ids, vocabulary, tokenizer, begins_line=not given):
                _print(piece)
            _print("\n")
    except KeyboardInterrupt:
        _print("\n")
        return 130
    return 0


def _prompts(given: Sequence[str]) -> Iterator[str]:
    for prompt in given:
        if prompt == "-":
            yield from _lines_of_standard_input()
            continue
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise UserError(f"--prompt {prompt!a}: not UTF-8") from None
        yield prompt


def _lines_of_standard_input() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode().strip("\r\n")
        except UnicodeDecodeError:
            raise UserError(f"standard input: line {number}: not UTF-8; save the text as UTF-8") from None
        if text.strip():
            yield text


def _print(*pieces: str | bytes) -> None:
    """Shows something at once. Bytes as they are: a model of bytes may stop inside a character."""
    for piece in pieces:
        sys.stdout.buffer.write(piece.encode() if isinstance(piece, str) else piece)
    sys.stdout.buffer.flush()
