"""The language model: embedding, LSTM layers, softmax over the vocabulary.

Dropout stands where Zaremba, Sutskever and Vinyals (2014, arXiv:1409.2329) put it: on the embedding's output,
between layers and before the softmax, never on the recurrent connection. AWD-LSTM (Merity, Keskar and Socher 2017,
arXiv:1708.02182) locks these masks over a window, drops whole words, and weights of the recurrent connection.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import partial
from itertools import starmap
from typing import Any

import numpy as np
import tensorflow as tf

from raylm.config import ModelConfig
from raylm.model.cudnn import cudnn_layer
from raylm.model.dropout import Masks
from raylm.model.embedding import lookup
from raylm.model.kernels import KernelName
from raylm.model.loss import cross_entropy_sum
from raylm.model.lstm import Kernel, LayerCarry, LayerWeights, lstm_layer
from raylm.model.mogrifier import mogrifier_layer
from raylm.model.precision import product_type
from raylm.model.sampling import draw_candidates, sampled_cross_entropy_sum
from raylm.model.shapes import weight_shapes, words_at_once
from raylm.model.types import Tensor, Touch, untouched

Carry = tuple[LayerCarry, ...]


class LanguageModel(tf.Module):
    """Predicts the next word from the words so far.

    Weights are plain variables in one fixed order (`weights`), the same on every rank; `names` names them.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: int,
        seed: int,
        kernel: KernelName | None = None,
        by_rows: Collection[str] = frozenset(),
    ) -> None:
        """kernel: that computes the layers (`raylm.model.kernels`); None: one that every device has. by_rows: names of
        the weights of which updates write rows alone (`raylm.model.shapes.updated_by_rows`)."""
        super().__init__(name="language_model")
        self._by_rows = by_rows
        self.config = config
        self.vocabulary = vocabulary
        self.seed = seed
        tf.config.experimental.enable_tensor_float_32_execution(config.precision == "tf32")
        kernel = kernel or ("loop" if config.kernel == "loop" else "fused")
        loop = Kernel(differentiated=kernel == "loop", jit=config.jit)
        self._compute_layer = cudnn_layer if kernel == "cudnn" else partial(lstm_layer, kernel=loop)
        self.weights: dict[str, tf.Variable] = dict(starmap(_variable, drawn_weights(config, vocabulary, seed)))

    @property
    def parameters(self) -> int:
        """Number of trained scalars."""
        return sum(int(np.prod(weight.shape)) for weight in self.weights.values())

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        """Rows of a weight."""
        return lookup(self.weights[name], ids, name in self._by_rows)

    @property
    def softmax(self) -> tf.Variable:
        """The matrix [V, H] whose rows' products with a hidden state are the logits."""
        return self.weights["embedding" if self.config.tie_weights else "softmax"]

    def outputs(
        self,
        inputs_TB: Tensor,
        carry: Carry,
        masks: Masks | None,
        touch: Touch = untouched,
    ) -> tuple[Tensor, Carry]:
        """Hidden states before the softmax [T, B, H] and the carry after the window; masks=None drops nothing.

        `touch` sees `embedding`, and of each layer `layer0/gates` (by cuDNN `layer0/middle gates`, see there) and
        `layer0/outputs`; in `loss_sum` also `logits`.
        """
        return self._outputs(inputs_TB, carry, masks, touch, tf.float32)[1:]

    def _outputs(
        self, inputs_TB: Tensor, carry: Carry, masks: Masks | None, touch: Touch, dtype: tf.DType
    ) -> tuple[Tensor, Tensor, Carry]:
        """`outputs`, and before them the same without the last dropout. dtype: that products are taken in."""
        config, rates = self.config, self.config.dropout_rates
        hidden = touch("embedding", self.lookup("embedding", inputs_TB))
        if masks is not None:
            hidden = masks.drop_words(hidden, inputs_TB, self.vocabulary, config.embedding_dropout, config.layers + 1)
        next_carry = []
        for layer in range(config.layers):
            weights = self._layer(layer)
            if masks is not None:
                hidden = masks.drop(hidden, rates[layer], layer, config.locked_dropout)
                place = config.layers + 2 + layer
                recurrent = masks.drop(weights.recurrent, config.recurrent_dropout, place)
                weights = weights._replace(recurrent=recurrent)
            weights = weights.in_type(dtype)
            within = partial(_touch_within, touch, f"layer{layer}")
            if config.mogrifier_rounds:
                names = (f"lstm{layer}/mogrifier{number}" for number in range(config.mogrifier_rounds))
                rounds = [tf.cast(self.weights[name], dtype) for name in names]
                hidden, layer_carry = mogrifier_layer(hidden, carry[layer], weights, rounds, within)
            else:
                hidden, layer_carry = self._compute_layer(hidden, carry[layer], weights, within)
            hidden = within("outputs", hidden)
            next_carry.append(layer_carry)
        dropped = hidden if masks is None else masks.drop(hidden, rates[-1], config.layers, config.locked_dropout)
        return hidden, dropped, tuple(next_carry)

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

        position: of the window, in training, where `sampled_softmax` estimates the loss and the products are taken in
        the configured precision; None: exact.
        """
        loss, _, next_carry = self.losses(inputs_TB, targets_TB, weights_TB, carry, masks, touch, position)
        return loss, next_carry

    def losses(
        self,
        inputs_TB: Tensor,
        targets_TB: Tensor,
        weights_TB: Tensor,
        carry: Carry,
        masks: Masks | None,
        touch: Touch = untouched,
        position: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Carry]:
        """`loss_sum`, what the regularization adds to it in training (None where there is none), and the carry."""
        dtype = tf.float32 if position is None else product_type(self.config.precision)
        raw, hidden, next_carry = self._outputs(inputs_TB, carry, masks, touch, dtype)
        rows = tf.reshape(hidden, [-1, hidden.shape[-1]])
        softmax, bias = self.softmax, self.weights["softmax/bias"]
        targets, weights = tf.reshape(targets_TB, [-1]), tf.reshape(weights_TB, [-1])
        if position is not None and self.config.sampled_softmax is not None:
            candidates = draw_candidates(self.seed, position, self.config.sampled_softmax, self.vocabulary)
            by_rows = "softmax" in self._by_rows
            loss = sampled_cross_entropy_sum(rows, softmax, bias, targets, weights, candidates, touch, dtype, by_rows)
        else:
            chunk = words_at_once(self.config.loss_chunk, rows.shape[0], self.vocabulary)
            loss = cross_entropy_sum(rows, tf.cast(softmax, dtype), bias, targets, weights, touch, chunk)
        return loss, self._regularization(raw, hidden, weights_TB), next_carry

    def next_logits(self, token_B: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Logits [B, V] of the word after `token_B`, and the carry."""
        hidden, next_carry = self.outputs(token_B[None], carry, None)
        return self.logits(hidden[0]), next_carry

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Unnormalised log probabilities [N, V] of the word after each hidden state."""
        return tf.matmul(hidden_NH, self.softmax, transpose_b=True) + self.weights["softmax/bias"]

    def zero_carry(self, lanes: int) -> Carry:
        """The carry of lanes that have read nothing."""
        sizes = zip(self.config.widths[1:], self.config.units, strict=True)
        return tuple(LayerCarry(*(tf.zeros([lanes, size]) for size in pair)) for pair in sizes)

    def _regularization(self, raw_TBH: Tensor, dropped_TBH: Tensor, weights_TB: Tensor) -> Tensor | None:
        """AR and TAR (Merity, McCann and Socher 2017, arXiv:1708.01009), summed over the window's real targets."""
        alpha, beta = self.config.activation_regularization, self.config.temporal_regularization
        terms = []
        if alpha:
            terms.append(alpha * tf.reduce_sum(weights_TB * tf.reduce_mean(tf.square(dropped_TBH), -1)))
        if beta:
            steps = tf.cast(tf.shape(raw_TBH)[0], raw_TBH.dtype)
            changes_TB = tf.reduce_mean(tf.square(_changes(raw_TBH)), -1)
            whole = steps / tf.maximum(steps - 1, 1)  # the mean is over changes, one fewer than time steps
            terms.append(beta * whole * tf.reduce_sum(weights_TB[1:] * changes_TB))
        return tf.add_n(terms) if terms else None

    def _layer(self, layer: int) -> LayerWeights:
        return LayerWeights(*(self.weights.get(f"lstm{layer}/{part}") for part in LayerWeights._fields))


