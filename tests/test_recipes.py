"""Every recipe is a valid configuration, and the published ones hold the published numbers."""

from __future__ import annotations

import pytest

from raylm.config import RunConfig
from raylm.recipes import RECIPES

# Zaremba, Sutskever and Vinyals 2014 (arXiv:1409.2329), section 4.1.
PUBLISHED = {
    "ptb-small": {"hidden": 200, "window": 20, "scale": 0.1, "dropout": 0.0, "clip": 5, "held": 4, "by": 2.0, "epochs": 13},
    "ptb-medium": {"hidden": 650, "window": 35, "scale": 0.05, "dropout": 0.5, "clip": 5, "held": 6, "by": 1.2, "epochs": 39},
    "ptb-large": {"hidden": 1500, "window": 35, "scale": 0.04, "dropout": 0.65, "clip": 10, "held": 14, "by": 1.15, "epochs": 55},
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_valid_configuration(name: str) -> None:
    assert RunConfig.model_validate({**RECIPES[name], "recipe": name}).recipe == name


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_holds_the_published_numbers(name: str) -> None:
    config = RunConfig.model_validate(RECIPES[name])
    assert {
        "hidden": config.model.hidden,
        "window": config.data.window,
        "scale": config.model.init_scale,
        "dropout": config.model.dropout,
        "clip": config.optimizer.clip_norm,
        "held": config.schedule.held_epochs,
        "by": config.schedule.divisor,
        "epochs": config.epochs,
    } == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_paper_s_networks_are_trained_by_plain_sgd_on_twenty_contiguous_streams(name: str) -> None:
    config = RunConfig.model_validate(RECIPES[name])
    assert (config.model.layers, config.model.forget_bias) == (2, 0.0)
    assert (config.data.lanes, config.data.order) == (20, "sequential")
    assert (config.optimizer.name, config.optimizer.loss_scale) == ("sgd", "sequence_sum")
    assert (config.schedule.kind, config.schedule.learning_rate, config.schedule.warmup_steps) == ("held", 1.0, 0)
    assert config.steps is None


def test_the_default_recipe_exists() -> None:
    assert RunConfig().recipe in RECIPES
