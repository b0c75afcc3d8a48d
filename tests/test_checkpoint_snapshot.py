"""Whatever a snapshot holds comes back bit for bit, and its hash can be recomputed from its description."""

import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from checkpoint_examples import save, snapshot_at
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from raylm.checkpoint import tensors
from raylm.checkpoint.store import CheckpointStore, Snapshot, state_sha256

_names = st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__" and name.isprintable())
_dtypes = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(),
    hnp.unsigned_integer_dtypes(),
    hnp.floating_dtypes(sizes=(16, 32, 64)),
    hnp.integer_dtypes(endianness=">"),
)
_shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
_arrays = st.dictionaries(_names, hnp.arrays(_dtypes, _shapes), max_size=3)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_mappings = st.dictionaries(st.text(max_size=5), _json, max_size=3)


@st.composite
def _snapshots(draw: st.DrawFn) -> Snapshot:
    lanes = draw(st.integers(1, 4))
    carry = hnp.arrays(np.float32, st.tuples(st.just(lanes), st.integers(0, 3)))
    return Snapshot(
        step=draw(st.integers(0, 10**9)),
        weights=draw(_arrays),
        slots=draw(_arrays),
        carry=draw(st.dictionaries(_names, carry, max_size=2)),
        cursor=draw(_mappings),
        ledger=draw(_mappings),
        rng=draw(_mappings),
        extra=draw(_mappings),
    )


@given(_snapshots())
@settings(max_examples=60, deadline=None)
def test_every_snapshot_comes_back_bit_for_bit_and_in_its_order(snapshot: Snapshot) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder))
        loaded = store.load(save(store, snapshot))
    assert state_sha256(loaded) == state_sha256(snapshot)
    assert (loaded.step, loaded.cursor, loaded.ledger, loaded.rng, loaded.extra) == (
        snapshot.step,
        snapshot.cursor,
        snapshot.ledger,
        snapshot.rng,
        snapshot.extra,
    )
    for section in ("weights", "slots", "carry"):
        before, after = getattr(snapshot, section), getattr(loaded, section)
        assert list(after) == list(before)
        for name, array in before.items():
            assert after[name].dtype == array.dtype.newbyteorder("<")
            assert after[name].shape == array.shape
            assert after[name].tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()


def test_non_finite_weights_are_stored_as_they_are(tmp_path: Path) -> None:
    payload = np.array([0x7FC00001, 0xFF800000, 0x7F800001], np.uint32).view(np.float32)
    snapshot = replace(snapshot_at(1), weights={"w": payload})
    store = CheckpointStore(tmp_path)
    assert store.load(save(store, snapshot)).weights["w"].tobytes() == payload.tobytes()


