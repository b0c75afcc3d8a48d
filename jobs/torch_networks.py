"""The networks of `bench_step.py` in PyTorch, each as its users write it."""

from __future__ import annotations

import math
from typing import Any

import torch
from step_contenders import Shape
from torch import nn
from torch.nn import functional


def network(shape: Shape) -> Any:
    """A module from (inputs [T, B], targets [T, B], carry) to the mean loss and the carry."""
    if shape.plain:
        return Stack(shape)
    return Projected(shape) if shape.config.model.projection else Awd(shape)


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
    """Merity et al. 2017, without DropConnect, AR and TAR, which favours it: raylm computes them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model = model = shape.config.model
        self.embedding = nn.Embedding(shape.words, model.widths[0])
        self.lstms = nn.ModuleList(map(nn.LSTM, model.widths[:-1], model.units))
        self.softmax = nn.Linear(model.widths[-1], shape.words)
        self.softmax.weight = self.embedding.weight

    def forward(self, inputs: Any, targets: Any, carry: Any) -> Any:
        model, after = self.model, []
        words = _mask((len(self.embedding.weight), 1), model.embedding_dropout) * self.embedding.weight
        hidden = functional.embedding(inputs, words)
        for lstm, before, rate in zip(self.lstms, carry, model.dropout_rates, strict=False):
            hidden, end = lstm(hidden * _mask((1, *hidden.shape[1:]), rate), before)
            after.append(end)
        hidden = hidden * _mask((1, *hidden.shape[1:]), model.dropout_rates[-1])
        return functional.cross_entropy(self.softmax(hidden).flatten(0, 1), targets.flatten()), after

    def zero_carry(self, lanes: int) -> Any:
        return [(torch.zeros(1, lanes, units), torch.zeros(1, lanes, units)) for units in self.model.units]


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


def _mask(size: tuple[int, ...], rate: float) -> Any:
    return torch.bernoulli(torch.full(size, 1 - rate)) / (1 - rate)
