"""`raylm eval CHECKPOINT`: the perplexity of a trained model, by the literature's protocol."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from pydantic import Field, PositiveFloat, PositiveInt

from raylm.checkpoint.manifest import without_nonfinite
from raylm.cli.options import parse_options
from raylm.cli.tables import print_json, print_table
from raylm.cli.trained import Mode, ModelCommand, load, longest_sentence, quiet_tensorflow, sayer
from raylm.errors import UserError
from raylm.observe import figures
from raylm.training.texts import find_texts

if TYPE_CHECKING:
    from raylm.training.measure import Measured

SUMMARY = "Evaluate a trained model by the literature's protocol: one pass, the carry kept, no dropout."

EXAMPLES = """
--cache adds a neural cache (Grave et al. 2016), --dynamic lets the model learn on the way (Krause et al. 2017). Neither
sees a word before it is predicted; but such figures stand beside others of their kind only.

examples:
  raylm eval runs/quick
  raylm eval runs/quick --data ptb --json
  raylm eval runs/quick --data valid --cache --cache-lambda 0.1 --cache-theta 1 --cache-window 500
  raylm eval runs/quick/checkpoints/step-00002000 --data my-text.txt --dynamic"""


class EvalCommand(ModelCommand):
    data: tuple[str, ...] = ("valid", "test")
    """Texts: train, valid or test of the run; ptb or sample (valid and test of it); a dataset; a text file."""
    read: Mode | None = None
    """As one stream with the carry kept, or each sentence alone, its first token given; default as the model was
    trained. The literature's figures are of streams."""
    cache: bool = False
    """Make words likelier that followed similar hidden states lately."""
    cache_lambda: float = Field(0.1, gt=0.0, lt=1.0)
    """--cache: the cache's share of the probability."""
    cache_theta: PositiveFloat = 1.0
    """--cache: how much more the most similar states count."""
    cache_window: PositiveInt = 500
    """--cache: words remembered."""
    dynamic: bool = False
    """Take a step of plain SGD after each few words, on these; undone at the end of each text."""
    dynamic_learning_rate: PositiveFloat = 1.0
    """--dynamic: of the mean loss of the words in nats."""
    dynamic_clip: PositiveFloat = 0.25
    """--dynamic: largest global norm of the gradient."""
    dynamic_window: PositiveInt = 20
    """--dynamic: words between steps."""
    as_json: bool = Field(False, alias="json")
    """Print JSON."""


def main(arguments: Sequence[str], program: str = "raylm eval") -> int:
    """The exit code. Raises: UserError: a mistake of the user's."""
    command = parse_options(EvalCommand, arguments, program=program, about=SUMMARY + "\n" + EXAMPLES)
    _refuse_idle_options(command)
    say = sayer(program)
    trained = load(command.checkpoint, command.best, program)
    longest = longest_sentence(command.read, trained)
    if longest is not None and (command.cache or command.dynamic):
        raise UserError("--cache and --dynamic adapt to a text as it goes on, sentences are read alone: --read stream")
    texts = find_texts(command.data, trained, say)
    with quiet_tensorflow():
        from raylm.training.inference import make_model  # here: TensorFlow takes seconds
        from raylm.training.likelihood import Cache, Dynamic, Likelihood
        from raylm.training.measure import measure

    cache = Cache(command.cache_lambda, command.cache_theta, command.cache_window) if command.cache else None
    dynamic = None
    if command.dynamic:
        dynamic = Dynamic(command.dynamic_learning_rate, command.dynamic_clip, command.dynamic_window)
    likelihood = Likelihood(make_model(trained), cache, dynamic)
    found = [measure(likelihood, text, trained.vocabulary.unknown, longest) for text in texts]
    if not command.as_json:
        if trained.tokenizer == "bytes":
            rows = [(f"{each.bits:.4f}", *_row(each)) for each in found]
            print_table(sys.stdout, ["bits/byte", *COLUMNS], rows)
        else:
            print_table(sys.stdout, COLUMNS, [_row(each) for each in found])
        return 0
    document = {
        "checkpoint": str(trained.place),
        "step": trained.step,
        "state_sha256": trained.state_sha256,
        "read": "stream" if longest is None else "sentences",
        "cache": asdict(cache) if cache else None,
        "dynamic": asdict(dynamic) if dynamic else None,
        "texts": [
            {
                **asdict(each),
                "perplexity": each.perplexity,
                "unknown_rate": each.unknown_rate,
                "bits_per_byte": each.bits if trained.tokenizer == "bytes" else None,
            }
            for each in found
        ],
    }
    print_json(sys.stdout, without_nonfinite(document))
    return 0


COLUMNS = ["perplexity", "nats/token", "tokens", "unknown", "time", "text"]


def _row(found: Measured) -> tuple[str, ...]:
    return (
        figures.perplexity(found.perplexity),
        f"{found.nats:.4f}",
        f"{found.tokens:,}",
        f"{found.unknown_rate:.2%}",
        figures.duration(found.seconds),
        found.text,
    )


def _refuse_idle_options(command: EvalCommand) -> None:
    for switch in ("cache", "dynamic"):
        for name, field in EvalCommand.model_fields.items():
            if (
                name.startswith(f"{switch}_")
                and getattr(command, name) != field.default
                and not getattr(command, switch)
            ):
                option = name.replace("_", "-")
                raise UserError(f"--{option} is of use with --{switch} alone: add --{switch}, or leave --{option} out")
