"""Every recipe is a valid configuration, and the published ones hold the published numbers."""

from __future__ import annotations

import pytest

from raylm.config import RunConfig
from raylm.recipes import RECIPES

# Zaremba, Sutskever and Vinyals 2014 (arXiv:1409.2329), section 4.1: hidden units, BPTT length, initial scale, dropout,
# clip, epochs at learning rate 1, its divisor in each later one, epochs.
PUBLISHED = {
    "ptb-small": (200, 20, 0.1, 0.0, 5, 4, 2.0, 13),
    "ptb-medium": (650, 35, 0.05, 0.5, 5, 6, 1.2, 39),
    "ptb-large": (1500, 35, 0.04, 0.65, 10, 14, 1.15, 55),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_valid_configuration(name: str) -> None:
    assert RunConfig.model_validate({**RECIPES[name], "recipe": name}).recipe == name


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_holds_the_published_numbers(name: str) -> None:
    config = RunConfig.model_validate(RECIPES[name])
    model, schedule = config.model, config.schedule
    assert PUBLISHED[name] == (
        model.hidden,
        config.data.window,
        model.init_scale,
        model.dropout,
        config.optimizer.clip_norm,
        schedule.held_epochs,
        schedule.divisor,
        config.epochs,
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_are_trained_by_plain_sgd_on_twenty_contiguous_streams(name: str) -> None:
    config = RunConfig.model_validate(RECIPES[name])
    assert (config.model.layers, config.model.forget_bias) == (2, 0.0)
    assert (config.data.lanes, config.data.order) == (20, "sequential")
    assert (config.optimizer.name, config.optimizer.loss_scale) == ("sgd", "sequence_sum")
    assert (config.schedule.kind, config.schedule.learning_rate, config.schedule.warmup_steps) == ("held", 1.0, 0)
    assert config.steps is None


def test_awd_lstm_holds_the_published_numbers() -> None:
    """Merity, Keskar and Socher 2017 (arXiv:1708.02182), section 5 and the authors' code, for PTB."""
    config, tuned = (RunConfig.model_validate(RECIPES[name]) for name in ("ptb-awd", "ptb-awd-finetune"))
    model, optimizer = config.model, config.optimizer
    assert (config.epochs, config.data.lanes, config.data.window, config.data.jitter) == (500, 20, 70, True)
    assert (model.widths, model.tie_weights, model.init, model.init_scale) == ((400, 1150, 1150, 400), True, "awd", 0.1)
    assert (model.embedding_dropout, model.recurrent_dropout, model.locked_dropout) == (0.1, 0.5, True)
    assert model.dropout_rates == (0.4, 0.25, 0.25, 0.4)
    assert (model.activation_regularization, model.temporal_regularization) == (2.0, 1.0)
    assert (optimizer.clip_norm, optimizer.loss_scale, optimizer.weight_decay) == (0.25, "token_mean", 1.2e-6)
    assert (optimizer.name, optimizer.averaging, optimizer.patience) == ("sgd", "triggered", 5)
    assert (config.schedule.kind, config.schedule.learning_rate) == ("constant", 30.0)
    assert (tuned.stop_early, tuned.optimizer.averaging, tuned.model) == (True, "always", model)


def test_the_default_recipe_exists() -> None:
    assert RunConfig().recipe in RECIPES
