"""A recipe trained by plain PyTorch, for `reproduce.py` to hold raylm's run against.

Nothing of raylm's model, updates or order is used, only the ids of the words: contiguous streams that trim what does
not fill them, as the papers' code has it, `clip_grad_norm_`, `torch.optim.SGD`, and NT-ASGD's mean of the weights.
Where it stands is one file, written after each epoch, every few minutes and when it is told to stop; it goes on from
there with the same numbers.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch_networks import Awd

from raylm.config import RunConfig, ScheduleConfig
from raylm.data.caching import write_file
from raylm.errors import UserError

STATE = "pytorch.safetensors"
SAVE_EVERY = 180.0  # seconds
EVALUATION_WINDOW = 256


@dataclass
class Progress:
    """Where the run stands. place: the target of each stream that comes next. averaged: updates in the mean of the
    weights. seconds: of training and evaluation, over all attempts. valid: nats a token after each epoch, test: after
    the last."""

    step: int = 0
    place: int = 0
    averaged: int = 0
    seconds: float = 0.0
    valid: list[float] = field(default_factory=list)
    test: float | None = None


class Training:
    """A run on ids of `train`, `valid` and `test`, and its state in a folder."""

    def __init__(self, config: RunConfig, texts: Mapping[str, np.ndarray], words: int, folder: Path) -> None:
        _refuse(config)
        self.config, self.texts, self.file = config, texts, folder / STATE
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(config.seed)
        self.network = Awd(config.model, words).to(self.device)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1.0, weight_decay=config.optimizer.weight_decay)
        self.means = {name: torch.zeros_like(weight) for name, weight in self.network.named_parameters()}
        self.progress = Progress()
        self.carry = self.network.zero_carry(config.data.lanes)
        self._since = time.monotonic()
        if self.file.is_file():
            self._load()

    def run(self, stop: Callable[[], bool], say: Callable[[str], None]) -> bool:
        """Trains to the end, or until `stop` says so; whether it is done. The state is saved either way."""
        config, progress, saved = self.config, self.progress, time.monotonic()
        inputs, targets = (
            _streams(ids, config.data.lanes) for ids in (self.texts["train"][:-1], self.texts["train"][1:])
        )
        while len(progress.valid) < config.epochs:
            if progress.place < len(inputs):
                length = min(self._draw_length(), len(inputs) - progress.place)
                window = slice(progress.place, progress.place + length)
                self.update(inputs[window], targets[window])
                progress.place += length
            else:
                nats = self._evaluate("valid", stop)
                if nats is None:
                    break
                self._end_epoch(nats)
                say(f"PyTorch: epoch {len(progress.valid)} of {config.epochs}, valid {math.exp(nats):,.2f}")
            stopped = stop()
            if stopped or progress.place == 0 or time.monotonic() - saved > SAVE_EVERY:
                self._save()
                saved = time.monotonic()
            if stopped:
                return False
        if len(progress.valid) == config.epochs and progress.test is None:
            progress.test = self._evaluate("test", stop)
        self._save()
        return progress.test is not None

    def update(self, inputs: torch.Tensor, targets: torch.Tensor) -> float:
        """One update on a window of ids [T, B]; its loss in nats a token, with AR and TAR."""
        optimizer, schedule = self.config.optimizer, self.config.schedule
        loss, after = self.network(inputs.to(self.device), targets.to(self.device), self.carry)
        self.carry = [tuple(part.detach() for part in pair) for pair in after]
        self.optimizer.zero_grad()
        (loss * (len(inputs) if optimizer.loss_scale == "sequence_sum" else 1)).backward()
        if optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), optimizer.clip_norm)
        rate = schedule.learning_rate * _held(schedule, len(self.progress.valid))
        if self.config.data.jitter:
            rate *= len(inputs) / self.config.data.window
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.progress.step += 1
        if self._averages():
            self.progress.averaged += 1
            for name, weight in self.network.named_parameters():
                self.means[name] += (weight.detach() - self.means[name]) / self.progress.averaged
        return float(loss.detach())

    def _draw_length(self) -> int:
        data = self.config.data
        if not data.jitter:
            return data.window
        base = data.window if torch.rand(()) < 0.95 else data.window / 2
        return max(5, int(torch.normal(float(base), 5.0, ())))

    def _averages(self) -> bool:
        """NT-ASGD: once a validation loss was above the lowest of all but the last `patience` before it."""
        losses, patience = self.progress.valid, self.config.optimizer.patience
        return self.config.optimizer.averaging == "triggered" and any(
            losses[now] > min(losses[: now - patience]) for now in range(patience + 1, len(losses))
        )

    def _end_epoch(self, nats: float) -> None:
        self.progress.valid.append(nats)
        self.progress.place = 0
        self.carry = self.network.zero_carry(self.config.data.lanes)

    @torch.no_grad()
    def _evaluate(self, split: str, stop: Callable[[], bool]) -> float | None:
        """Nats a token, in one stream with its carry kept; None where it was told to stop."""
        ids, network = torch.from_numpy(self.texts[split].astype(np.int64))[:, None].to(self.device), self.network
        weights = {name: weight.clone() for name, weight in network.named_parameters()}
        if self.progress.averaged:
            network.load_state_dict(self.means, strict=False)
        network.eval()
        carry, total, stopped = network.zero_carry(1), 0.0, False
        for first in range(0, len(ids) - 1, EVALUATION_WINDOW):
            targets = ids[first + 1 : first + 1 + EVALUATION_WINDOW]
            loss, carry = network(ids[first : first + len(targets)], targets, carry)
            total += float(loss) * len(targets)
            stopped = stop()
            if stopped:
                break
        network.load_state_dict(weights, strict=False)
        network.train()
        return None if stopped else total / (len(ids) - 1)

    def _save(self) -> None:
        self.progress.seconds += time.monotonic() - self._since
        self._since = time.monotonic()
        tensors = {f"weight/{name}": weight.detach() for name, weight in self.network.named_parameters()}
        tensors |= {f"mean/{name}": mean for name, mean in self.means.items()} if self.progress.averaged else {}
        tensors |= {
            f"carry/{layer}/{part}": self.carry[layer][part] for layer in range(len(self.carry)) for part in (0, 1)
        }
        tensors["random/cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state()
        tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        about = {"progress": json.dumps(asdict(self.progress)), "of": self._identity()}
        write_file(self.file, safetensors.torch.save(tensors, about))

    def _load(self) -> None:
        try:
            with safe_open(self.file, "pt") as file:
                about = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.file} cannot be read ({error}): remove it to begin PyTorch's side anew") from None
        if about["of"] != self._identity():
            raise UserError(f"{self.file} is of another configuration or text: choose another --storage-path")
        self.progress = Progress(**json.loads(about["progress"]))
        with torch.no_grad():
            for name, weight in self.network.named_parameters():
                weight.copy_(tensors[f"weight/{name}"])
                if self.progress.averaged:
                    self.means[name].copy_(tensors[f"mean/{name}"])
        self.carry = [
            tuple(tensors[f"carry/{layer}/{part}"].to(self.device) for part in (0, 1))
            for layer in range(len(self.carry))
        ]
        torch.set_rng_state(tensors["random/cpu"])
        if self.device.type == "cuda" and "random/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random/cuda"])

    def _identity(self) -> str:
        parts = self.config.model_dump(mode="json", include={"seed", "model", "optimizer", "schedule"})
        cut = self.config.data.model_dump(include={"lanes", "window", "jitter"})
        return json.dumps([parts, cut, {split: len(ids) for split, ids in self.texts.items()}], sort_keys=True)


def _streams(ids: np.ndarray, lanes: int) -> torch.Tensor:
    """[columns, lanes]: lane l reads the l-th part of the text; what does not fill the lanes is trimmed."""
    columns = len(ids) // lanes
    return torch.from_numpy(ids[: columns * lanes].astype(np.int64).reshape(lanes, columns).T.copy())


def _held(schedule: ScheduleConfig, epoch: int) -> float:
    if schedule.kind == "constant":
        return 1.0
    return 1.0 / float(schedule.divisor) ** max(0, epoch + 1 - schedule.held_epochs)


def _refuse(config: RunConfig) -> None:
    """What this file has not: it must not be left out in silence."""
    model, optimizer = config.model, config.optimizer
    lacking = {
        "model.projection": model.projection,
        "model.peepholes": model.peepholes,
        "model.mogrifier_rounds": model.mogrifier_rounds,
        "model.forget_bias": model.forget_bias,
        "model.sampled_softmax": model.sampled_softmax,
        "data.mode": config.data.mode != "stream",
        "data.order": config.data.order != "sequential",
        "optimizer.name": optimizer.name != "sgd",
        "optimizer.clip_of": optimizer.clip_of != "all",
        "optimizer.averaging": optimizer.averaging not in ("off", "triggered"),
        "schedule.kind": config.schedule.kind not in ("held", "constant"),
        "schedule.warmup_steps": config.schedule.warmup_steps,
        "steps": config.steps,
    }
    for name, asked in lacking.items():
        if asked:
            raise UserError(f"--{name.replace('_', '-')}: PyTorch's side has no such thing: add --without-pytorch")
