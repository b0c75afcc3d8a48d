"""What the server of `training_runner` imports once, for all the processes that it forks. Nothing here may start a
thread or a TensorFlow operation."""

import tempfile
from pathlib import Path

import incident_cases  # noqa: F401
import saving_cases  # noqa: F401

from raylm.observe.tensorboard import TensorBoardLog

with tempfile.TemporaryDirectory() as folder:
    TensorBoardLog(Path(folder)).close()  # it imports what it writes with when it is made
