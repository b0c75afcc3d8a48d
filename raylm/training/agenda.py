"""What is due between two steps, told from the configuration and the state alone."""

from __future__ import annotations

from dataclasses import dataclass

from raylm.config import RunConfig
from raylm.optim.averaging import stopped_falling
from raylm.training.state import State


@dataclass(frozen=True)
class Agenda:
    """The dates of a run; every rank asks it with the same state and gets the same answers."""

    config: RunConfig

    def over(self, state: State) -> bool:
        """Whether the run has come to its end."""
        if self.stopped_early(state):
            return True
        if self.config.steps is not None:
            return state.step >= self.config.steps
        return state.cursor.epoch >= self.config.epochs

    def stopped_early(self, state: State) -> bool:
        """Whether the validation loss ends the run."""
        return self.config.stop_early and stopped_falling(state.validation, self.config.optimizer.patience)

    def averages(self, state: State) -> bool:
        """Whether the weights after the next update go into their mean."""
        optimizer = self.config.optimizer
        if optimizer.averaging == "triggered":
            return stopped_falling(state.validation, optimizer.patience)
        return optimizer.averaging in ("always", "exponential")

    def evaluation(self, state: State) -> bool:
        """Whether the model is to be evaluated: after each epoch and at the end."""
        return state.cursor.epoch > state.epochs_evaluated or self.over(state)

    def save(self, state: State, saved_at: int) -> bool:
        """Whether the state is to be saved: every so often and before each evaluation, once."""
        return state.step > saved_at and (state.step % self.config.checkpoint.every == 0 or self.evaluation(state))

    def sample(self, state: State) -> bool:
        """Whether a text is to be sampled: every so often and at the end."""
        every = self.config.report.sample_every
        return bool(every) and state.step > 0 and (state.step % every == 0 or self.over(state))

    def anything(self, state: State, saved_at: int) -> bool:
        """Whether any of these is due."""
        return self.save(state, saved_at) or self.sample(state) or self.evaluation(state)
