"""Which lanes of the global batch each worker and each replica holds.

The lanes are cut into shards of one size, which are computed one by one and summed. By default every replica has one
shard: replica r of all (worker rank · replicas + local index) holds the lanes [r·k, (r+1)·k) with k = ⌈lanes / all⌉, so
2 workers × 1 replica and 1 worker × 2 replicas compute the same thing in the same order. With virtual shards their
number is fixed instead, and every replica holds a block of them: then any number of replicas does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from raylm.errors import UserError


@dataclass(frozen=True)
class Topology:
    """This worker's place: its rank among `workers`, each with `replicas` replicas; `lanes` of the global batch.

    virtual_shards: the fixed number of shards, a power of two; None for as many as there are replicas.

    Raises:
        UserError: there are more replicas or shards than lanes, or more replicas than shards.
    """

    rank: int
    workers: int
    replicas: int
    lanes: int
    virtual_shards: int | None = None

    def __post_init__(self) -> None:
        if self.workers * self.replicas > self.lanes:
            raise UserError(
                f"{self.workers} workers × {self.replicas} replicas are more than the {self.lanes} lanes of the "
                "global batch: ask for fewer, or raise --data.lanes"
            )
        if self.shards > self.lanes:
            raise UserError(
                f"--cluster.virtual-shards {self.shards} are more than the {self.lanes} lanes of the global batch: ask "
                "for fewer, or raise --data.lanes"
            )
        if self.workers * self.replicas > self.shards:
            raise UserError(
                f"{self.workers} workers × {self.replicas} replicas are more than the {self.shards} virtual shards of "
                "--exact-elastic: ask for fewer, or raise --cluster.virtual-shards"
            )

    @property
    def shards(self) -> int:
        """All shards that hold lanes of the global batch, whichever replica computes them."""
        return self.virtual_shards or self.workers * self.replicas

    @property
    def shards_per_replica(self) -> int:
        """A power of two where shards are virtual: then a replica's sum is a node of the tree over all shards. Where
        the replicas are no power of two, the last ones hold shards without lanes."""
        if self.virtual_shards is None:
            return 1
        most = math.ceil(self.virtual_shards / (self.workers * self.replicas))
        return 1 << (most - 1).bit_length()

    @property
    def lanes_per_shard(self) -> int:
        return -(-self.lanes // self.shards)

    @property
    def lanes_per_replica(self) -> int:
        return self.shards_per_replica * self.lanes_per_shard

    @property
    def first_lane(self) -> int:
        """This worker's first lane."""
        return min(self.lanes, self.rank * self.replicas * self.lanes_per_replica)

    @property
    def stop_lane(self) -> int:
        """One past this worker's last lane."""
        return min(self.lanes, self.first_lane + self.padded_lanes)

    @property
    def padded_lanes(self) -> int:
        """Lanes of this worker's arrays, lanes of weight zero at the end included."""
        return self.replicas * self.lanes_per_replica

    @property
    def undivided(self) -> Topology:
        """The same shards, each with a replica of its own, all in one worker: how one process computes them again."""
        return replace(self, rank=0, workers=1, replicas=self.shards)
