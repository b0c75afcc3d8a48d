"""What `bench_step.py` compares: one training step, by raylm, PyTorch, Keras, and the machine's matrix product.

As a program: `python step_contenders.py NAME SHAPE FOLDER`; says "ready", then for each number of steps on standard
input one JSON line, [seconds a step, bytes of memory above the imports].
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raylm.config import RunConfig
from raylm.recipes import RECIPES

WORDS = 10_000
PRODUCT_SIDE = 2048
Steps = Callable[[int], object]


@dataclass(frozen=True)
class Shape:
    """A recipe's network; block: steps of one turn."""

    recipe: str
    block: int
    lanes: int = 20
    words: int = WORDS

    @property
    def config(self) -> RunConfig:
        recipe = RECIPES[self.recipe]
        data = {**recipe["data"], "lanes": self.lanes, "jitter": False}
        return RunConfig.model_validate({**recipe, "recipe": self.recipe, "data": data})

    @property
    def window(self) -> int:
        return self.config.data.window

    @property
    def plain(self) -> bool:
        """Whether it is a stack of layers as Zaremba et al. have it."""
        model = self.config.model
        return model.projection is None and not model.locked_dropout

    @property
    def flops(self) -> float:
        """Floating-point operations of a step's matrix products: forward once, backward twice."""
        model = self.config.model
        layers = sum(
            units * (4 * (read + out) + (out if model.projection else 0))
            for read, units, out in zip(model.widths, model.units, model.widths[1:], strict=False)
        )
        words = min(model.sampled_softmax or self.words, self.words)
        return 3 * 2 * self.lanes * self.window * (layers + model.widths[-1] * words)

    def describe(self) -> str:
        model = self.config.model
        softmax = f", {model.sampled_softmax:,} of them sampled" if model.sampled_softmax else ""
        widths = "-".join(map(str, model.widths)) + (f" of {model.hidden} units" if model.projection else "")
        return f"{widths}, {self.lanes} lanes x {self.window}, {self.words:,} words{softmax}"

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets [lanes, window], distributed like words."""
        shares = 1 / np.arange(1, self.words + 1)
        ids = np.random.default_rng(0).choice(self.words, (2, self.lanes, self.window), p=shares / shares.sum())
        return tuple(ids.astype(np.int32))


SHAPES = {
    "small": Shape("ptb-small", 50),
    "medium": Shape("ptb-medium", 8),
    "large": Shape("ptb-large", 3),
    "awd": Shape("ptb-awd", 3),
    "wide": Shape("ptb-medium", 2, words=100_000),
    "lm1b": Shape("lm1b", 8, words=100_000),
}


def raylm_step(kernel: str) -> Callable[[Shape, Path], Steps]:
    """raylm's compiled step, guard's gate and all."""

    def make(shape: Shape, _: Path) -> Steps:
        import tensorflow as tf

        from raylm.training.distribute import make_strategy
        from raylm.training.state import fresh_carry, make_replicas
        from raylm.training.step import Batch, Control, compile_step
        from raylm.training.topology import Topology

        tree = shape.config.model_dump()
        config = RunConfig.model_validate({**tree, "model": {**tree["model"], "kernel": kernel}})
        topology = Topology(0, 1, 1, shape.lanes)
        replicas = make_replicas(make_strategy(topology), topology, config, shape.words)
        step = compile_step(replicas, config)
        ones, never = np.ones((shape.lanes, shape.window), np.float32), np.zeros(shape.lanes, bool)
        batch = Batch(*map(tf.constant, (*shape.batch(), ones, never)))
        carry = fresh_carry(replicas)

        def steps(count: int) -> None:
            nonlocal carry
            for position in range(count):
                control = Control(tf.constant(position), tf.constant(0.01), tf.constant(0.0), None)
                result, carry = step(batch, carry, control)
            float(result.norm)

        return steps

    return make


def trainer(shape: Shape, folder: Path) -> Steps:
    """raylm's whole loop in a thread, held where it asks whether to stop."""
    from raylm.data.corpora import find_corpus
    from raylm.data.dataset import open_dataset
    from raylm.data.prepare import prepare_corpus
    from raylm.training.datasets import Datasets
    from raylm.training.loop import Outside, train
    from raylm.training.topology import Topology

    text = folder / "text"
    text.mkdir(exist_ok=True)
    shares = 1 / np.arange(1, shape.words + 1)
    for split, lines in (("train", 60_000), ("valid", 50), ("test", 50)):
        ids = np.random.default_rng(len(split)).choice(shape.words, (lines, 20), p=shares / shares.sum())
        (text / f"{split}.txt").write_text("".join(" ".join(f"w{i}" for i in line) + "\n" for line in ids.tolist()))
    corpus = find_corpus((str(text),), data_dir=None, cache_dir=folder, say=lambda _: None)
    prepared = prepare_corpus(corpus, folder / "datasets", lambda _: None, vocabulary_size=shape.words)
    datasets = Datasets("bench", *(open_dataset(str(path)) for path in (prepared.train, prepared.valid, prepared.test)))
    over = {"epochs": 1000, "report": {"sample_every": 0}, "schedule": {"learning_rate": 0.01}}
    config = RunConfig.model_validate({**shape.config.model_dump(), **over})
    permits, done = threading.Semaphore(0), threading.Semaphore(0)

    def held() -> bool:
        done.release()
        permits.acquire()
        return False

    outside = Outside(lambda _: None, held, lambda *_: None)
    run = folder / "run"
    topology = Topology(0, 1, 1, shape.lanes)

    def work() -> None:
        try:
            train(config, datasets, topology, run, outside)
        finally:
            os._exit(1)  # it never ends by itself: whoever waits for a step would wait for ever

    threading.Thread(target=work, daemon=True).start()
    done.acquire()

    def steps(count: int) -> None:
        for _ in range(count):
            permits.release()
        for _ in range(count):
            done.acquire()

    return steps


