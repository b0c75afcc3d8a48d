"""When the state is saved, and what is shown."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from raylm.config.section import Section


class CheckpointConfig(Section):
    every: PositiveInt = 500
    """Updates between checkpoints."""
    keep_last: int = Field(3, ge=2)
    """Newest checkpoints kept."""
    keep_every: PositiveInt | None = None
    """Checkpoints whose step is a multiple of this are kept for good; none to keep no such ones."""
    keep_best: NonNegativeInt = 1
    """Checkpoints with the lowest validation loss kept."""


class ReportConfig(Section):
    log_every: PositiveInt = 20
    """Updates between step events."""
    sample_every: NonNegativeInt = 500
    """Updates between sampled texts; 0 for none."""
    sample_prompt: str = "the company said"
    """Words that every sampled text goes on from."""
    sample_words: PositiveInt = 25
    """Words to sample."""
    signals: bool = True
    """Measure the training's health beside each step, for raylm diagnose; training is the same to the last bit."""
    sinks: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Where figures go beside the run's folder: wandb, mlflow, or both. Each needs its package where the workers are,
    and takes its settings from its own environment variables."""
    plain_seconds: PositiveFloat = 10.0
    """Seconds between lines where the output is not a terminal."""
