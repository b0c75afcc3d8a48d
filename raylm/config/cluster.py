"""Where a run takes place."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from raylm.config.section import Section


def _workers(value: Any) -> int | str:
    """A number of workers, or MIN:MAX in one form."""
    low, colon, high = str(value).partition(":")
    if not all(part.isdecimal() and int(part) > 0 for part in ((low, high) if colon else (low,))):
        raise ValueError("expected a number of workers above 0, or MIN:MAX, as in 1:4")
    if not colon or int(low) == int(high):
        return int(low)
    if int(low) > int(high):
        raise ValueError("expected MIN:MAX with MIN not above MAX, as in 1:4")
    return f"{int(low)}:{int(high)}"


class ClusterConfig(Section):
    workers: Annotated[int | str, BeforeValidator(_workers)] = 1
    """Ray Train workers, one process each. MIN:MAX, as in 1:4: as many of them as the cluster has room for, fewer when
    nodes go and more when nodes come; `ray up`'s autoscaler is asked for those. The global batch stays the same."""
    replicas: PositiveInt | None = None
    """Replicas of the model in each worker: GPUs, or logical CPU devices where there is none. Default: every GPU
    that each node has, else 1."""
    cpus_per_worker: PositiveFloat = 1.0
    """Cores that each worker asks Ray for."""
    exact_elastic: bool = False
    """End in the same state to the last bit, on any number of replicas of all workers up to virtual_shards, a number
    that may change from resume to resume. The step takes longer (README), and beyond two replicas sums replicas / 2
    times the bytes. Exact on processors of one kind only."""
    virtual_shards: int = 4
    """exact_elastic: shards of the global batch, a power of two, computed one by one and summed in a fixed order. Each
    number of shards has an end of its own."""
    pack_bytes: NonNegativeInt = 16 * 2**20
    """Bytes of gradients that are put together before their sum over the replicas begins; 0: all of them at once."""
    compress: Literal["none", "int16"] = "none"
    """int16: gradients are summed over the replicas in 16 bits, a unit for each 256 numbers; what rounding leaves out
    each replica adds to its next gradient, and keeps in checkpoints (4 bytes a parameter and replica). Pays where the
    network is slow; not with exact_elastic."""
    address: str | None = None
    """Ray cluster to use; default $RAY_ADDRESS, else Ray is started on this machine and stopped at the end."""
    max_failures: NonNegativeInt = 3
    """Failures in a row, no newer checkpoint between them, after each of which the workers are started anew from the
    newest checkpoint; one more ends the run. Every newer checkpoint and every `raylm resume` begin to count afresh;
    nodes that are drained do not count."""
    wait_for_room: NonNegativeFloat = 1800.0
    """Seconds to wait for nodes where too few are there for the workers, before the run ends as interrupted. A cloud's
    machine takes minutes to start and to install everything."""

    @property
    def fewest_workers(self) -> int:
        return int(str(self.workers).partition(":")[0])

    @property
    def most_workers(self) -> int:
        return int(str(self.workers).rpartition(":")[2])

    @model_validator(mode="after")
    def _compresses_or_is_exact(self) -> ClusterConfig:
        if self.exact_elastic and self.compress != "none":
            raise ValueError(
                "exact_elastic holds on any number of replicas, compress rounds on each: ask for one of them"
            )
        return self

    @field_validator("virtual_shards")
    @classmethod
    def _is_power_of_two(cls, shards: int) -> int:
        if shards < 1 or shards & (shards - 1):
            raise ValueError("expected a power of two, as in 4")
        return shards

    @property
    def fixed_shards(self) -> int | None:
        """The virtual shards of an exact-elastic run; None for one shard a replica."""
        return self.virtual_shards if self.exact_elastic else None
