"""Language models in PyTorch with the weights of raylm's, and the way back to raylm's names and shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from raylm.config import ModelConfig


def of_gates(weight: np.ndarray) -> np.ndarray:
    """Input, forget, output, candidate to PyTorch's order: input, forget, candidate, output."""
    i, f, o, g = np.split(weight, 4, -1)
    return np.concatenate([i, f, g, o], -1)


class Builtin(torch.nn.Module):
    """Every layer an `nn.LSTM`."""

    def __init__(self, weights: dict[str, np.ndarray], layers: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList()
        for layer in range(layers):
            kernel, recurrent, bias = (weights[f"lstm{layer}/{part}"] for part in ("kernel", "recurrent", "bias"))
            projection = weights.get(f"lstm{layer}/projection")
            outputs = 0 if projection is None else len(recurrent)
            lstm = torch.nn.LSTM(len(kernel), kernel.shape[1] // 4, proj_size=outputs)
            given = [of_gates(kernel).T, of_gates(recurrent).T, of_gates(bias), 0 * bias]
            given += [] if projection is None else [projection.T]
            with torch.no_grad():
                for parameter, value in zip(lstm.parameters(), given, strict=True):
                    parameter.copy_(torch.tensor(value))
            lstm.bias_hh_l0.requires_grad_(False)  # it has one bias too many
            self.layers.append(lstm)

    def forward(self, inputs: Any, carry: Any) -> Any:
        after = []
        for lstm, before in zip(self.layers, carry, strict=True):
            inputs, (hidden, cell) = lstm(inputs, tuple(part[None] for part in before))
            after.append((hidden[0], cell[0]))
        return inputs, after

    def named(self) -> dict[str, tuple[Any, Any]]:
        """By raylm's names: a parameter, and what makes an array of its shape one of raylm's."""
        found = {}
        for layer, lstm in enumerate(self.layers):
            found[f"lstm{layer}/kernel"] = lstm.weight_ih_l0, lambda value: of_gates(value.T)
            found[f"lstm{layer}/recurrent"] = lstm.weight_hh_l0, lambda value: of_gates(value.T)
            found[f"lstm{layer}/bias"] = lstm.bias_ih_l0, of_gates
            if lstm.proj_size:
                found[f"lstm{layer}/projection"] = lstm.weight_hr_l0, np.transpose
        return found


class Peepholes(torch.nn.Module):
    """The cell of Gers and Schmidhuber 2000, gate by gate and time step by time step, differentiated by PyTorch."""

    def __init__(self, weights: dict[str, np.ndarray], layers: int) -> None:
        super().__init__()
        self.parts = {
            name: torch.nn.Parameter(torch.tensor(value)) for name, value in weights.items() if name.startswith("lstm")
        }
        self.count = layers

    def forward(self, inputs: Any, carry: Any) -> Any:
        after = []
        for layer, (hidden, cell) in enumerate(carry):
            kernel, recurrent, bias, peepholes = (
                self.parts[f"lstm{layer}/{part}"] for part in ("kernel", "recurrent", "bias", "peepholes")
            )
            outputs = []
            for x in inputs:
                i, f, o, g = (x @ kernel + hidden @ recurrent + bias).chunk(4, 1)
                accept, forget = torch.sigmoid(i + peepholes[0] * cell), torch.sigmoid(f + peepholes[1] * cell)
                cell = forget * cell + accept * torch.tanh(g)
                hidden = torch.sigmoid(o + peepholes[2] * cell) * torch.tanh(cell)
                outputs.append(hidden)
            inputs = torch.stack(outputs)
            after.append((hidden, cell))
        return inputs, after

    def named(self) -> dict[str, tuple[Any, Any]]:
        return {name: (parameter, np.array) for name, parameter in self.parts.items()}


class Network:
    """Embedding, layers, softmax with a bias."""

    def __init__(self, weights: dict[str, np.ndarray], config: ModelConfig) -> None:
        self.layers = (Peepholes if config.peepholes else Builtin)(weights, config.layers)
        tables = ("embedding", "softmax", "softmax/bias")
        self.tables = {name: torch.nn.Parameter(torch.tensor(weights[name])) for name in tables}

    def loss_sum(self, inputs: np.ndarray, targets: np.ndarray, carry: Any) -> Any:
        """Of ids [T, B], and the carry after them."""
        read = torch.nn.functional.embedding(torch.tensor(inputs).long(), self.tables["embedding"])
        outputs, after = self.layers(read, carry)
        logits = outputs @ self.tables["softmax"].T + self.tables["softmax/bias"]
        targets = torch.tensor(targets).long().flatten()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum"), after

    def named(self) -> dict[str, tuple[Any, Any]]:
        return {name: (table, np.array) for name, table in self.tables.items()} | self.layers.named()