def _variable(name: str, value: np.ndarray) -> tuple[str, tf.Variable]:
    return name, tf.Variable(value, name=name.replace("/", "_"), trainable=True)


@tf.custom_gradient
def _changes(hidden_TBH: Tensor) -> tuple[Tensor, Any]:
    """From each time step to the next [T - 1, B, H]. Its gradient is one sum: three gradients of a tensor or more
    TensorFlow adds as they come, in large graphs (the scheduling pass of its memory optimizer), not to equal bits."""

    def gradient(d_changes: Tensor) -> Tensor:
        none = tf.zeros_like(hidden_TBH[:1])
        return tf.concat([none, d_changes], 0) - tf.concat([d_changes, none], 0)

    return hidden_TBH[1:] - hidden_TBH[:-1], gradient


def _touch_within(touch: Touch, part: str, name: str, tensor: Tensor) -> Tensor:
    return touch(f"{part}/{name}", tensor)


def drawn_weights(config: ModelConfig, vocabulary: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Every parameter uniform around zero (`init`), from Philox keyed by the seed; then the forget bias is added.

    Drawn in a fixed order on the host, so the same seed gives the same weights on any device and any rank; one after
    the other, so that no large table is held beside another.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    for name, shape in weight_shapes(config, vocabulary).items():
        yield name, _drawn(generator, config, name, shape)


def _drawn(generator: np.random.Generator, config: ModelConfig, name: str, shape: tuple[int, ...]) -> np.ndarray:
    scale = _initial_scale(config, name)
    values = generator.random(shape, np.float32)
    values *= np.float32(2 * scale)
    values -= np.float32(scale)
    if layer := re.fullmatch(r"lstm(\d+)/bias", name):
        units = config.units[int(layer[1])]
        values[units : 2 * units] += np.float32(config.forget_bias)
    return values


def initial_weights(config: ModelConfig, vocabulary: int, seed: int) -> dict[str, np.ndarray]:
    """`drawn_weights`, all of them."""
    return dict(drawn_weights(config, vocabulary, seed))


def _initial_scale(config: ModelConfig, name: str) -> float:
    if config.init == "uniform" or name in ("embedding", "softmax"):
        return config.init_scale
    layer = re.match(r"lstm(\d+)/", name)
    return config.units[int(layer[1])] ** -0.5 if layer else 0.0


def carry_names(layers: int) -> list[str]:
    """Names of the carry's tensors in the order of a flattened `Carry`."""
    return [f"layer{layer}/{part}" for layer in range(layers) for part in LayerCarry._fields]
