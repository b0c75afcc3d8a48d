"""A trained model as a TensorFlow SavedModel, which plain TensorFlow loads without raylm.

Signatures, B rows and T time steps free, V words:

    score   tokens int32 [B, T]  →  log_probabilities float32 [B, T − 1]
            Entry t is log p(token t + 1 | tokens 0 … t) in nats, each row read from a carry of zero. A negative token
            is padding, on the right: its log probability is 0. Memory is that of B · T · V numbers.
    next    token int32 [B], one float32 [B, H] for each part of the carry (`layer0_hidden`, `layer0_cell`, …)
            →  log_probabilities float32 [B, V] of the word after it, and the carry. Zeros before the first word.

A model trained on streams has read each line after the `<eos>` of the line before: begin with its id, as raylm's own
commands do, to have the first word scored too. An id of V or more raises InvalidArgumentError on every device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf

from raylm.model.language_model import LanguageModel, carry_names
from raylm.model.types import Tensor
from raylm.training.card import saved_model_card
from raylm.training.export import SAVED_MODEL_FORMAT, facts_of, publish, write_beside
from raylm.training.inference import make_model
from raylm.training.loading import VOCABULARY, Trained


def export_saved_model(trained: Trained, output: Path, *, force: bool = False) -> None:
    """Writes a SavedModel with the signatures `score` and `next` to the folder `output`.

    Raises:
        UserError: `output` exists and may not be replaced, or cannot be written.
    """
    model = make_model(trained)
    parts = tf.nest.flatten(model.zero_carry(1))
    names = [name.replace("/", "_") for name in carry_names(trained.config.model.layers)]
    widths = {name: int(part.shape[-1]) for name, part in zip(names, parts, strict=True)}
    facts = {"format": SAVED_MODEL_FORMAT, **facts_of(trained), "carry": widths}

    def fill(folder: Path) -> None:
        write_beside(folder, trained, facts, saved_model_card(trained, widths))
        exported = _Exported(model, widths, str(folder / VOCABULARY))
        tf.saved_model.save(
            exported,
            str(folder),
            signatures={"score": exported.score, "next": exported.next},
            options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
        )

    publish(output, force, fill)


class _Exported(tf.Module):
    """The functions that are saved, the model they read, and the vocabulary as an asset."""

    def __init__(self, model: LanguageModel, widths: dict[str, int], asset: str) -> None:
        super().__init__(name="raylm")
        self.model = model
        self.vocabulary = tf.saved_model.Asset(asset)
        parts = [tf.TensorSpec([None, width], tf.float32, name) for name, width in widths.items()]
        tokens, token = tf.TensorSpec([None, None], tf.int32, "tokens"), tf.TensorSpec([None], tf.int32, "token")
        self.score = tf.function(self._score, input_signature=[tokens], autograph=False)
        self.next = tf.function(self._next, input_signature=[token, *parts], autograph=False)

    def _score(self, tokens: Tensor) -> dict[str, Tensor]:
        known = self._checked(tokens)
        targets = tf.transpose(known[:, 1:])
        # All T tokens are read, though the last predicts nothing here: a row of one token has no other step.
        hidden, _ = self.model.outputs(tf.transpose(known), self.model.zero_carry(tf.shape(tokens)[0]), None)
        logits = self.model.logits(tf.reshape(hidden[:-1], [-1, hidden.shape[-1]]))
        logs = -tf.nn.sparse_softmax_cross_entropy_with_logits(tf.reshape(targets, [-1]), logits)
        logs = tf.transpose(tf.reshape(logs, tf.shape(targets)))
        return {"log_probabilities": tf.where(tokens[:, 1:] >= 0, logs, tf.zeros_like(logs))}

    def _next(self, token: Tensor, *carry: Tensor) -> dict[str, Tensor]:
        before = tf.nest.pack_sequence_as(self.model.zero_carry(1), list(carry))
        logits, after = self.model.next_logits(self._checked(token), before)
        names = [spec.name for spec in self.next.input_signature[1:]]
        answer: dict[str, Any] = dict(zip(names, tf.nest.flatten(after), strict=True))
        return {"log_probabilities": tf.nn.log_softmax(logits), **answer}

    def _checked(self, tokens: Tensor) -> Tensor:
        """Tokens with padding as id 0."""
        inside = tf.debugging.assert_less(tokens, self.model.vocabulary, "a token id is outside the vocabulary")
        with tf.control_dependencies([inside]):
            return tf.maximum(tokens, 0)
