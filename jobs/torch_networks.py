"""The networks of `bench_step.py` and `reproduce.py` in PyTorch, each as its users write it."""

from __future__ import annotations

import math
from typing import Any

import torch
from step_contenders import Shape
from torch import nn
from torch.nn import functional

from raylm.config import ModelConfig


def network(shape: Shape) -> Any:
    """A module from (inputs [T, B], targets [T, B], carry) to the mean loss and the carry."""
    if shape.plain:
        return Stack(shape)
    if shape.config.model.projection:
        return Projected(shape)
    unpaid = {"recurrent_dropout": 0.0, "activation_regularization": 0.0, "temporal_regularization": 0.0}
    return Awd(shape.config.model.model_copy(update=unpaid), shape.words)  # which favours it: raylm computes them


class Stack(nn.Module):
    """Zaremba et al. 2014: all layers in one `nn.LSTM`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        model = shape.config.model
        self.size = (model.layers, model.hidden)
        self.embedding = nn.Embedding(shape.words, model.hidden)
        self.lstm = nn.LSTM(model.hidden, model.hidden, model.layers, dropout=model.dropout)
        self.softmax = nn.Linear(model.hidden, shape.words)
        self.drop = nn.Dropout(model.dropout)

    def forward(self, inputs: Any, targets: Any, carry: Any) -> Any:
        hidden, after = self.lstm(self.drop(self.embedding(inputs)), carry[0])
        logits = self.softmax(self.drop(hidden))
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten()), [after]

    def zero_carry(self, lanes: int) -> Any:
        layers, hidden = self.size
        return [(torch.zeros(layers, lanes, hidden), torch.zeros(layers, lanes, hidden))]


class Awd(nn.Module):
    """Merity et al. 2017, every part; with none of them, Zaremba et al. 2014. One bias a layer, as in the equations.

    In training the loss has AR and TAR in it, and masks are drawn anew for each call; in evaluation neither.
    """

    def __init__(self, model: ModelConfig, words: int) -> None:
        super().__init__()
        self.model = model
        self.embedding = nn.Parameter(torch.empty(words, model.widths[0]))
        self.layers = nn.ParameterList()
        for read, units in zip(model.widths, model.units, strict=False):
            self.layers += [torch.empty(4 * units, read), torch.empty(4 * units, units), torch.empty(4 * units)]
        self.softmax = self.embedding if model.tie_weights else nn.Parameter(torch.empty(words, model.widths[-1]))
        self.bias = nn.Parameter(torch.empty(words))
        self.reset()

    def reset(self) -> None:
        """Fresh weights: uniform in ± init_scale; as AWD has them, layers in ± 1/√units, the softmax's bias at zero."""
        model, awd = self.model, self.model.init == "awd"
        for table in (self.embedding, self.softmax):
            nn.init.uniform_(table, -model.init_scale, model.init_scale)
        for number, weight in enumerate(self.layers):
            scale = model.units[number // 3] ** -0.5 if awd else model.init_scale
            nn.init.uniform_(weight, -scale, scale)
        nn.init.uniform_(self.bias, *(2 * [0.0] if awd else [-model.init_scale, model.init_scale]))

    def forward(self, inputs: Any, targets: Any, carry: Any) -> Any:
        model, after = self.model, []
        words = self._drop(self.embedding, (len(self.embedding), 1), model.embedding_dropout)
        raw = functional.embedding(inputs, words)
        for layer, before in enumerate(carry):
            kernel, recurrent, bias = self.layers[3 * layer : 3 * layer + 3]
            recurrent = self._drop(recurrent, recurrent.shape, model.recurrent_dropout)
            weights = [kernel, recurrent, bias, torch.zeros_like(bias)]  # the second bias is one too many
            read = self._drop_units(raw, model.dropout_rates[layer])
            raw, *end = torch.lstm(read, before, weights, True, 1, 0.0, self.training, False, False)
            after.append(tuple(end))
        hidden = self._drop_units(raw, model.dropout_rates[-1])
        logits = functional.linear(hidden, self.softmax, self.bias)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        if self.training and model.activation_regularization:
            loss = loss + model.activation_regularization * hidden.pow(2).mean()
        if self.training and model.temporal_regularization and len(raw) > 1:
            loss = loss + model.temporal_regularization * (raw[1:] - raw[:-1]).pow(2).mean()
        return loss, after

    def zero_carry(self, lanes: int) -> Any:
        return [tuple(self.bias.new_zeros(1, lanes, units) for _ in range(2)) for units in self.model.units]

    def _drop_units(self, hidden: Any, rate: float) -> Any:
        return self._drop(hidden, (1 if self.model.locked_dropout else len(hidden), *hidden.shape[1:]), rate)

    def _drop(self, values: Any, size: tuple[int, ...], rate: float) -> Any:
        return values * _mask(size, rate, values.device) if self.training and rate else values


class Projected(nn.Module):
    """Jozefowicz et al. 2016: a projection, and a sampled softmax whose tables have sparse gradients."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model, self.words = shape.config.model, shape.words
        width = self.model.widths[-1]
        self.embedding = nn.Embedding(shape.words, width, sparse=True)
        self.lstm = nn.LSTM(width, self.model.hidden, proj_size=width)
        self.softmax = nn.Embedding(shape.words, width, sparse=True)
        self.bias = nn.Embedding(shape.words, 1, sparse=True)
        self.drop = nn.Dropout(self.model.dropout)

    def forward(self, inputs: Any, targets: Any, carry: Any) -> Any:
        hidden, after = self.lstm(self.drop(self.embedding(inputs)), carry[0])
        rows, ids = self.drop(hidden).flatten(0, 1), targets.flatten()
        drawn = self.model.sampled_softmax or self.words
        candidates = (torch.exp(torch.rand(drawn) * math.log(self.words + 1)) - 1).long().clamp(0, self.words - 1)
        sampled = rows @ self.softmax(candidates).T + self.bias(candidates)[:, 0] - self._log_share(candidates, drawn)
        sampled = sampled.masked_fill(candidates == ids[:, None], -1e9)
        true = (rows * self.softmax(ids)).sum(1) + self.bias(ids)[:, 0] - self._log_share(ids, drawn)
        logits = torch.cat([true[:, None], sampled], 1)
        return functional.cross_entropy(logits, torch.zeros_like(ids)), [after]

    def _log_share(self, ids: Any, drawn: int) -> Any:
        return torch.log(drawn * torch.log((ids + 2) / (ids + 1)) / math.log(self.words + 1))

    def zero_carry(self, lanes: int) -> Any:
        return [(torch.zeros(1, lanes, self.model.widths[-1]), torch.zeros(1, lanes, self.model.hidden))]


def _mask(size: tuple[int, ...], rate: float, device: Any) -> Any:
    return torch.bernoulli(torch.full(size, 1 - rate, device=device)) / (1 - rate)