def test_non_finite_figures_beside_the_state_become_text(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    path = save(store, replace(snapshot_at(1), extra={"valid_nats": float("nan"), "all": [float("inf"), 1]}))
    assert store.load(path).extra == {"valid_nats": "nan", "all": ["inf", 1]}


@pytest.mark.parametrize("section", ["cursor", "ledger", "rng"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_state_that_json_cannot_say_is_refused_and_leaves_nothing(tmp_path: Path, section: str, value: object) -> None:
    with pytest.raises(ValueError, match="not plain JSON"):
        save(CheckpointStore(tmp_path), replace(snapshot_at(1), **{section: {"key": value}}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "broken",
    [
        {"weights": {"w": np.array(["text"])}},
        {"weights": {"w": np.zeros(2, np.complex64)}},
        {"weights": {"__metadata__": np.zeros(2)}},
        {"carry": {"h": np.zeros(3)}},
        {"carry": {"h": np.zeros((0, 3))}},
        {"carry": {"h": np.zeros((2, 3)), "c": np.zeros((3, 3))}},
    ],
)
def test_arrays_that_a_checkpoint_cannot_hold_are_refused(tmp_path: Path, broken: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"cannot be|must be"):
        save(CheckpointStore(tmp_path), replace(snapshot_at(1), **broken))
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_what_the_safetensors_library_reads_and_writes() -> None:
    arrays = {
        "wide": np.arange(6, dtype=np.float64).reshape(2, 3),
        "flags": np.array([True, False, True]),
        "narrow": np.arange(4, dtype=np.float32),
        "scalar": np.float16(2),
        "none": np.zeros((0, 3), np.int32),
    }
    data = b"".join(tensors.encode(arrays))
    read = safetensors.numpy.load(data)
    assert {name: array.tolist() for name, array in read.items()} == {
        name: np.asarray(array).tolist() for name, array in arrays.items()
    }
    written = tensors.decode(safetensors.numpy.save({name: np.asarray(array) for name, array in arrays.items()}))
    assert {name: array.tolist() for name, array in written.items()} == {
        name: array.tolist() for name, array in read.items()
    }


def test_the_hash_is_what_its_description_says() -> None:
    snapshot = Snapshot(
        step=500,
        weights={"b": np.array([1.5, -2.0], np.float32), "a": np.array(3, np.int64)},
        slots={},
        carry={"h": np.zeros((2, 1), np.float32)},
        cursor={"position": 7, "epoch": 0},
        ledger={},
        rng={"seed": 11},
    )
    parts = [
        *[b"raylm-state-1", b"500"],
        *[b"weights", b"2"],
        *[b"a", b"int64", b"", bytes.fromhex("0300000000000000")],
        *[b"b", b"float32", b"2", bytes.fromhex("0000c03f000000c0")],
        *[b"slots", b"0"],
        *[b"carry", b"1", b"h", b"float32", b"2,1", bytes(8)],
        *[b"cursor", b'{"epoch":0,"position":7}', b"ledger", b"{}", b"rng", b'{"seed":11}'],
    ]
    framed = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    assert state_sha256(snapshot) == hashlib.sha256(framed).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"step": 2},
        {"weights": {"a": np.zeros(4, np.float32)}},
        {"weights": {"a": np.zeros((2, 2), np.int32)}},
        {"weights": {"b": np.zeros((2, 2), np.float32)}},
        {"weights": {"a": np.full((2, 2), -0.0, np.float32)}},
        {"weights": {}, "slots": {"a": np.zeros((2, 2), np.float32)}},
        {"carry": {"h": np.zeros((1, 1), np.float32)}},
        {"cursor": {"position": 1}},
        {"ledger": {"rollbacks": 1}},
        {"rng": {"seed": 1}},
    ],
)
def test_any_difference_in_the_state_changes_the_hash(change: dict[str, Any]) -> None:
    base = Snapshot(1, {"a": np.zeros((2, 2), np.float32)}, {}, {}, {}, {}, {})
    assert state_sha256(replace(base, **change)) != state_sha256(base)


def test_layout_in_memory_and_figures_beside_the_state_do_not_change_the_hash() -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(3, dtype=np.int32)
    base = Snapshot(1, {"a": a, "b": b}, {}, {}, {"x": (1, 2), "y": 0}, {}, {})
    same = Snapshot(
        1, {"b": b.astype(">i4"), "a": np.asfortranarray(a)}, {}, {}, {"y": 0, "x": [1, 2]}, {}, {}, {"loss": 3}
    )
    assert state_sha256(same) == state_sha256(base)


def test_the_manifest_says_what_was_saved(tmp_path: Path) -> None:
    path = save(CheckpointStore(tmp_path, clock=lambda: 12.5), snapshot_at(500))
    manifest = json.loads((path / "MANIFEST.json").read_text())
    assert path.name == "step-00000500"
    assert manifest["step"] == 500
    assert manifest["saved"] == 12.5
    assert manifest["dataset_id"] == "sha256:0123"
    assert manifest["state_sha256"] == state_sha256(snapshot_at(500))
    assert manifest["config"] == {"optimizer": {"learning_rate": 1.0}, "shards": [1, 2]}
    assert sorted(manifest["files"]) == [
        "carry-00000-00019.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    for name, record in manifest["files"].items():
        data = (path / name).read_bytes()
        assert record == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
