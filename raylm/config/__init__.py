"""The whole of a run's configuration: one frozen typed tree.

A field's default, bounds and help text stand once, in the file of its section; the command line, `config.json` and the
help derive from them. Values come from, in rising order of weight: these defaults, a recipe (`raylm/recipes.py`), a
TOML file (`--config`), options (`--section.field value`).
"""

from raylm.config.cluster import ClusterConfig
from raylm.config.data import DataConfig
from raylm.config.guard import GuardConfig
from raylm.config.keys import FIXED, SHORTCUTS, is_fixed
from raylm.config.model import ModelConfig
from raylm.config.output import CheckpointConfig, ReportConfig
from raylm.config.run import RunConfig
from raylm.config.section import Section
from raylm.config.update import OptimizerConfig, ScheduleConfig

__all__ = [
    "FIXED",
    "SHORTCUTS",
    "CheckpointConfig",
    "ClusterConfig",
    "DataConfig",
    "GuardConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ReportConfig",
    "RunConfig",
    "ScheduleConfig",
    "Section",
    "is_fixed",
]