def product(_: Shape, __: Path) -> Steps:
    """The machine's limit: one large matrix product a step."""
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)
    one = tf.random.normal([PRODUCT_SIDE, PRODUCT_SIDE])

    def steps(count: int) -> None:
        for _ in range(count):
            value = tf.matmul(one, one)
        value.numpy()

    return steps


def keras(shape: Shape, _: Path) -> Steps:
    """`train_on_batch` with Keras's layers; their LSTM keeps no carry between batches, which favours it."""
    import keras as k

    network = shape.config.model
    layers: list[Any] = [k.layers.Embedding(shape.words, network.hidden), k.layers.Dropout(network.dropout)]
    for _layer in range(network.layers):
        layers += [k.layers.LSTM(network.hidden, return_sequences=True), k.layers.Dropout(network.dropout)]
    model = k.Sequential([k.Input([shape.window], dtype="int32"), *layers, k.layers.Dense(shape.words)])
    model.compile(k.optimizers.SGD(0.01, global_clipnorm=5.0), k.losses.SparseCategoricalCrossentropy(from_logits=True))
    inputs, targets = shape.batch()

    def steps(count: int) -> None:
        for _ in range(count):
            model.train_on_batch(inputs, targets)

    return steps


def torch_step(compiled: bool) -> Callable[[Shape, Path], Steps]:
    """`torch_networks`, `clip_grad_norm_`, the recipe's optimizer, the carry detached between windows; on a GPU where
    PyTorch sees one, in float32 in full as raylm."""

    def make(shape: Shape, _: Path) -> Steps:
        import torch
        from torch_networks import network

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_default_device(device)
        torch.backends.cudnn.allow_tf32 = False
        model = network(shape)
        dense = [each for name, each in model.named_parameters() if shape.plain or "lstm" in name]
        clipped = dense if shape.config.optimizer.clip_of == "layers" else list(model.parameters())
        make_optimizer = torch.optim.Adagrad if shape.config.optimizer.name == "adagrad" else torch.optim.SGD
        optimizer = make_optimizer(model.parameters(), lr=0.01)
        inputs, targets = (torch.from_numpy(ids.T.astype(np.int64)).contiguous().to(device) for ids in shape.batch())
        carry = model.zero_carry(shape.lanes)
        forward = torch.compile(model) if compiled else model

        def steps(count: int) -> None:
            nonlocal carry
            for _ in range(count):
                optimizer.zero_grad()
                loss, after = forward(inputs, targets, carry)
                (shape.window * loss).backward()
                torch.nn.utils.clip_grad_norm_(clipped, shape.config.optimizer.clip_norm)
                optimizer.step()
                carry = [tuple(part.detach() for part in each) for each in after]
            loss.item()

        return steps

    return make


CONTENDERS: dict[str, Callable[[Shape, Path], Steps]] = {
    "raylm": raylm_step("auto"),
    "raylm fused": raylm_step("fused"),
    "raylm cudnn": raylm_step("cudnn"),
    "trainer": trainer,
    "torch": torch_step(compiled=False),
    "torch compiled": torch_step(compiled=True),
    "keras": keras,
    "product": product,
}


def main() -> None:
    """Serves turns until standard input ends."""
    name, shape, folder = sys.argv[1], SHAPES[sys.argv[2]], Path(sys.argv[3])
    if "torch" in name:
        import torch  # noqa: F401
    else:
        os.environ["TF_USE_LEGACY_KERAS"] = "0" if name == "keras" else "1"  # without Keras it is imported in less time
        import tensorflow  # noqa: F401
    bare = _memory()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries chatter on standard output
    steps = CONTENDERS[name](shape, folder)
    print("ready", file=answers)
    for line in sys.stdin:
        count = int(line)
        began = time.perf_counter()
        steps(count)
        print(json.dumps([(time.perf_counter() - began) / count, _memory() - bare]), file=answers)


def _memory() -> int:
    """The most memory this process has held, in bytes, of its GPU where the library that it imported sees one."""
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if (tensorflow := sys.modules.get("tensorflow")) and tensorflow.config.list_physical_devices("GPU"):
        return int(tensorflow.config.experimental.get_memory_info("GPU:0")["peak"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
