"""A whole run: the sections, and what belongs to none of them."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from raylm.config.cluster import ClusterConfig
from raylm.config.data import DataConfig
from raylm.config.guard import GuardConfig
from raylm.config.model import ModelConfig
from raylm.config.output import CheckpointConfig, ReportConfig
from raylm.config.section import Section
from raylm.config.update import OptimizerConfig, ScheduleConfig


class RunConfig(Section):
    recipe: str = "quick"
    """The recipe this configuration started from."""
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run's folder; default the recipe and the time."""
    storage_path: str = "runs"
    """Folder or URI (s3://, gs://) that holds the run folders; $RAYLM_STORAGE_PATH where it is set. Every worker must
    reach it."""
    seed: NonNegativeInt = Field(0, lt=2**63)
    """Seed of the initial weights, the dropout masks, the order and the sampled texts."""
    epochs: PositiveInt = 13
    """Passes over the training data."""
    steps: PositiveInt | None = None
    """Updates to stop after; default as many as the epochs have."""
    start_from: str | None = None
    """A run on the same text, or one of its checkpoints: its weights, at its best epoch, are this run's first ones."""
    stop_early: bool = False
    """End after the first epoch whose validation loss is above the lowest of all but the last `optimizer.patience`."""
    steps_per_call: PositiveInt = 1
    """Updates made in one call of the compiled function where nothing is due between them and windows are all of one
    width: less time of the host for each. A step takes twice as long to compile."""
    drill: tuple[str, ...] = ()
    """Faults to inject, KIND@STEP or KIND@STEP:WHERE each (`raylm drill` lists them)."""
    data: DataConfig = DataConfig()
    """What is read, and how."""
    model: ModelConfig = ModelConfig()
    """The network."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The update."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over time."""
    guard: GuardConfig = GuardConfig()
    """What happens when a step goes wrong."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the state is saved."""
    report: ReportConfig = ReportConfig()
    """What is shown."""
    cluster: ClusterConfig = ClusterConfig()
    """Where it runs."""

    @property
    def not_for_cudnn(self) -> str | None:
        """The first option that cuDNN's layer cannot serve; none where this run may use it."""
        # Nobody promises that cuDNN computes a shard alike to the last bit whatever lies beside it.
        return self.model.not_for_cudnn or ("cluster.exact_elastic" if self.cluster.exact_elastic else None)

    @model_validator(mode="after")
    def _cudnn_serves_what_is_asked(self) -> RunConfig:
        if self.model.kernel == "cudnn" and self.not_for_cudnn:
            raise ValueError(
                f"model.kernel cudnn cannot be had with {self.not_for_cudnn}: leave one of them out, or take "
                "--model.kernel auto"
            )
        return self

    @property
    def heeds_validation(self) -> bool:
        """Whether the validation losses decide how the run goes on."""
        return self.stop_early or self.optimizer.averaging == "triggered"
