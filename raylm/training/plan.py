"""What a run will take, counted before it runs: memory, checkpoints, steps, operations. Pure.

The counts are of what the code holds: exact for parameters, slots, carry and checkpoints; for activations and logits
the tensors that live at the widest point of a step. `raylm.training.pace` makes hours of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from raylm.config import RunConfig
from raylm.errors import UserError
from raylm.model.shapes import rows_of, weight_shapes, words_at_once
from raylm.optim.averaging import of_layer
from raylm.training.devices import GIB, Device, may_use_cudnn
from raylm.training.topology import Topology

FLOAT = 4
"""Bytes of a number: all is single precision."""

RUNTIME_BYTES = GIB
"""Of a GPU, for CUDA, its libraries and what the allocator cannot use: assumed."""

LEAST_HELD, MOST_HELD = 1.2, 1.5
"""Times the counted bytes that a process held at its peak in steps on a processor (`jobs/step_contenders.py`, peaks of
small, medium, large, awd and wide: 1.46, 1.32, 1.20, 1.28, 1.46): the allocator's waste, and what making a step takes.
No GPU was tried."""

FILES_BYTES = 8 << 10
"""Of a checkpoint, for its JSON and the headers of its arrays."""

SLOTS = {"sgd": 0, "adam": 2, "adagrad": 1}
"""Slots of every optimizer that are as large as the weight."""


@dataclass(frozen=True)
class Text:
    """What is trained on. targets: of an epoch; windows: updates that read them once; all_windows: those of all epochs;
    longest: time steps of the longest window; held_out: targets of the valid and of the test text."""

    vocabulary: int
    targets: int
    windows: int
    all_windows: int
    longest: int
    held_out: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Plan:
    """parameters: trained scalars. lanes: of a replica. memory: bytes on each device by part; host: of the snapshots of
    each worker. checkpoint: bytes of one; kept: of all that stay. steps: updates of the whole run; targets: those they
    read. evaluations: of the valid text."""

    parameters: int
    lanes: int
    memory: Mapping[str, int]
    host: int
    checkpoint: int
    kept: int
    steps: int
    targets: float
    evaluations: int


def make_plan(config: RunConfig, text: Text, topology: Topology, device: Device) -> Plan:
    """Counts a run; the first worker, whose topology it is, has the most lanes."""
    parameters = count_parameters(config, text.vocabulary)
    steps = config.steps or text.all_windows
    kept = config.checkpoint
    size = checkpoint_bytes(config, text.vocabulary, topology.workers * topology.replicas)
    for_good = steps // kept.keep_every if kept.keep_every else 0
    carry = carry_bytes(config, topology.padded_lanes)
    of_gpu = {"runtime": RUNTIME_BYTES, "cuDNN's weights": cudnn_bytes(config, text.vocabulary)}
    snapshot = parameters * FLOAT + slot_bytes(config, text.vocabulary) + carry
    snapshot += topology.replicas * residual_bytes(config, text.vocabulary)
    return Plan(
        parameters=parameters,
        lanes=topology.lanes_per_replica,
        memory=memory_parts(config, text.vocabulary, text.longest, topology)
        | (of_gpu if device.memory is not None else {}),
        host=config.guard.ring * snapshot,
        checkpoint=size,
        kept=(kept.keep_last + kept.keep_best + for_good) * size,
        steps=steps,
        targets=steps * text.targets / text.windows,
        evaluations=-(-steps // text.windows),
    )


def count_parameters(config: RunConfig, vocabulary: int) -> int:
    """Trained scalars."""
    return sum(map(math.prod, weight_shapes(config.model, vocabulary).values()))


def slot_bytes(config: RunConfig, vocabulary: int) -> int:
    """Of the optimizer's slots, of means of the weights and of float16's loss scale; Adam, a mean and a loss scale have
    their updates counted too."""
    optimizer, parameters = config.optimizer, count_parameters(config, vocabulary)
    shapes = weight_shapes(config.model, vocabulary)
    layers = sum(math.prod(shape) for name, shape in shapes.items() if of_layer(name))
    means = {"off": 0, "exponential": layers + 1}.get(optimizer.averaging, parameters + 1)
    scale = 2 * (config.model.precision == "float16")
    return FLOAT * (SLOTS[optimizer.name] * parameters + (optimizer.name == "adam") + means + scale)


def residual_bytes(config: RunConfig, vocabulary: int) -> int:
    """Of what each replica has yet to send of its gradients, where they are compressed."""
    kept, shapes = rows_of(config, vocabulary), weight_shapes(config.model, vocabulary)
    numbers = sum(math.prod(shape) for name, shape in shapes.items() if name not in kept)
    return 0 if config.cluster.compress == "none" else FLOAT * numbers


def cudnn_bytes(config: RunConfig, vocabulary: int) -> int:
    """Of the layers' weights in cuDNN's own order, and of their gradients, where it computes the layers."""
    if not may_use_cudnn(config):
        return 0
    shapes = weight_shapes(config.model, vocabulary)
    return 2 * FLOAT * sum(math.prod(shape) for name, shape in shapes.items() if of_layer(name))


def carry_bytes(config: RunConfig, lanes: int) -> int:
    """Of hidden state and cell of every layer."""
    return FLOAT * lanes * sum((*config.model.widths[1:], *config.model.units))


def checkpoint_bytes(config: RunConfig, vocabulary: int, replicas: int = 1) -> int:
    """Of one checkpoint's arrays, and a round figure for the rest of its files."""
    parameters = count_parameters(config, vocabulary)
    arrays = parameters * FLOAT + slot_bytes(config, vocabulary) + replicas * residual_bytes(config, vocabulary)
    return arrays + carry_bytes(config, config.data.lanes) + FILES_BYTES


