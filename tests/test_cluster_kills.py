"""A run on two workers, killed at random instants, ends as the unbroken one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray_cluster import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def test_a_run_killed_at_random_instants_ends_as_the_unbroken_one(ptb_dir: Path) -> None:
    """Rank 0, rank 1 and the driver, once each; `python jobs/soak.py` kills twenty times."""
    options = ("--kills", "3", "--lines", "300", "--epochs", "1", "--ptb", str(ptb_dir))
    done = subprocess.run(
        [sys.executable, "jobs/soak.py", *options], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same state, bit for bit" in done.stdout
