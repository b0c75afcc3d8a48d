"""`--exact-elastic`: the same end, bit for bit, on any number of replicas up to the virtual shards."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import tensorflow as tf
from test_step import CLIPPED, LANES, QUIET, SOUND, WORDS, assert_close, assert_same, reference
from training_cases import Stepped, steps
from training_runner import Call, answers, call, environments

from raylm.cli.options import parse_run_config
from raylm.errors import UserError
from raylm.training.summation import fixed_global_norm, tree_sum
from raylm.training.topology import Topology

SCENARIO = (
    {"model": {"layers": 1, "hidden": 6, "dropout": 0.5}, "optimizer": {"name": "adam", "clip_norm": 0.2}, **QUIET},
    SOUND,
)
PLACES = {"1x1": (1, 1), "1x2": (1, 2), "1x3": (1, 3), "1x4": (1, 4), "2x1": (2, 1), "2x2": (2, 2)}
"""Workers x replicas. Five lanes make four shards of two, the last of which is empty; one of three replicas idles."""


def topology(rank: int = 0, workers: int = 1, replicas: int = 1, lanes: int = 20, shards: int = 4) -> Topology:
    return Topology(rank, workers, replicas, lanes, shards)


@cache
def stepped(place: str) -> list[list[Stepped]]:
    """Of each worker: the state before the first step and after each."""
    workers, replicas = PLACES[place]
    calls = [
        Call(steps, replicas, LANES, WORDS, {"": SCENARIO}, rank, workers, 4, environment=environment)
        for rank, environment in enumerate(environments(workers))
    ]
    return [found[""] for found in answers(calls)]


@pytest.mark.parametrize("place", ["1x2", "1x3", pytest.param("1x4", marks=pytest.mark.slow), "2x1", "2x2"])
def test_any_number_of_replicas_computes_the_same_bits(place: str) -> None:
    """With dropout, lanes that begin anew, lanes that end early and a stop that is asked for."""
    for states in stepped(place):
        for found, wanted in zip(states, stepped("1x1")[0], strict=True):
            assert_same(found, wanted)
            for figure in ("loss_sum", "tokens", "norm", "finite"):
                assert found.result.get(figure) == wanted.result.get(figure)
            assert (found.result.get("stop", 0) > 0) == (wanted.result.get("stop", 0) > 0)


def test_the_shards_compute_what_the_whole_batch_does() -> None:
    found = call(steps, 1, LANES, WORDS, {"": ({**CLIPPED, **QUIET}, SOUND)}, 0, 1, 4)[""]
    for state, wanted in zip(found[1:], reference(CLIPPED, SOUND), strict=True):
        assert state.result["loss_sum"] == pytest.approx(wanted["loss_sum"], rel=1e-6)
        assert state.result["norm"] == pytest.approx(wanted["norm"], rel=1e-5)
        assert_close(state.weights, wanted["weights"])


@pytest.mark.parametrize(
    ("workers", "replicas", "shards_each", "lanes_each"),
    [(1, 1, 4, 20), (2, 1, 2, 10), (1, 3, 2, 10), (4, 1, 1, 5), (2, 2, 1, 5)],
)
def test_a_replica_holds_a_block_of_shards_of_one_size(
    workers: int, replicas: int, shards_each: int, lanes_each: int
) -> None:
    places = [topology(rank, workers, replicas) for rank in range(workers)]
    assert {place.shards_per_replica for place in places} == {shards_each}
    assert {place.lanes_per_replica for place in places} == {lanes_each}
    assert {place.lanes_per_shard for place in places} == {5}
    assert [place.first_lane for place in places[1:]] == [place.stop_lane for place in places[:-1]]
    assert (places[0].first_lane, places[-1].stop_lane) == (0, 20)
    assert topology(0, workers, replicas).undivided.shards_per_replica == 1


@pytest.mark.parametrize(
    ("place", "mistake"),
    [
        ({"workers": 5}, "5 workers × 1 replicas are more than the 4 virtual shards"),
        ({"lanes": 3}, "--cluster.virtual-shards 4 are more than the 3 lanes"),
    ],
)
def test_more_replicas_than_shards_or_shards_than_lanes_are_refused(place: dict[str, int], mistake: str) -> None:
    with pytest.raises(UserError, match=mistake):
        topology(**place)


def test_the_option_is_a_word_and_the_number_of_shards_a_power_of_two() -> None:
    def shards(*options: str) -> int | None:
        return parse_run_config(options, program="raylm train").cluster.fixed_shards

    assert (shards(), shards("--exact-elastic")) == (None, 4)
    assert shards("--exact-elastic", "--cluster.virtual-shards", "8") == 8
    with pytest.raises(UserError, match=r"--cluster.virtual-shards 6: .*power of two"):
        shards("--exact-elastic", "--cluster.virtual-shards", "6")


def test_a_compiled_sum_keeps_the_order_of_the_tree() -> None:
    """TensorFlow's graph optimizer adds additions of additions from left to right where nothing keeps it from that."""
    random = np.random.default_rng(0)
    values = (random.standard_normal((8, 300)) * 10.0 ** random.integers(-3, 3, (8, 300))).astype(np.float32)
    level = list(values)
    while len(level) > 1:
        level = [left + right for left, right in zip(level[::2], level[1::2], strict=True)]
    compiled = tf.function(lambda *parts: tree_sum([part + part for part in parts]))
    np.testing.assert_array_equal(compiled(*(values / 2)), level[0])


def norm(threads: int) -> tuple[float, float]:
    """The fixed norm of gradients large enough for several threads, and what it should be."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    random = np.random.default_rng(0)
    gradients = [random.standard_normal(shape, np.float32) for shape in ((10_000, 200), (200, 800), (10_000,))]
    true = np.sqrt(sum((gradient.astype(np.float64) ** 2).sum() for gradient in gradients))
    return float(tf.function(fixed_global_norm)(list(map(tf.constant, gradients)))), float(true)


def test_the_norm_does_not_hang_on_the_number_of_threads() -> None:
    norms = answers([Call(norm, threads) for threads in (1, 3, 16)])
    assert len(set(norms)) == 1
    assert norms[0][0] == pytest.approx(norms[0][1], rel=1e-6)
