"""Every recipe, made small, still trains as it did when golden.json was written."""

from __future__ import annotations

import json
from typing import Any

import golden
import numpy as np
import pytest
from graph_sums import Sums
from training_runner import call

from raylm.recipes import RECIPES

WRITTEN: dict[str, Any] = json.loads(golden.GOLDEN.read_text(encoding="utf-8"))
TOLERANCE = 1e-6 if golden.made_with() == WRITTEN["made_with"] else 1e-3


Found = tuple[dict[str, dict[str, list[float]]], dict[str, Sums]]


@pytest.fixture(scope="module")
def found() -> Found:
    figures: Found = call(golden.figures, [*RECIPES])
    return figures


def test_the_file_holds_every_recipe_and_says_why_it_was_written() -> None:
    assert WRITTEN["losses"].keys() == RECIPES.keys()
    assert all(len(each["training"]) == golden.STEPS for each in WRITTEN["losses"].values())
    assert WRITTEN["reason"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loses_what_it_lost_before(name: str, found: Found) -> None:
    """To 1e-6 on the processor and the versions that the file names, to 1e-3 on others."""
    for kind, wanted in WRITTEN["losses"][name].items():
        np.testing.assert_allclose(found[0][name][kind], wanted, rtol=TOLERANCE, atol=0, err_msg=kind)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_s_step_adds_two_tensors_at_a_time_so_that_it_repeats_bit_for_bit(name: str, found: Found) -> None:
    sums = found[1][name]
    assert sums.looked > 100
    assert sums.most <= 2


def test_without_a_reason_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    before = golden.GOLDEN.read_bytes()
    assert golden.main([]) == golden.main([" "]) == 2
    assert "REASON" in capsys.readouterr().err
    assert golden.GOLDEN.read_bytes() == before
