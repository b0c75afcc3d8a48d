"""What GPUs and processors have, by their makers' data sheets, and what a plan assumes of them.

No GPU was tried: `raylm plan` says of each pace that it is an estimate, and by which assumption.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from raylm.config import RunConfig

GIB = 1 << 30

SHARE = {"float32": 1 / 3, "tf32": 1 / 6, "bfloat16": 1 / 6, "float16": 1 / 6}
"""Of the data sheet's rate that a training is assumed to reach, by precision: a window's products are small, and leave
tensor cores idle the longer the faster those are."""

LOOP_SECONDS, CUDNN_SECONDS = 1e-4, 2e-5
"""For one time step of one layer, forwards or backwards, beside its large products: where every time step is a few
calls of their own, and where cuDNN computes all of them in one."""

CORE_FLOPS = 80e9

FRACTIONS = {1 / 3: "a third", 1 / 6: "a sixth"}


@dataclass(frozen=True)
class Device:
    """What a replica computes on. memory: bytes, None where it is the machine's. peaks: floating-point operations a
    second by precision, of the data sheet; where one is missing, the device is taken to compute as in float32."""

    name: str
    memory: int | None
    peaks: Mapping[str, float]

    def with_memory(self, size: int) -> Device:
        """The same with so many bytes."""
        return replace(self, memory=size)


@dataclass(frozen=True)
class Speed:
    """What is assumed of a device in a run. flops: useful floating-point operations a second. loop_seconds: for one
    time step of one layer, forwards or backwards, beside its products. assumption: both in words."""

    flops: float
    loop_seconds: float
    assumption: str


def _gpu(name: str, gib: int, float32: float, tf32: float = 0, sixteen: float = 0, float16: float = 0) -> Device:
    """Peaks in TFLOP/s, without sparsity; 0 where the GPU has no such arithmetic. sixteen: bfloat16 and float16."""
    peaks = {"float32": float32, "tf32": tf32, "bfloat16": sixteen, "float16": float16 or sixteen}
    return Device(name, gib * GIB, {precision: 1e12 * peak for precision, peak in peaks.items() if peak})


GPUS = {
    device.name: device
    for device in (
        _gpu("T4", 15, 8.1, float16=65),
        _gpu("V100", 16, 15.7, float16=125),
        _gpu("A10G", 22, 31.2, 35, 70),
        _gpu("L4", 22, 30.3, 60, 121),
        _gpu("L40S", 44, 91.6, 183, 362),
        _gpu("A100", 40, 19.5, 156, 312),
        _gpu("A100-80GB", 80, 19.5, 156, 312),
        _gpu("H100", 80, 66.9, 494, 989),
        _gpu("H200", 140, 66.9, 494, 989),
    )
}
"""By NVIDIA's data sheets: memory that is left to programs, in GiB, and peak rates."""


def cpu(cores: float) -> Device:
    """So many cores of a machine."""
    return Device("CPU", None, {"float32": CORE_FLOPS * cores})


def speed(config: RunConfig, device: Device) -> Speed:
    """What a run is assumed to reach on a device."""
    asked = config.model.precision
    precision = asked if asked in device.peaks else "float32"
    lacks = "" if precision == asked else f" (and no {asked})"
    if device.memory is None:
        slow = "" if asked == "float32" else f", as in float32: {asked} was not tried"
        cores = f"{CORE_FLOPS / 1e9:g} GFLOP/s a core, {device.peaks['float32'] / CORE_FLOPS:g} cores"
        told = f"{cores}, 0.1 ms a time step and layer, as ptb-small ran on two cores{slow}"
        return Speed(device.peaks["float32"], LOOP_SECONDS, told)
    share, peak, cudnn = SHARE[precision], device.peaks[precision], may_use_cudnn(config)
    loop = CUDNN_SECONDS if cudnn else LOOP_SECONDS
    by = "by cuDNN, if its trial agrees" if cudnn else "by a loop over time"
    told = (
        f"{FRACTIONS[share]} of the {peak / 1e12:g} TFLOP/s that the {device.name}'s data sheet has for {precision}"
        f"{lacks}, {1e3 * loop:g} ms a time step and layer {by}; never tried"
    )
    return Speed(share * peak, loop, told)


def may_use_cudnn(config: RunConfig) -> bool:
    """Whether cuDNN computes the layers on a GPU, if its trial at the start agrees."""
    return config.model.kernel in ("auto", "cudnn") and not config.not_for_cudnn
