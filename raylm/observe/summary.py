"""summary.json: how a run ended, good or bad."""

import contextlib
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from raylm.errors import UserError
from raylm.observe.events import finite_json, number

NAME = "summary.json"
STATUSES = ("completed", "failed", "interrupted")


@dataclass(frozen=True)
class Summary:
    """The end of a run in figures; None where it did not come so far."""

    status: str
    """completed, failed or interrupted."""
    reason: str
    """Why it ended, in one line."""
    steps: int
    """Optimizer updates applied."""
    tokens: int
    """Targets trained on, over all resumes."""
    train_perplexity: float | None = None
    valid_perplexity: float | None = None
    test_perplexity: float | None = None
    tokens_per_second: float | None = None
    """Median, warm-up left out (`steady_rate`)."""
    all_reduce_share: float | None = None
    """Of a step's time, as of the step events; None on one replica."""
    rollbacks: int = 0
    resumes: int = 0
    state_sha256: str | None = None
    seconds: float | None = None
    """Wall-clock time of the last attempt."""
    recipe: str | None = None
    dataset: str | None = None
    uniform_nats: float | None = None
    unigram_nats: float | None = None
    bigram_nats: float | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} is none of {', '.join(STATUSES)}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; NaN and the infinities as text."""
        plain: dict[str, Any] = finite_json(asdict(self))
        return plain

    @classmethod
    def from_json(cls, content: Any) -> "Summary":
        """Back from `to_json`; fields of a newer version are left out. Raises ValueError, KeyError, TypeError."""
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in content.items() if name in known}
        for name in (
            "train_perplexity",
            "valid_perplexity",
            "test_perplexity",
            "tokens_per_second",
            "all_reduce_share",
            "seconds",
        ):
            values[name] = number(values.get(name))
        return cls(**values)


def steady_rate(rates: Sequence[float | None]) -> float | None:
    """The median of a figure, as tokens a second, over a run's steps, its first tenth (at least one) left out as
    warm-up."""
    measured = [rate for rate in rates if rate is not None]
    steady = measured[max(1, len(measured) // 10) :] or measured
    return statistics.median(steady) if steady else None


def write_summary(run_folder: Path, summary: Summary) -> Path:
    """Write `RUN/summary.json` whole or not at all; UserError where the disk refuses."""
    path = run_folder / NAME
    partial = path.with_name(f".{NAME}.partial-{os.getpid()}")
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            json.dump(summary.to_json(), file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return path


def read_summary(run_folder: Path) -> Summary:
    """The summary of a run that has ended; UserError naming the file and what is wrong with it."""
    path = run_folder / NAME
    try:
        return Summary.from_json(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise UserError(f"{run_folder} has no {NAME}: the run goes on, or was killed") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a run's summary: {error}") from error
