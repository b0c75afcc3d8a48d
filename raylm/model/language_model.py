"""The language model: embedding, LSTM layers, softmax over the vocabulary.

Dropout stands where Zaremba, Sutskever and Vinyals (2014, arXiv:1409.2329) put it: on the embedding's output,
between layers and before the softmax, never on the recurrent connection.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import tensorflow as tf

from raylm.config import ModelConfig
from raylm.model.dropout import Masks
from raylm.model.embedding import lookup
from raylm.model.loss import cross_entropy_sum
from raylm.model.lstm import Kernel, LayerCarry, LayerWeights, lstm_layer
from raylm.model.sampling import draw_candidates, sampled_cross_entropy_sum
from raylm.model.shapes import weight_shapes, words_at_once
from raylm.model.types import Tensor, Touch, untouched

Carry = tuple[LayerCarry, ...]


class LanguageModel(tf.Module):
    """Predicts the next word from the words so far.

    Weights are plain variables in one fixed order (`weights`), the same on every rank; `names` names them.
    """

    def __init__(self, config: ModelConfig, vocabulary: int, seed: int) -> None:
        super().__init__(name="language_model")
        self.config = config
        self.vocabulary = vocabulary
        self.seed = seed
        self._kernel = Kernel(differentiated=config.kernel == "loop", jit=config.jit)
        self.weights: dict[str, tf.Variable] = {
            name: tf.Variable(value, name=name.replace("/", "_"), trainable=True)
            for name, value in initial_weights(config, vocabulary, seed).items()
        }

    @property
    def parameters(self) -> int:
        """Number of trained scalars."""
        return sum(int(np.prod(weight.shape)) for weight in self.weights.values())

    @property
    def softmax(self) -> tf.Variable:
        """The matrix [V, H] whose rows' products with a hidden state are the logits."""
        return self.weights["embedding" if self.config.tie_weights else "softmax"]

    def outputs(
        self, inputs_TB: Tensor, carry: Carry, masks: Masks | None, touch: Touch = untouched
    ) -> tuple[Tensor, Carry]:
        """Hidden states before the softmax [T, B, H] and the carry after the window; masks=None drops nothing.

        `touch` sees `embedding`, and of each layer `layer0/gates`, `layer0/outputs`; in `loss_sum` also `logits`.
        """
        rate = self.config.dropout
        hidden = touch("embedding", lookup(self.weights["embedding"], inputs_TB))
        next_carry = []
        for layer in range(self.config.layers):
            if masks is not None:
                hidden = masks.drop(hidden, rate, layer)
            within = partial(_touch_within, touch, f"layer{layer}")
            hidden, layer_carry = lstm_layer(hidden, carry[layer], self._layer(layer), within, self._kernel)
            hidden = within("outputs", hidden)
            next_carry.append(layer_carry)
        if masks is not None:
            hidden = masks.drop(hidden, rate, self.config.layers)
        return hidden, tuple(next_carry)

    def loss_sum(
        self,
        inputs_TB: Tensor,
        targets_TB: Tensor,
        weights_TB: Tensor,
        carry: Carry,
        masks: Masks | None,
        touch: Touch = untouched,
        position: Tensor | None = None,
    ) -> tuple[Tensor, Carry]:
        """Summed cross-entropy over the window's real targets, in nats, and the carry after it.

        position: of the window, in training, where `sampled_softmax` estimates the loss; None: exact.
        """
        hidden, next_carry = self.outputs(inputs_TB, carry, masks, touch)
        rows = tf.reshape(hidden, [-1, hidden.shape[-1]])
        softmax, bias = self.softmax, self.weights["softmax/bias"]
        targets, weights = tf.reshape(targets_TB, [-1]), tf.reshape(weights_TB, [-1])
        if position is not None and self.config.sampled_softmax is not None:
            candidates = draw_candidates(self.seed, position, self.config.sampled_softmax, self.vocabulary)
            loss = sampled_cross_entropy_sum(rows, softmax, bias, targets, weights, candidates, touch)
        else:
            chunk = words_at_once(self.config.loss_chunk, rows.shape[0], self.vocabulary)
            loss = cross_entropy_sum(rows, softmax, bias, targets, weights, touch, chunk)
        return loss, next_carry

    def next_logits(self, token_B: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Logits [B, V] of the word after `token_B`, and the carry."""
        hidden, next_carry = self.outputs(token_B[None], carry, None)
        return self.logits(hidden[0]), next_carry

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Unnormalised log probabilities [N, V] of the word after each hidden state."""
        return tf.matmul(hidden_NH, self.softmax, transpose_b=True) + self.weights["softmax/bias"]

    def zero_carry(self, lanes: int) -> Carry:
        """The carry of lanes that have read nothing."""
        zeros = tf.zeros([lanes, self.config.hidden])
        return tuple(LayerCarry(zeros, zeros) for _ in range(self.config.layers))

    def _layer(self, layer: int) -> LayerWeights:
        return LayerWeights(*(self.weights.get(f"lstm{layer}/{part}") for part in LayerWeights._fields))


def _touch_within(touch: Touch, part: str, name: str, tensor: Tensor) -> Tensor:
    return touch(f"{part}/{name}", tensor)


def initial_weights(config: ModelConfig, vocabulary: int, seed: int) -> dict[str, np.ndarray]:
    """Every parameter from U(−init_scale, init_scale), from Philox keyed by the seed; then the forget bias is added.

    Drawn in a fixed order on the host, so the same seed gives the same weights on any device and any rank.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    weights = {
        name: generator.random(shape, np.float32) * np.float32(2 * config.init_scale) - np.float32(config.init_scale)
        for name, shape in weight_shapes(config, vocabulary).items()
    }
    for layer in range(config.layers):
        weights[f"lstm{layer}/bias"][config.hidden : 2 * config.hidden] += np.float32(config.forget_bias)
    return weights


def carry_names(layers: int) -> list[str]:
    """Names of the carry's tensors in the order of a flattened `Carry`."""
    return [f"layer{layer}/{part}" for layer in range(layers) for part in LayerCarry._fields]