def memory_parts(config: RunConfig, vocabulary: int, window: int, topology: Topology) -> dict[str, int]:
    """Bytes on the device of one replica, by part, in a window of so many time steps."""
    parameters = count_parameters(config, vocabulary)
    rows = topology.lanes_per_replica * window
    gradients = _gradient_floats(config, vocabulary, rows)
    replicas = topology.workers * topology.replicas
    sums = 0 if replicas == 1 else gradients
    if topology.virtual_shards is not None:
        gradients *= topology.shards_per_replica
        sums *= max(topology.shards // topology.shards_per_replica // 2, 1)
    embedding, layers = config.model.widths[0], _layers(config)
    # Kept of each layer: its input after dropout, the product, gates, cells, their tanh, outputs; then, for one layer
    # at a time, what its arrays are stacked into, or the gradients of the way back.
    activations = embedding + sum(read + 10 * units + outputs for read, units, outputs in layers)
    activations += max(read + 9 * units + outputs for read, units, outputs in layers)
    # A round of gating keeps a product, its sigmoid and what comes of it, of the input or of the hidden state.
    activations += config.model.mogrifier_rounds * sum(3 * max(read, outputs) for read, _, outputs in layers)
    compressed = {"residual": residual_bytes(config, vocabulary)} if config.cluster.compress != "none" else {}
    narrow = FLOAT // 2 if config.model.precision in ("bfloat16", "float16") else 0
    # What a product reads is copied in 16 bits: of one layer at a time, and of the logits' gradient.
    copied = max(read + 4 * units + outputs for read, units, outputs in layers)
    logits = _logit_floats(config, vocabulary, rows)
    return compressed | {
        "weights": parameters * (FLOAT + narrow),
        "slots": slot_bytes(config, vocabulary),
        "gradients": gradients * FLOAT,
        "sums over replicas": sums * FLOAT,
        "activations": rows * (activations * FLOAT + copied * narrow),
        "logits": logits * FLOAT + logits // 3 * narrow,
        "carry": 2 * carry_bytes(config, topology.lanes_per_replica),
    }


def _gradient_floats(config: RunConfig, vocabulary: int, rows: int) -> int:
    kept = rows_of(config, vocabulary)
    shapes = weight_shapes(config.model, vocabulary)
    return sum(
        (rows + kept[name]) * math.prod(shape[1:]) if name in kept else math.prod(shape)
        for name, shape in shapes.items()
    )


def _logit_floats(config: RunConfig, vocabulary: int, rows: int) -> int:
    """Logits, their exponentials and their gradients, of the words that are held at once."""
    drawn = config.model.sampled_softmax
    if drawn is None:
        return 3 * rows * words_at_once(config.model.loss_chunk, rows, vocabulary)
    return 3 * rows * min(drawn, vocabulary) + 2 * (min(drawn, vocabulary) + rows) * config.model.widths[-1]


def _layers(config: RunConfig) -> list[tuple[int, int, int]]:
    """What each layer reads, its units and its outputs."""
    widths = config.model.widths
    return list(zip(widths[:-1], config.model.units, widths[1:], strict=True))


def refuse_what_does_not_fit(plan: Plan, device: Device, config: RunConfig) -> None:
    """Raises: UserError: a device has not the memory; says the numbers and what to change."""
    needed = sum(plan.memory.values())
    if device.memory is None or needed <= device.memory:
        return
    held = ("weights", "slots", "gradients", "sums over replicas", "runtime", "cuDNN's weights")
    fixed = sum(plan.memory[part] for part in held)
    largest = sorted(plan.memory.items(), key=lambda part: -part[1])[:3]
    told = ", ".join(f"{part} {_gib(size)}" for part, size in largest)
    if fixed > device.memory:
        advice = "take a smaller model (--model.hidden), a smaller vocabulary, or a GPU with more memory"
    elif plan.memory["logits"] > plan.memory["activations"]:
        advice = "lower --model.loss-chunk, the words whose logits are held at once, or take --model.sampled-softmax"
    else:
        advice = "divide the lanes among more GPUs (--workers, --replicas), or lower --data.lanes or --data.window"
    raise UserError(
        f"the run needs {_gib(needed)} GiB on each GPU ({told}), and {device.name} has {_gib(device.memory)}: {advice}"
    )


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}"


def operations(config: RunConfig, vocabulary: int) -> tuple[float, float]:
    """Floating-point operations for one target in training, and in evaluation: two for a product and its sum, and as
    many twice again on the way back; a softmax in pieces computes its logits once more."""
    projected, rounds = config.model.projection is not None, config.model.mogrifier_rounds
    layers = 2 * sum(
        units * (4 * (read + outputs) + projected * outputs) + rounds * read * outputs
        for read, units, outputs in _layers(config)
    )
    words = min(config.model.sampled_softmax or vocabulary, vocabulary)
    width = config.model.widths[-1]
    return 3 * (layers + 2 * words * width), layers + 2 * vocabulary * width
