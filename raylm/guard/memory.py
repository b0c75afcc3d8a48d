"""What the guard remembers of its own work: the budget spent, the incident that is open, the last sound losses.

It is kept in every checkpoint and, from each rollback on, in `guard.json` in the run's folder, so that a kill gives
no budget back. It is history and no part of `state_sha256`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raylm.data.caching import write_file
from raylm.errors import UserError
from raylm.guard.ledger import Ledger

JOURNAL = "guard.json"


@dataclass(frozen=True)
class Incident:
    """A fault that is not over yet.

    kind: non-finite, state, leap (of a gradient that nothing clips) or spike. step, position: of the last fault in it.
    rollbacks: made for it. level: times that windows were left out for it. replaying: the place is being computed
    again, nothing left out. over_at: the incident is over where a window from here on is sound.
    """

    kind: str
    step: int
    position: int
    rollbacks: int
    level: int
    replaying: bool
    over_at: int


@dataclass(frozen=True)
class Memory:
    """rollbacks: in the whole run. losses, norms: of the last sound steps, nats a token and the gradient's norm before
    the clip, oldest first."""

    rollbacks: int = 0
    incident: Incident | None = None
    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Memory:
        """Raises: UserError: the fields are not a memory's."""
        try:
            incident = Incident(**fields["incident"]) if fields["incident"] is not None else None
            losses, norms = (tuple(map(float, fields.get(name, ()))) for name in ("losses", "norms"))
            return cls(int(fields["rollbacks"]), incident, losses, norms)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the guard's memory is malformed ({error!r})") from None


@dataclass(frozen=True)
class Journal:
    """The last decision to roll back, and the drills that had struck by then."""

    ledger: Ledger
    memory: Memory
    drills: tuple[str, ...] = ()


def write_journal(run_folder: Path, journal: Journal) -> None:
    """Keeps a decision before anything is done on it. Raises: UserError: the folder cannot be written to."""
    content = {
        "ledger": journal.ledger.to_json(),
        "memory": journal.memory.to_json(),
        "drills": list(journal.drills),
    }
    write_file(run_folder / JOURNAL, (json.dumps(content, indent=2) + "\n").encode())


def read_journal(run_folder: Path) -> Journal | None:
    """The last decision; None where there was none.

    Raises:
        UserError: it cannot be read; says what to do.
    """
    path = run_folder / JOURNAL
    try:
        content = json.loads(path.read_bytes())
        drills = tuple(str(drill) for drill in content["drills"])
        return Journal(Ledger.from_json(content["ledger"]), Memory.from_json(content["memory"]), drills)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(
            f"{path} is damaged ({error}): put it back from a copy, or remove it, and the rollbacks since the newest "
            "checkpoint are forgotten"
        ) from None
