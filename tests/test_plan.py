"""`raylm plan` counts what the code will hold, exactly where it can be exact, and refuses what cannot fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import tensorflow as tf
from made_datasets import make_dataset, random_rows

from raylm.checkpoint.store import CheckpointStore, Snapshot
from raylm.cli.plan import main
from raylm.config import OptimizerConfig, RunConfig
from raylm.errors import UserError
from raylm.model.language_model import LanguageModel, carry_names
from raylm.optim.optimizers import make_optimizer
from raylm.recipes import RECIPES
from raylm.training.devices import GIB, GPUS, cpu, speed
from raylm.training.pace import time_of
from raylm.training.plan import (
    FILES_BYTES,
    Text,
    checkpoint_bytes,
    count_parameters,
    make_plan,
    memory_parts,
    refuse_what_does_not_fit,
)
from raylm.training.topology import Topology

WORDS = 10_000
PTB = Text(WORDS, targets=929_588, windows=2_324, all_windows=30_212, longest=20, held_out=(73_759, 82_429))
OPTIMIZERS = get_args(OptimizerConfig.model_fields["name"].annotation)


def run(recipe: str = "ptb-small", **changes: Any) -> RunConfig:
    tree = {"recipe": recipe, **RECIPES[recipe]}
    return RunConfig.model_validate(
        {key: {**tree.get(key, {}), **value} for key, value in changes.items()}
        | {key: value for key, value in tree.items() if key not in changes}
    )


def on(config: RunConfig, workers: int = 1, replicas: int = 1) -> Topology:
    return Topology(0, workers, replicas, config.data.lanes, config.cluster.fixed_shards)


# Counts


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_parameters_of_every_recipe_are_the_models(recipe: str) -> None:
    config = run(recipe)
    assert count_parameters(config, WORDS) == LanguageModel(config.model, WORDS, seed=0).parameters


@pytest.mark.parametrize("averaging", ["off", "always"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_checkpoint_takes_the_bytes_that_were_told_but_for_its_small_files(
    name: str, averaging: str, tmp_path: Path
) -> None:
    optimizer = {"name": name, "averaging": averaging}
    config = run(optimizer=optimizer, model={"hidden": 40, "embedding": 30, "peepholes": True}, data={"lanes": 6})
    model = LanguageModel(config.model, 500, seed=0)
    slots = make_optimizer(config.optimizer, model.weights).slots
    carry = zip(carry_names(config.model.layers), tf.nest.flatten(model.zero_carry(6)), strict=True)
    snapshot = Snapshot(
        step=1,
        weights={key: weight.numpy() for key, weight in model.weights.items()},
        slots={key: slot.numpy() for key, slot in slots.items()},
        carry={key: part.numpy() for key, part in carry},
        cursor={"position": 1},
        ledger={},
        rng={"seed": 0},
        extra={},
    )
    folder = CheckpointStore(tmp_path).save(snapshot, config=config.model_dump(mode="json"), dataset_id="sha256:0")
    arrays = sum(array.nbytes for kind in (snapshot.weights, snapshot.slots, snapshot.carry) for array in kind.values())
    assert checkpoint_bytes(config, 500) == arrays + FILES_BYTES
    written = sum(file.stat().st_size for file in folder.iterdir())
    assert abs(written - checkpoint_bytes(config, 500)) < FILES_BYTES


def test_16_bits_take_a_loss_scale_a_copy_of_the_weights_and_what_is_yet_to_be_sent() -> None:
    plain, narrow = run("ptb-medium"), run("ptb-medium", model={"precision": "float16"}, cluster={"compress": "int16"})
    parts, more = (memory_parts(each, WORDS, 35, on(each, 2, 2)) for each in (plain, narrow))
    dense = 4 * (count_parameters(plain, WORDS) - WORDS * 650)  # the embedding's gradient is sent as rows
    assert more["residual"] == dense
    assert (more["weights"], more["slots"]) == (parts["weights"] * 3 // 2, 8)
    assert checkpoint_bytes(narrow, WORDS, 4) == checkpoint_bytes(plain, WORDS) + 4 * dense + 8


def test_on_a_gpu_the_layers_are_held_twice_more_where_cudnn_can_compute_them() -> None:
    held = [
        make_plan(config, PTB, on(config), device).memory.get("cuDNN's weights")
        for config in (run("ptb-medium"), run("ptb-medium", model={"kernel": "fused"}), run("lm1b"))
        for device in (GPUS["L4"], cpu(2))
    ]
    assert held == [2 * 4 * 2 * (2 * 650 * 2600 + 2600), None, 0, None, 0, None]


def test_memory_follows_the_lanes_of_a_replica_and_sums_need_a_copy() -> None:
    config = run("ptb-medium")
    one, four = (
        memory_parts(config, WORDS, config.data.window, on(config)),
        memory_parts(config, WORDS, config.data.window, on(config, 2, 2)),
    )
    assert (one["sums over replicas"], four["sums over replicas"]) == (0, four["gradients"])
    assert four["activations"] * 4 == one["activations"]
    assert four["weights"] == one["weights"] == 4 * count_parameters(config, WORDS)


@pytest.mark.parametrize(
    ("model", "words", "held"),
    [
        ({"loss_chunk": None}, WORDS, 3 * 400 * WORDS * 4),
        ({"loss_chunk": 1000}, WORDS, 3 * 400 * 1000 * 4),
        ({"loss_chunk": "auto"}, 10**6, 3 * (16 << 20)),
        ({"sampled_softmax": 100}, WORDS, 4 * (3 * 400 * 100 + 2 * 500 * 200)),
    ],
)
def test_logits_take_what_is_held_at_once(model: dict[str, Any], words: int, held: int) -> None:
    config = run(model=model)
    assert memory_parts(config, words, 20, on(config))["logits"] == pytest.approx(held, rel=0.01)


def test_a_table_that_a_window_hardly_reads_has_a_gradient_of_rows() -> None:
    config = run()
    few, many = (memory_parts(config, words, 20, on(config))["gradients"] for words in (WORDS, 10 * WORDS))
    assert many - few == 4 * 9 * WORDS * (200 + 1)  # the softmax's matrix and bias; the embedding's rows stay 400


# What cannot fit


@pytest.mark.parametrize(
    ("changes", "memory", "said"),
    [
        ({"model": {"hidden": 8000}}, 8, ["--model.hidden", "weights"]),
        ({"model": {"loss_chunk": None}, "data": {"lanes": 2000, "window": 100}}, 20, ["--model.loss-chunk", "logits"]),
        ({"data": {"lanes": 9000, "window": 100}}, 20, ["--replicas", "--data.lanes", "activations"]),
    ],
)
def test_what_cannot_fit_is_refused_with_the_numbers_and_what_to_change(
    changes: dict[str, Any], memory: int, said: list[str]
) -> None:
    config, device = run(**changes), GPUS["L4"].with_memory(memory * GIB)
    plan = make_plan(config, replace(PTB, longest=config.data.window), on(config), device)
    with pytest.raises(UserError) as refusal:
        refuse_what_does_not_fit(plan, device, config)
    assert "\n" not in str(refusal.value)
    for part in (*said, f"L4 has {memory}.00", f"{sum(plan.memory.values()) / GIB:,.2f} GiB on each GPU"):
        assert part in str(refusal.value)


def test_what_fits_is_not_refused_and_without_a_gpu_nothing_is() -> None:
    for config, device in ((run("ptb-large"), GPUS["T4"]), (run(model={"hidden": 8000}), cpu(2))):
        refuse_what_does_not_fit(make_plan(config, PTB, on(config), device), device, config)


# Time


def test_a_measured_pace_is_taken_for_the_whole_run_and_checkpoints_are_counted_in_it() -> None:
    config = run()
    plan = make_plan(config, PTB, on(config), cpu(2))
    time = time_of(config, plan, PTB, on(config), cpu(2), pace=10_000.0)
    assert (plan.steps, plan.evaluations) == (30_212, 13)
    assert time.training == pytest.approx(13 * PTB.targets / 10_000)
    assert time.checkpoints == 30_212 // 500 + 13


def test_more_devices_are_guessed_to_be_faster_until_the_time_steps_rule() -> None:
    config = run("ptb-large")

    def guess(replicas: int) -> float:
        topology = on(config, 1, replicas)
        return time_of(config, make_plan(config, PTB, topology, GPUS["L4"]), PTB, topology, GPUS["L4"]).training

    assert guess(1) / 2 < guess(2) < guess(1)
    assert guess(20) > guess(1) / 20


@pytest.mark.parametrize(
    ("gpu", "precision", "peak", "said"),
    [
        ("L4", "float32", 30.3 / 3, "a third of the 30.3 TFLOP/s that the L4's data sheet has for float32, "),
        ("L4", "bfloat16", 121 / 6, "a sixth of the 121 TFLOP/s that the L4's data sheet has for bfloat16, "),
        ("A100", "tf32", 156 / 6, "for tf32"),
        ("T4", "float16", 65 / 6, "for float16"),
        ("T4", "bfloat16", 8.1 / 3, "for float32 (and no bfloat16), "),
    ],
)
def test_a_guess_takes_the_precision_that_the_gpu_has_and_says_what_it_assumes(
    gpu: str, precision: str, peak: float, said: str
) -> None:
    assumed = speed(run(model={"precision": precision}), GPUS[gpu])
    assert assumed.flops == pytest.approx(1e12 * peak)
    assert said in assumed.assumption
    assert assumed.assumption.endswith("never tried")


def test_a_guess_takes_fewer_seconds_a_time_step_where_cudnn_may_compute_the_layers() -> None:
    cudnn, fused = (speed(run(model={"kernel": kernel}), GPUS["L4"]) for kernel in ("auto", "fused"))
    assert cudnn.loop_seconds < fused.loop_seconds
    assert "0.02 ms a time step and layer by cuDNN, if its trial agrees" in cudnn.assumption
    assert "0.1 ms a time step and layer by a loop over time" in fused.assumption


def test_on_a_processor_no_other_precision_is_said_to_be_known() -> None:
    assert "2 cores" in speed(run(), cpu(2)).assumption
    assert "bfloat16 was not tried" in speed(run(model={"precision": "bfloat16"}), cpu(2)).assumption


# The command


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("corpus")
    for seed, split in enumerate(("train", "valid", "test")):
        make_dataset(folder / split, *random_rows(60, seed, vocabulary=30), 30, chunk=64, shard=128)
    return str(folder)


def test_the_command_tells_all_of_it_and_says_what_it_only_guesses(
    corpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--corpus", corpus, "--data.lanes", "4", "--replicas", "2", "--gpu", "L4", "--price", "0.8"]
    assert main(words) == 0
    said = capsys.readouterr().out
    for part in (
        "1 × 2 L4, 2 lanes each",
        "weights",
        "of 22.00 GiB, counted, not tried\n",
        "estimated: a third of the",
        "0.8 an hour × 2",
    ):
        assert part in said
    assert main([*words, "--gpu-memory", "1.2"]) == 0
    assert "of 1.20 GiB, counted, not tried: it may not fit" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["memory"]["total"] == sum(size for name, size in told["memory"].items() if name != "total")
    assert told["cost"] == pytest.approx(1.6 * (told["training_seconds"] + told["evaluation_seconds"]) / 3600)
    assert (told["measured"], told["steps"]) == (False, 2000)


def test_the_gpu_of_this_machine_is_taken_unless_another_is_named(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA A100-SXM4-80GB, 81920'\necho 'NVIDIA A100'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    assert main(["--corpus", corpus, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["device"], told["device_memory"], told["replicas"]) == ("A100", 80 * GIB, 2)
    with pytest.raises(UserError, match="the run needs"):
        main(["--corpus", corpus, "--gpu", "T4", "--gpu-memory", "0.5"])
    assert "weights" in capsys.readouterr().out
    with pytest.raises(UserError, match="--gpu X1: there are T4"):
        main(["--corpus", corpus, "--gpu", "X1"])
