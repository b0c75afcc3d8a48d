"""Arrays as a safetensors file: a header of names, dtypes and shapes, then the bytes, nothing to unpickle.

The writer is written out because the library's copies every array while it holds the interpreter lock, which
training would feel; the reader is the library's.
"""

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from raylm.checkpoint.snapshot import Arrays, little_endian, raw_bytes

_DTYPES = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}


def encode(arrays: Arrays) -> Iterator[memoryview]:
    """The bytes of a safetensors file, piece by piece; ValueError for a dtype or a name it cannot hold.

    Wide elements come first, as the library writes them, so that every array is aligned for memory mapping.
    """
    ordered = {name: little_endian(array) for name, array in arrays.items()}
    ordered = dict(sorted(ordered.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    header: dict[str, Any] = {}
    offset = 0
    for name, array in ordered.items():
        if name == "__metadata__" or array.dtype.name not in _DTYPES:
            raise ValueError(f"array {name!r} of {array.dtype} cannot be kept in a safetensors file")
        header[name] = {
            "dtype": _DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(struct.pack("<Q", len(text)) + text)
    for array in ordered.values():
        yield raw_bytes(array)


def decode(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a safetensors file by name; ValueError where header, shapes and size do not agree."""
    try:
        return dict(safetensors.numpy.load(data))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"not a safetensors file: {error}") from error
