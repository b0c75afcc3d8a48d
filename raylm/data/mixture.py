"""Several datasets in one global batch, each with a share of the lanes.

The lanes are dealt out by weight, each dataset at least one, and a dataset's lanes are `Streams` of their own: it
has its own epochs, and in each of them every one of its targets comes exactly once. What a dataset's weight
decides is how large its part of every batch is, and so how fast its epochs go by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from raylm.data.cursor import Cursor, check_cursor
from raylm.data.dataset import Dataset
from raylm.data.segments import Order
from raylm.data.streams import Place, Streams, Window
from raylm.errors import UserError

MOST_DATASETS = 16
"""Datasets that a mixture holds: its cursor stays below 1 KB."""


class MixedStreams:
    """Reads lanes [first_lane, stop_lane) of a global batch of `lanes` lanes over several (dataset, weight).

    As `Streams`; a cursor's `parts` are the (epoch, window) of each dataset, and its own epoch and window those
    of the first. A window resets the lanes whose dataset begins an epoch; `reset` says that all lanes do.

    Raises:
        UserError: no dataset or too many, a weight that is not positive, fewer lanes than datasets, datasets
            with different vocabularies, or settings that `Streams` refuses.
    """

    def __init__(
        self,
        members: Sequence[tuple[Dataset, float]],
        *,
        lanes: int,
        window: int,
        seed: int,
        order: Order = "sequential",
        first_lane: int = 0,
        stop_lane: int | None = None,
        pad_lanes_to: int | None = None,
        superbatch: int = 32,
    ) -> None:
        stop_lane = lanes if stop_lane is None else stop_lane
        if not 1 <= len(members) <= MOST_DATASETS:
            raise UserError(f"{len(members)} datasets to mix: expected 1 to {MOST_DATASETS}")
        if not 0 <= first_lane <= stop_lane <= lanes:
            raise UserError(f"lanes [{first_lane}, {stop_lane}): expected a part of the {lanes} lanes")
        if pad_lanes_to is not None and pad_lanes_to < stop_lane - first_lane:
            raise UserError(f"cannot pad {stop_lane - first_lane} lanes to {pad_lanes_to}")
        _check_one_vocabulary([dataset for dataset, _ in members])
        self.window = window
        self.lanes = lanes
        self._shares = share_lanes(lanes, [weight for _, weight in members])
        self._firsts = [sum(self._shares[:member]) for member in range(len(members))]
        self._padding = (pad_lanes_to or stop_lane - first_lane) - (stop_lane - first_lane)
        self._streams = [
            Streams(
                dataset,
                lanes=share,
                window=window,
                seed=seed,
                order=order,
                first_lane=min(max(first_lane - first, 0), share),
                stop_lane=min(max(stop_lane - first, 0), share),
                superbatch=superbatch,
            )
            for (dataset, _), share, first in zip(members, self._shares, self._firsts, strict=True)
        ]
        ids = [stream.dataset.dataset_id for stream in self._streams]
        shares = ",".join(str(share) for share in self._shares)
        self._start = Cursor(
            dataset_id=hashlib.sha256("\n".join(ids).encode()).hexdigest(),
            layout=f"mixture lanes={shares} window={window} order={order}",
            seed=seed,
            parts=((0, 0),) * len(members),
        )

    @property
    def targets_per_epoch(self) -> int:
        """Targets in an epoch of the first dataset."""
        return self._streams[0].targets_per_epoch

    def windows_per_epoch(self, epoch: int) -> int:
        """Windows in an epoch of the first dataset."""
        return self._streams[0].windows_per_epoch(epoch)

    def start(self) -> Cursor:
        """The very first cursor."""
        return self._start

    def check(self, cursor: Cursor) -> None:
        """Check that a cursor is of these datasets, seed and layout.

        Raises:
            UserError: it is not; the difference is named.
        """
        check_cursor(cursor, self._start)
        if len(cursor.parts) != len(self._streams):
            raise UserError(
                f"cursor: it has {len(cursor.parts)} parts, the mixture {len(self._streams)} datasets; it is damaged"
            )

    def read(self, cursor: Cursor) -> tuple[Window, Cursor]:
        """The window at a cursor (the next one that is not left out), and the cursor after it.

        Raises:
            UserError: a dataset is damaged or cannot be read.
        """
        read = [stream.read(self._member(cursor, place)) for place, stream in enumerate(self._streams)]
        windows, cursors = [window for window, _ in read], [after for _, after in read]

        def together(name: str) -> np.ndarray:
            array = np.concatenate([getattr(window, name) for window in windows])
            return np.pad(array, [(0, self._padding)] + [(0, 0)] * (array.ndim - 1))

        window = Window(
            inputs=together("inputs"),
            targets=together("targets"),
            weights=together("weights"),
            reset=all(window.reset for window in windows),
            reset_lanes=together("reset_lanes"),
            targets_total=sum(window.targets_total for window in windows),
            cursor=self._joined(cursor, [window.cursor for window in windows]),
            length=self.window,
        )
        return window, self._joined(cursor, cursors)

    def settle(self, cursor: Cursor) -> Cursor:
        """The cursor moved past what is left out: the place of the window that `read` gives."""
        settled = [stream.settle(self._member(cursor, place)) for place, stream in enumerate(self._streams)]
        return self._joined(cursor, settled)

    def at(self, position: int) -> Cursor:
        """The cursor of a position, where nothing is left out."""
        return self._joined(self._start, [stream.at(position) for stream in self._streams])

    def places(self, cursor: Cursor) -> tuple[Place, ...]:
        """Where each lane of the global batch reads in the window at a cursor."""
        return tuple(
            replace(place, lane=place.lane + self._firsts[member])
            for member, stream in enumerate(self._streams)
            for place in stream.places(self._member(cursor, member))
        )

    def _member(self, cursor: Cursor, place: int) -> Cursor:
        """The cursor of one dataset's streams."""
        epoch, window = cursor.parts[place]
        start = self._streams[place].start()
        return replace(start, epoch=epoch, window=window, position=cursor.position, skips=cursor.skips)

    def _joined(self, cursor: Cursor, members: Sequence[Cursor]) -> Cursor:
        """A cursor of the mixture at the places of its members, which all have one position."""
        first = members[0]
        return replace(
            cursor,
            epoch=first.epoch,
            window=first.window,
            offset=first.offset,
            position=first.position,
            skips=first.skips,
            parts=tuple((member.epoch, member.window) for member in members),
        )


def share_lanes(lanes: int, weights: Sequence[float]) -> list[int]:
    """Lanes for each weight: one each, the rest in proportion, by largest remainder (ties to the first).

    Raises:
        UserError: a weight is not positive, or there are fewer lanes than weights.
    """
    if not all(0 < weight < float("inf") for weight in weights):
        raise UserError(f"weights {list(weights)}: each is a positive number")
    if lanes < len(weights):
        raise UserError(f"{lanes} lanes for {len(weights)} datasets: each needs at least one")
    ideal = [weight * lanes / sum(weights) for weight in weights]
    shares = [max(int(share), 1) for share in ideal]
    while sum(shares) != lanes:
        step = 1 if sum(shares) < lanes else -1
        able = [place for place in range(len(shares)) if step > 0 or shares[place] > 1]
        place = max(able, key=lambda place: (step * (ideal[place] - shares[place]), -place))
        shares[place] += step
    return shares


def _check_one_vocabulary(datasets: Sequence[Dataset]) -> None:
    first = datasets[0]
    for other in datasets[1:]:
        if other.vocabulary.sha256 != first.vocabulary.sha256:
            raise UserError(
                f"{first} and {other} have different vocabularies and cannot be mixed; "
                "prepare the second with the vocabulary of the first"
            )
