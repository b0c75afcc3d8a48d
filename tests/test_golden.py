"""Every recipe, made small, still trains as it did when golden.json was written."""

from __future__ import annotations

import json
from typing import Any

import golden
import numpy as np
import pytest
from training_runner import call

from raylm.recipes import RECIPES

WRITTEN: dict[str, Any] = json.loads(golden.GOLDEN.read_text(encoding="utf-8"))
TOLERANCE = 1e-6 if golden.made_with() == WRITTEN["made_with"] else 1e-3


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, list[float]]]:
    figures: dict[str, dict[str, list[float]]] = call(golden.figures, [*RECIPES])
    return figures


def test_the_file_holds_every_recipe_and_says_why_it_was_written() -> None:
    assert WRITTEN["losses"].keys() == RECIPES.keys()
    assert all(len(each["training"]) == golden.STEPS for each in WRITTEN["losses"].values())
    assert WRITTEN["reason"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loses_what_it_lost_before(name: str, found: dict[str, dict[str, list[float]]]) -> None:
    """To 1e-6 on the processor and the versions that the file names, to 1e-3 on others."""
    for kind, wanted in WRITTEN["losses"][name].items():
        np.testing.assert_allclose(found[name][kind], wanted, rtol=TOLERANCE, atol=0, err_msg=kind)


def test_without_a_reason_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    before = golden.GOLDEN.read_bytes()
    assert golden.main([]) == golden.main([" "]) == 2
    assert "REASON" in capsys.readouterr().err
    assert golden.GOLDEN.read_bytes() == before
