"""A trained model in TensorFlow, for use without a strategy."""

from __future__ import annotations

from raylm.model.language_model import LanguageModel
from raylm.training.loading import Trained
from raylm.training.state import assign_all


def make_model(trained: Trained) -> LanguageModel:
    """The model with its weights in place.

    Raises:
        UserError: the weights are of another configuration or vocabulary; names the first that differs.
    """
    config = trained.config
    by_rows = () if config.model.tie_weights else ("embedding",)  # dynamic evaluation writes the rows that it read
    model = LanguageModel(config.model, len(trained.vocabulary), config.seed, by_rows=by_rows)
    assign_all("model", model.weights, trained.weights)
    return model
