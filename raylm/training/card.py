"""README.txt of an export: what lies in the folder and how to read it without raylm."""

from __future__ import annotations

from collections.abc import Mapping

from raylm.training.loading import Trained


def weights_card(trained: Trained) -> str:
    """Of exported weights."""
    width = max(map(len, trained.weights))
    tensors = "\n".join(
        f"  {name:<{width}}  {' x '.join(map(str, array.shape))}" for name, array in trained.weights.items()
    )
    return f"""{_head(trained)}
model.safetensors   the weights, float32; the metadata says what config.json says
{_FILES}
Tensors (rows x columns):

{tensors}

One time step of layer N, with x its input, h and c its hidden state and cell, H hidden units:

  z = x @ lstmN/kernel + h @ lstmN/recurrent + lstmN/bias        4H numbers: input, forget, output, candidate
  i, f, o = sigmoid(z[:3H]) in thirds;  g = tanh(z[3H:])
  c = f * c + i * g;  h = o * tanh(c)

The first layer's x is the word's row of `embedding`, a later layer's the h below. Logits of the next word:
h @ transpose(softmax) + softmax/bias (the embedding, where there is no `softmax`). h and c are zero before the first
word. In Python:

  import numpy as np
  from safetensors.numpy import load_file
  w = load_file("model.safetensors")
  words = open("vocabulary.txt", encoding="utf-8", newline="").read()[:-1].split("\\n")

With lstmN/peepholes, rows p_i, p_f, p_o: i and f take p_i * c and p_f * c of the c before into the sigmoid, o takes
p_o * c of the c after. With lstmN/projection the output h is (o * tanh(c)) @ lstmN/projection.
With lstmN/mogrifier0, 1 ... x and h gate each other first: x = 2 * sigmoid(h @ mogrifier0) * x, then h = 2 *
sigmoid(x @ mogrifier1) * h, and so on in turns; lstmN/kernel and lstmN/recurrent multiply what comes of it.
PyTorch's nn.LSTM stands the gates otherwise: input, forget, candidate,
output, and multiplies by the transposes.
"""


def saved_model_card(trained: Trained, carry: Mapping[str, int]) -> str:
    """Of a SavedModel whose carry has parts of these widths."""
    widths = "\n".join(f"    {name:<{max(map(len, carry))}}  float32 [B, {width}]" for name, width in carry.items())
    return f"""{_head(trained)}
saved_model.pb, variables/, assets/vocabulary.txt   a TensorFlow SavedModel
{_FILES}
  import tensorflow as tf
  model = tf.saved_model.load(FOLDER)
  score, step = model.signatures["score"], model.signatures["next"]

score(tokens=int32 [B, T]) gives log_probabilities [B, T - 1] in nats: entry t is that of token t + 1 given tokens 0 to
t. Pad rows on the right with -1; the log probability of padding is 0. {_beginning(trained)}

step(token=int32 [B], and the carry) gives log_probabilities [B, {len(trained.vocabulary)}] of the next word, and the
carry after it under the names it is given by. Before the first word all of it is zero:

{widths}

An id outside the vocabulary is an error. The functions are for inference; they have no gradient.
"""


def _head(trained: Trained) -> str:
    model = trained.config.model
    units = ", ".join(map(str, dict.fromkeys(model.units)))
    level = _LEVELS.get(trained.tokenizer, "word")
    return f"""A {level} language model trained with raylm: {model.layers} LSTM layers of {units} units, \
{len(trained.vocabulary):,} words{_BYTES if trained.tokenizer == "bytes" else ""}.
Step {trained.step:,} of recipe {trained.config.recipe}; state_sha256 {trained.state_sha256}.
"""


def _beginning(trained: Trained) -> str:
    if trained.config.data.mode == "sentences":
        return "In training each sentence stood alone and its first word was given: a row is one sentence."
    return (
        "In training each line followed the <eos> of\nthe line before: begin a row with the id of <eos> "
        f"({trained.vocabulary.end_of_sentence}) to have its first word scored too."
    )


_LEVELS = {"characters": "character", "bytes": "byte"}
_BYTES = ": the 256 bytes, word n the byte n, and <eos>, the line feed"
_FILES = """vocabulary.txt      the words, UTF-8, one a line ended by a line feed: line n, from 0, is the word of id n
config.json         the run's whole configuration, the digests of state and vocabulary, how text becomes words
"""
