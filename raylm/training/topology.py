"""Which lanes of the global batch each worker and each replica holds.

Replica r of all (worker rank · replicas + local index) holds the lanes [r·k, (r+1)·k) with k = ⌈lanes / all⌉, so
2 workers × 1 replica and 1 worker × 2 replicas compute the same thing in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

from raylm.errors import UserError


@dataclass(frozen=True)
class Topology:
    """This worker's place: its rank among `workers`, each with `replicas` replicas; `lanes` of the global batch.

    Raises:
        UserError: there are more replicas than lanes.
    """

    rank: int
    workers: int
    replicas: int
    lanes: int

    def __post_init__(self) -> None:
        if self.workers * self.replicas > self.lanes:
            raise UserError(
                f"{self.workers} workers × {self.replicas} replicas are more than the {self.lanes} lanes of the "
                "global batch: ask for fewer, or raise --data.lanes"
            )

    @property
    def lanes_per_replica(self) -> int:
        return -(-self.lanes // (self.workers * self.replicas))

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
