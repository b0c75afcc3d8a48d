"""The sum over replicas in 16 bits, what rounding left out, and what the sum is told to cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tiny_runs import LANES, WINDOW, end_of, events, make_texts, tiny
from training_cases import Attempt, attempt, attempts
from training_runner import Call, answers, call

from raylm.config import ClusterConfig, RunConfig
from raylm.errors import UserError
from raylm.observe.summary import read_summary
from raylm.optim.scaling import FIRST
from raylm.training.compression import SLOT, compressed_sum, make_residual
from raylm.training.distribute import make_strategy
from raylm.training.topology import Topology

REPLICAS, SIZE, STEPS = 3, 700, 64


def gradients() -> np.ndarray:
    """One a replica, of numbers six orders of magnitude apart."""
    random = np.random.default_rng(0)
    values = random.normal(size=(REPLICAS, SIZE)) * np.exp(3 * random.normal(size=(REPLICAS, SIZE)))
    return values.astype(np.float32)


def sums_over_time() -> dict[str, Any]:
    """The mean of the sums of so many steps, with and without what was left out carried on; more, in one process."""
    topology = Topology(0, 1, REPLICAS, LANES)
    strategy = make_strategy(topology)
    with strategy.scope():
        residual = make_residual(strategy, topology, SIZE)

    @tf.function
    def step(values: tf.Tensor, carried: tf.Tensor) -> Any:
        def mine() -> Any:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            parts = tf.split(tf.gather(values, replica), [SIZE - 100, 100])
            scalars = tf.fill([3], tf.cast(replica, tf.float32))
            scalars, summed, left = compressed_sum(scalars, parts, residual.variable.read_value(), 0)
            residual.variable.assign(left * carried)
            return scalars, tf.concat(summed, 0)

        return tf.nest.map_structure(strategy.experimental_local_results, strategy.run(mine))

    found: dict[str, Any] = {}
    for name, carried in (("without", 0.0), ("with", 1.0)):
        residual.put([np.zeros(SIZE, np.float32)] * REPLICAS)
        sums = []
        for _ in range(STEPS):
            scalars, everywhere = step(tf.constant(gradients()), tf.constant(carried))
            sums.append(everywhere[0].numpy().astype(np.float64))
        found[name], found["first"] = np.mean(sums, 0), sums[0]
        found["replicas differ"] = bool((everywhere[0].numpy() != everywhere[2].numpy()).any())
        found["scalars"] = scalars[0].numpy()
    found["left"] = np.sum(residual.on_host(), 0, dtype=np.float64)
    slots = residual.gathered()
    residual.restore({SLOT: np.stack([*slots[SLOT], np.ones(SIZE, np.float32)])})  # one replica fewer than before
    found["fewer"] = np.sum(residual.on_host(), 0, dtype=np.float64)
    residual.restore(slots)
    found["same"] = bool((np.stack(residual.on_host()) == slots[SLOT]).all())
    try:
        residual.restore({SLOT: slots[SLOT][:, 1:]})
    except UserError as mistake:
        found["mistake"] = str(mistake)
    spoilt = gradients()
    spoilt[1, 5], spoilt[2, SIZE - 1] = np.nan, np.inf
    found["spoilt"] = step(tf.constant(spoilt), tf.constant(0.0))[1][0].numpy()
    return found


@pytest.fixture(scope="module")
def sums() -> dict[str, Any]:
    return call(sums_over_time)


def error(found: np.ndarray) -> np.ndarray:
    return np.abs(found - gradients().sum(0, dtype=np.float64))


def test_a_compressed_sum_is_off_by_a_rounding_of_each_replica_s_share(sums: dict[str, Any]) -> None:
    blocks = np.abs(np.pad(gradients(), [(0, 0), (0, -SIZE % 256)])).reshape(REPLICAS, -1, 256)
    unit = np.repeat(blocks.max(-1).sum(0) / (2**15 - 1 - REPLICAS), 256)[:SIZE]
    assert (error(sums["first"]) <= unit * REPLICAS / 2 * 1.001).all()
    assert sums["scalars"].tolist() == [3.0, 3.0, 3.0]
    assert not sums["replicas differ"]


def test_what_rounding_left_out_comes_with_later_sums(sums: dict[str, Any]) -> None:
    """Without it the same error is made each time; with it the sums and what is left add up to the gradients."""
    np.testing.assert_allclose(error(sums["without"]), error(sums["first"]), rtol=1e-3, atol=1e-6)
    assert np.median(error(sums["with"])) < 2 / STEPS * np.median(error(sums["without"]))
    np.testing.assert_allclose(error(sums["with"] + sums["left"] / STEPS), 0, atol=2e-4)


def test_the_residual_s_sum_outlives_a_replica(sums: dict[str, Any]) -> None:
    np.testing.assert_allclose(sums["fewer"], sums["left"] + 1, rtol=1e-5, atol=1e-5)
    assert sums["same"]
    assert "of another model" in sums["mistake"]


def test_a_compressed_sum_is_not_finite_where_a_replica_s_number_is_not(sums: dict[str, Any]) -> None:
    bad = ~np.isfinite(sums["spoilt"])
    assert bad[:256].all()
    assert bad[-1]
    assert not bad[256:512].any()


def sixteen_bits(*drills: str) -> RunConfig:
    """Sums and products in 16 bits; the ninth gradient overflows."""
    return tiny(
        epochs=5,
        model={"precision": "float16"},
        cluster={"compress": "int16"},
        report={"log_every": 2},
        drill=("inf-gradient@9", *drills),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Attempt, list[Attempt]]:
    """Runs on two replicas: unbroken; stopped and resumed, with a fault on the way."""
    folder = tmp_path_factory.mktemp("runs")
    data = make_texts(folder / "data")
    calls = [
        Call(attempt, sixteen_bits(), data, folder / "unbroken", 2),
        Call(attempts, sixteen_bits("nan-loss@30"), data, folder / "stopped", [20, None], 2),
    ]
    return folder, *answers(calls)


def test_a_run_in_16_bits_resumes_and_recovers_bit_for_bit(runs: tuple[Path, Attempt, list[Attempt]]) -> None:
    folder, unbroken, stopped = runs
    assert [told.summary.status for told in stopped] == ["interrupted", "completed"]
    assert (unbroken.summary.rollbacks, stopped[-1].summary.rollbacks) == (0, 1)
    assert stopped[-1].summary.state_sha256 == unbroken.summary.state_sha256
    slots = end_of(folder / "unbroken").slots
    assert slots["loss_scale"] == FIRST / 2
    assert len(slots[SLOT]) == 2
    assert all(np.abs(each).max() > 0 for each in slots[SLOT])


def test_an_overflow_is_no_incident_and_is_told(runs: tuple[Path, Attempt, list[Attempt]]) -> None:
    folder, unbroken, _ = runs
    assert (unbroken.summary.status, unbroken.summary.steps) == ("completed", 60)
    assert events(folder / "unbroken", "incident") == []
    steps = {event["step"]: event for event in events(folder / "unbroken", "step")}
    assert [steps[step]["overflows"] for step in (8, 10, 60)] == [0, 1, 1]
    assert [steps[step]["loss_scale"] for step in (10, 12)] == [FIRST, FIRST / 2]
    assert [step for step, event in steps.items() if event["gradient_norm"] is None] == [10]
    assert steps[10]["tokens"] - steps[8]["tokens"] == LANES * WINDOW  # the tenth was not trained on
    resumed = [event["overflows"] for event in events(folder / "stopped", "step")]
    assert resumed[-1] == 1


def test_the_all_reduce_s_share_of_a_step_is_told_on_several_replicas(
    runs: tuple[Path, Attempt, list[Attempt]],
) -> None:
    """After 50 steps of an attempt, alone and between two steps."""
    folder, _, _ = runs
    steps = {event["step"]: event.get("all_reduce_share") for event in events(folder / "unbroken", "step")}
    assert {step for step, share in steps.items() if share is not None} == {52, 54, 56, 58, 60}
    assert all(0 < steps[step] <= 1 for step in (52, 60))
    assert 0 < read_summary(folder / "unbroken").all_reduce_share <= 1


def test_compression_and_exact_elastic_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="ask for one of them"):
        ClusterConfig(compress="int16", exact_elastic=True)
