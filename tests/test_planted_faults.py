"""The faults that `jobs/bench_diagnose.py` plants: what they change in the code is still what a training uses."""

from __future__ import annotations

from pathlib import Path

import pytest

with pytest.MonkeyPatch.context() as patched:
    patched.syspath_prepend(str(Path(__file__).parents[1] / "jobs"))
    from planted_faults import BASE, FAULTS, HEALTHY, SIZES

from raylm.cli.words import merged
from raylm.config import RunConfig


@pytest.mark.parametrize("name", [*FAULTS, *HEALTHY])
def test_its_code_can_be_planted_and_its_configuration_is_one(name: str) -> None:
    fault = FAULTS.get(name)
    for size in SIZES.values():
        assert RunConfig.model_validate(merged(merged(BASE, {"model": size}), fault.config if fault else HEALTHY[name]))
    if fault is not None:
        with fault.code():  # an error where what it replaces is no more
            pass
