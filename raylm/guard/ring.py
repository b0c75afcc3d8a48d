"""The last few whole-state snapshots in host memory, which a rollback goes back to without the disk."""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar


class _Placed(Protocol):
    @property
    def position(self) -> int: ...


Kept = TypeVar("Kept", bound=_Placed)


class Ring(Generic[Kept]):
    """At most `size` snapshots, oldest first; never without one after the first `add`."""

    def __init__(self, size: int) -> None:
        self._kept: deque[Kept] = deque(maxlen=size)

    def add(self, snapshot: Kept) -> None:
        """Keeps a snapshot that lies after all others; the oldest goes where the ring is full."""
        self._kept.append(snapshot)

    @property
    def positions(self) -> list[int]:
        """Window positions of the snapshots, oldest first."""
        return [snapshot.position for snapshot in self._kept]

    @property
    def newest(self) -> Kept:
        """The last snapshot."""
        return self._kept[-1]

    def at(self, position: int) -> Kept:
        """The snapshot at a position."""
        return next(snapshot for snapshot in self._kept if snapshot.position == position)

    def back_to(self, position: int) -> Kept:
        """The snapshot at a position; later ones are dropped, as they belong to what is undone."""
        while self._kept[-1].position != position:
            self._kept.pop()
        return self._kept[-1]
