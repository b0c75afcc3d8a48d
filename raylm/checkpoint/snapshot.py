"""The whole state of a training run as plain data, and the one number that proves two states equal."""

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray[Any, Any]]
Json = Mapping[str, Any]
_PIECE = 1 << 20  # bytes hashed, or written, at a time


def go_on() -> None:
    """No rest between two pieces of work."""


def in_pieces(data: memoryview) -> Iterator[memoryview]:
    """Bytes in pieces that are hashed or written in a millisecond or so."""
    return (data[start : start + _PIECE] for start in range(0, len(data), _PIECE))


@dataclass(frozen=True)
class Snapshot:
    """The state after `step` optimizer updates: all that a run needs to go on as if it had never stopped.

    The mappings keep their order through a checkpoint. The arrays must not change while they are being saved.
    """

    step: int
    """Optimizer updates applied."""
    weights: Arrays
    """Model variables by name."""
    slots: Arrays
    """Optimizer variables by name; empty for plain SGD."""
    carry: Arrays
    """The carried LSTM state by name, each [lanes, width], with the same lanes; empty without a carry."""
    cursor: Json
    """What of the data was consumed."""
    ledger: Json
    """The guard's memory: its budget and what it left out."""
    rng: Json
    """The seeds that randomness is derived from."""
    extra: Json = field(default_factory=dict)
    """Accounts kept beside the state and no part of it, as the tokens and the loss so far."""


def state_sha256(snapshot: Snapshot, rest: Callable[[], None] = go_on) -> str:
    """SHA-256, in hexadecimal, of all in the snapshot but `extra`: equal exactly where the states are equal.

    It does not depend on how a checkpoint is laid out in files, on the order of the mappings or on the
    machine's byte order. The hash is over a sequence of frames; a frame is its length in bytes as an unsigned
    64-bit little-endian integer, then those bytes. The frames are, in this order:

    1. `raylm-state-1`
    2. the step in decimal digits
    3. for each of `weights`, `slots`, `carry`: its name, the number of its arrays in decimal digits, and for
       each array, by name in the order of the UTF-8 bytes, four frames: the name (UTF-8); the dtype as NumPy
       names it (`float32`); the shape as decimal digits joined by commas, empty for a scalar; the elements in
       C order, little-endian
    4. for each of `cursor`, `ledger`, `rng`: its name, and its canonical JSON: `json.dumps(value,
       sort_keys=True, separators=(",", ":"), ensure_ascii=True)` of the value as JSON reads it back

    rest: called after each piece of the work, which may sleep there.

    Raises ValueError where a mapping holds what JSON cannot say (NaN and infinities too) or an array holds
    objects.
    """
    digest = hashlib.sha256()

    def frame(data: bytes | memoryview) -> None:
        digest.update(struct.pack("<Q", len(data)))
        for piece in in_pieces(memoryview(data)):
            digest.update(piece)
            rest()

    frame(b"raylm-state-1")
    frame(b"%d" % snapshot.step)
    for section, arrays in (
        ("weights", snapshot.weights),
        ("slots", snapshot.slots),
        ("carry", snapshot.carry),
    ):
        frame(section.encode())
        frame(b"%d" % len(arrays))
        for name in sorted(arrays, key=lambda name: name.encode()):
            array = little_endian(arrays[name])
            frame(name.encode())
            frame(array.dtype.name.encode())
            frame(",".join(str(size) for size in array.shape).encode())
            frame(raw_bytes(array))
    for section, value in (("cursor", snapshot.cursor), ("ledger", snapshot.ledger), ("rng", snapshot.rng)):
        frame(section.encode())
        frame(json.dumps(plain(value), sort_keys=True, separators=(",", ":")).encode())
    return digest.hexdigest()


def little_endian(array: Any) -> np.ndarray[Any, Any]:
    """The array in C order and little-endian, copied only where it must be; ValueError for objects."""
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"an array of {array.dtype} cannot be saved: numbers and booleans only")
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def raw_bytes(array: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of an array in C order, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def plain(value: Any) -> Any:
    """`value` as JSON reads it back: tuples become lists, NumPy scalars numbers, keys text.

    Raises ValueError where JSON has no word for it; NaN and the infinities are such.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False, default=_number))
    except (TypeError, ValueError) as error:
        raise ValueError(f"not plain JSON: {error}") from error


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is neither a number, text, a list nor a mapping")
