"""A recorded step computed again in one process: the replicas' shares one after the other, in the same order.

No strategy, no collective: what several replicas summed is summed here in rank order, virtual shards in that of their
tree, and everything else is the step's own code (`raylm.training.step`). What was summed in 16 bits is summed in full;
layers that cuDNN computed are computed by the fused kernel, which any machine has and whose gates can be looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from raylm.guard.drills import PROCESS_KINDS, STATE_SITES, Drill
from raylm.model.dropout import Masks, mask_key
from raylm.model.language_model import Carry, LanguageModel, carry_names, initial_weights
from raylm.model.lstm import LayerCarry
from raylm.model.shapes import rows_of, updated_by_rows
from raylm.model.types import Tensor, Touch, untouched
from raylm.optim.clipping import global_norm, which_clipped
from raylm.optim.optimizers import make_optimizer
from raylm.optim.rows import Gradient, RowGradient, joined, summed_by_row
from raylm.optim.scaling import LOWEST, make_loss_scale, overflowed
from raylm.training.compression import without_residual
from raylm.training.incident import Incident, RecordedStep
from raylm.training.inject import strike_of, touch_of
from raylm.training.state import assign_all
from raylm.training.step import Batch, Control, Share, any_width, apply_gated, share_of_step
from raylm.training.summation import fixed_global_norm, tree_sum


@dataclass(frozen=True)
class Result:
    """One step: loss in nats a token, the gradient's global norm, whether both are finite (or float16's loss scale was
    too high for the gradient, which is no fault)."""

    step: int
    position: int
    loss: float
    norm: float
    finite: bool


class Probe:
    """A model and an optimizer of their own, for the steps of one incident."""

    def __init__(self, incident: Incident) -> None:
        self.incident = incident
        config = incident.config
        by_rows = updated_by_rows(config, incident.vocabulary)
        self.model = LanguageModel(config.model, incident.vocabulary, config.seed, by_rows=by_rows)
        self.optimizer = make_optimizer(config.optimizer, self.model.weights)
        self.loss_scale = make_loss_scale(config.model)
        self.slots = {**self.optimizer.slots, **(self.loss_scale.slots if self.loss_scale else {})}
        self.lanes_each = len(incident.last.inputs) // incident.shares
        self.drilled = any(_comes_again(step.drill) for step in incident.steps)
        self._share = tf.function(self._share_eagerly, autograph=False)
        exact = config.cluster.exact_elastic
        self._sum: Callable[..., Gradient] = tree_sum if exact else _sum
        self._norm: Callable[..., Tensor] = fixed_global_norm if exact else global_norm
        self.vary()

    def vary(self, clip_norm: float | None = None, rate_factor: float = 1.0) -> None:
        """Clips at `clip_norm` in place of what the configuration says, multiplies every learning rate."""
        config = self.incident.config
        clip = {} if clip_norm is None else {"clip_norm": clip_norm}
        optimization = config.optimizer.model_copy(update=clip)
        self.clip_norm = optimization.clip_norm
        self.rate_factor = rate_factor
        self._apply = tf.function(
            lambda share, rate: apply_gated(
                self.optimizer,
                optimization,
                config.data.lanes,
                share,
                rate,
                which_clipped(optimization, self.model.weights),
                self._norm,
                self.loss_scale,
            ),
            autograph=False,
        )

    def to_fresh_weights(self) -> None:
        """Takes the weights that the run began with and an empty carry; the slots stay."""
        weights = initial_weights(self.incident.config.model, self.incident.vocabulary, self.incident.config.seed)
        assign_all("model", self.model.weights, weights)
        self.carry = [self.model.zero_carry(self.lanes_each) for _ in range(self.incident.shares)]

    @property
    def state_is_finite(self) -> bool:
        """Whether every weight and slot is."""
        variables = (*self.model.weights.values(), *self.slots.values())
        return all(bool(tf.reduce_all(tf.math.is_finite(variable))) for variable in variables)

    def to_snapshot(self) -> None:
        """Takes the weights, slots and carry of the incident's snapshot."""
        snapshot = self.incident.snapshot
        assign_all("model", self.model.weights, snapshot.weights)
        assign_all("optimizer", self.slots, without_residual(snapshot.slots))
        parts = []
        for name in carry_names(self.model.config.layers):
            padded = np.zeros((len(self.incident.last.inputs), snapshot.carry[name].shape[1]), np.float32)
            padded[: len(snapshot.carry[name])] = snapshot.carry[name]
            parts.append(padded)
        self.carry = [
            _carry([part[share * self.lanes_each : (share + 1) * self.lanes_each] for part in parts])
            for share in range(self.incident.shares)
        ]

    def step(self, recorded: RecordedStep, lanes: Sequence[int] | None = None, update: bool = True) -> Result:
        """Computes a step, and unless `update` is false makes it. lanes: the only ones that read; the others are made
        empty, of weight zero."""
        control = self.control(recorded)
        scale = float(self.loss_scale.value) if self.loss_scale else LOWEST
        batches = [self.batch(recorded, share, lanes) for share in range(self.incident.shares)]
        if self.incident.config.data.widths_vary and not self._share.experimental_get_tracing_count():
            self._share.get_concrete_function(any_width(batches[0]), self.carry[0], control, tf.constant(0))
        shares = [
            self._share(batch, self.carry[share], control, tf.constant(share)) for share, batch in enumerate(batches)
        ]
        columns = zip(*([one.scalars, *one.gradients] for one in shares), strict=True)
        scalars, *gradients = map(self._sum, columns)
        if not update:
            return self._result(recorded, scalars, self._norm(gradients), scale)
        for number, share in enumerate(shares):  # the update is the same for all; each share has its own carry
            summed = Share(scalars, gradients, share.carry, share.next_carry)
            if number == 0:
                result, self.carry[0] = self._apply(summed, control.learning_rate)
            else:
                self.carry[number] = share.next_carry if bool(result.finite) else share.carry
        return self._result(recorded, scalars, result.norm, scale)

    def share_traced(self, recorded: RecordedStep, share: int, look: Touch) -> Share:
        """One replica's share, computed eagerly, with `look` at every named tensor."""
        control = self.control(recorded)
        return self._share_eagerly(
            self.batch(recorded, share), self.carry[share], control, tf.constant(share), look=look
        )

    def control(self, recorded: RecordedStep) -> Control:
        """What the host said of a step."""
        drill = recorded.drill if _comes_again(recorded.drill) else None
        rate = self.rate_factor * recorded.learning_rate
        return Control(
            tf.constant(recorded.position, tf.int32),
            tf.constant(rate, tf.float32),
            tf.constant(0.0),
            strike_of(drill) if self.drilled else None,
        )

    def batch(self, recorded: RecordedStep, share: int, lanes: Sequence[int] | None = None) -> Batch:
        """A replica's part of a window."""
        mine = slice(share * self.lanes_each, (share + 1) * self.lanes_each)
        arrays = [recorded.inputs, recorded.targets, recorded.weights]
        reset = recorded.reset
        if lanes is not None:
            kept = np.isin(np.arange(len(recorded.inputs)), lanes)
            arrays = [np.where(kept[:, None], array, 0).astype(array.dtype) for array in arrays]
            reset = reset | ~kept
        return Batch(*(tf.constant(array[mine]) for array in (*arrays, reset)))

    def _share_eagerly(
        self, batch: Batch, carry: Carry, control: Control, share: Tensor, look: Touch = untouched
    ) -> Share:
        masks = None
        if self.model.config.draws_masks:
            masks = Masks(mask_key(self.incident.config.seed, control.position, share * self.lanes_each))
        strike: Touch = untouched
        if control.strike is not None:
            strike = touch_of(control.strike, share, share * self.lanes_each, batch.weights)

        def touch(name: str, tensor: Tensor) -> Tensor:
            return look(name, strike(name, tensor))

        rows = rows_of(self.incident.config, self.model.vocabulary)
        scale = self.loss_scale.value if self.loss_scale else None
        return share_of_step(self.model, batch, carry, masks, control, share, touch, rows, scale)

    def _result(self, recorded: RecordedStep, scalars: Tensor, norm: Tensor, scale: float) -> Result:
        loss_sum, tokens, _ = (float(value) for value in scalars.numpy())
        norm = float(norm)
        applied = bool(np.isfinite(loss_sum) and np.isfinite(norm))
        finite = applied or overflowed(loss_sum, applied, scale)
        return Result(recorded.step, recorded.position, loss_sum / max(tokens, 1.0), norm, finite)


def _comes_again(drill: Drill | None) -> bool:
    """Whether a drill strikes in one process too: what is tied to a window does, what is tied to a device does not."""
    return (
        drill is not None
        and drill.sticky
        and drill.replica is None
        and drill.site
        not in (
            *STATE_SITES,
            *PROCESS_KINDS,
        )
    )


def _sum(values: Sequence[Gradient]) -> Gradient:
    total = values[0]
    if isinstance(total, RowGradient):
        return summed_by_row(joined(values))
    for value in values[1:]:
        total = total + value
    return total


def _carry(parts: Sequence[np.ndarray]) -> Carry:
    tensors = [tf.constant(part) for part in parts]
    return tuple(LayerCarry(*tensors[i : i + 2]) for i in range(0, len(tensors), 2))
