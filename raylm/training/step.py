"""One update: forward, backward, all-reduce, gate, clip, apply.

Invariant: a non-finite number never reaches a weight, an optimizer slot or the carry. The gate looks at the
all-reduced loss and gradient norm, before the clip and before the update, so every replica takes the same branch;
where it is closed, weights and slots are not touched and the carry is selected, never multiplied by zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from types import MappingProxyType
from typing import Any, NamedTuple

import tensorflow as tf

from raylm.config import OptimizerConfig, RunConfig
from raylm.model.dropout import Masks, mask_key
from raylm.model.language_model import Carry, LanguageModel
from raylm.model.shapes import rows_of
from raylm.model.types import Tensor, Touch, untouched
from raylm.optim.clipping import clip_factor, global_norm, which_clipped
from raylm.optim.optimizers import Optimizer
from raylm.optim.rows import Gradient, row_gradient, scaled
from raylm.optim.scaling import LossScale
from raylm.training.exchange import sum_over_replicas
from raylm.training.inject import Strike, naive_mean, struck_gradient, touch_of
from raylm.training.signals import Watch
from raylm.training.state import Replicas
from raylm.training.summation import fixed_global_norm, tree_sum
from raylm.training.topology import Topology


class Batch(NamedTuple):
    """One window of this worker's lanes: ids int32 [B, T], targets int32 [B, T], weights float32 [B, T], and bool
    [B], which lanes begin anew with a carry of zero."""

    inputs: Tensor
    targets: Tensor
    weights: Tensor
    reset: Tensor


class Control(NamedTuple):
    """What the host says of a step, all scalars.

    position: of the window, int32 (keys the dropout masks). learning_rate: float32.
    stop: float32, 1 where this rank was asked to stop. strike: a drill's fault; None in runs without drills.
    """

    position: Tensor
    learning_rate: Tensor
    stop: Tensor
    strike: Strike | None


class StepResult(NamedTuple):
    """Scalars that are the same on every rank: summed loss (nats), real targets, global gradient norm (after the
    loss scale, before the clip), whether the update was applied, above zero where a rank asks to stop, the scale
    that float16's gradients were computed with (1 in other precisions), and the clip's factor (1: left as it was).

    signals: this rank's own (`raylm.training.signals`), no scalar; empty where they are off."""

    loss_sum: Tensor
    tokens: Tensor
    norm: Tensor
    finite: Tensor
    stop: Tensor
    loss_scale: Tensor
    clip: Tensor
    signals: Tensor = ()


class Share(NamedTuple):
    """What one shard of the lanes, or a replica with all of its shards, brings to a step: [loss sum, tokens, stop],
    gradients in the weights' order, and the carry before (reset where lanes begin anew) and after."""

    scalars: Tensor
    gradients: list[Gradient]
    carry: Carry
    next_carry: Carry


def share_of_step(
    model: LanguageModel,
    batch: Batch,
    carry: Carry,
    masks: Masks | None,
    control: Control,
    replica: Tensor,
    touch: Touch = untouched,
    rows: Mapping[str, int] = MappingProxyType({}),
    loss_scale: Tensor | None = None,
) -> Share:
    """Forward and backward over the lanes of one shard. loss_scale: that the backward pass is computed with.

    An id outside the vocabulary makes the loss NaN on every device; by itself a CPU would raise, a GPU read zeros.
    rows: weights whose gradients stay rows (`rows_of`).
    """
    known = tf.reduce_all(_known(batch.inputs, model) & _known(batch.targets, model))
    inputs, targets = (tf.where(_known(ids, model), ids, 0) for ids in (batch.inputs, batch.targets))
    carry = tf.nest.map_structure(lambda part: tf.where(batch.reset[:, None], tf.zeros_like(part), part), carry)
    weights = list(model.weights.values())
    with tf.GradientTape() as tape:
        tape.watch(weights)
        loss_sum, regularization, next_carry = model.losses(
            tf.transpose(inputs),
            tf.transpose(targets),
            tf.transpose(batch.weights),
            carry,
            masks,
            touch,
            control.position,
        )
        objective = loss_sum if regularization is None else loss_sum + regularization
    found = tape.gradient(objective, weights, loss_scale)
    gradients: list[Gradient] = [
        row_gradient(gradient, rows[name]) if name in rows else tf.convert_to_tensor(gradient)
        for name, gradient in zip(model.weights, found, strict=True)
    ]
    if loss_scale is not None:
        gradients = [scaled(gradient, 1 / loss_scale) for gradient in gradients]
    tokens = tf.reduce_sum(batch.weights)
    loss_sum = touch("loss", tf.where(known, loss_sum, float("nan")))
    if control.strike is not None:
        strike = control.strike
        loss_sum = naive_mean(strike, loss_sum, tokens)
        gradients = [struck_gradient(strike, replica, *named) for named in zip(model.weights, gradients, strict=True)]
    return Share(tf.stack([loss_sum, tokens, control.stop]), gradients, carry, next_carry)


def share_of_replica(
    model: LanguageModel,
    config: RunConfig,
    topology: Topology,
    batch: Batch,
    carry: Carry,
    control: Control,
    replica: Tensor,
    watch: Watch | None = None,
    loss_scale: Tensor | None = None,
) -> Share:
    """Forward and backward over one replica's lanes, shard after shard, summed in the order of a binary tree. `watch`
    sees the first shard."""
    rows = rows_of(config, model.vocabulary)

    def share_of_shard(number: int) -> Share:
        lanes = slice(number * topology.lanes_per_shard, (number + 1) * topology.lanes_per_shard)
        first_lane = replica * topology.lanes_per_replica + lanes.start
        mine = Batch(*(part[lanes] for part in batch))
        masks = Masks(mask_key(config.seed, control.position, first_lane)) if model.config.draws_masks else None
        strike = control.strike
        touch = untouched if strike is None else touch_of(strike, replica, first_lane, mine.weights)
        if watch is not None and number == 0:
            touch = watch.look(touch)
        before = tf.nest.map_structure(lambda part: part[lanes], carry)
        return share_of_step(model, mine, before, masks, control, replica, touch, rows, loss_scale)

    shares = [share_of_shard(number) for number in range(topology.shards_per_replica)]
    scalars, *gradients = map(tree_sum, zip(*([one.scalars, *one.gradients] for one in shares), strict=True))
    carries = (
        tf.nest.map_structure(lambda *parts: tf.concat(parts, 0), *each)
        for each in zip(*((one.carry, one.next_carry) for one in shares), strict=True)
    )
    return Share(scalars, gradients, *carries)


def apply_gated(
    optimizer: Optimizer,
    config: OptimizerConfig,
    lanes: int,
    share: Share,
    learning_rate: Tensor,
    clipped: Sequence[bool],
    norm_of: Callable[[list[Tensor]], Tensor] = global_norm,
    loss_scale: LossScale | None = None,
    once_finite: Callable[[], object] = lambda: None,
) -> tuple[StepResult, Carry]:
    """The update from a share that is summed over all replicas; `lanes` is the global batch's.

    clipped: which gradients are (`which_clipped`), by the norm of those.
    loss_scale: adapted to whether the gradient overflowed. Where the loss itself is not finite, it is not to blame.
    once_finite: called with the update.
    """
    used = loss_scale.value if loss_scale else tf.ones([])
    loss_sum, tokens, stop = tf.unstack(share.scalars)
    scale = 1 / (tf.maximum(tokens, 1) if config.loss_scale == "token_mean" else float(lanes))
    norm = scale * norm_of(share.gradients)
    finite = tf.math.is_finite(loss_sum) & tf.math.is_finite(norm)

    norm_clipped = norm if all(clipped) else scale * norm_of([*compress(share.gradients, clipped)])
    clip = clip_factor(norm_clipped, config.clip_norm)

    def update() -> Tensor:
        optimizer.apply(share.gradients, [scale * clip if each else scale for each in clipped], learning_rate)
        once_finite()
        if loss_scale:
            loss_scale.after_update()
        return True

    def no_update() -> Tensor:
        if loss_scale:
            tf.cond(tf.math.is_finite(loss_sum), loss_scale.after_overflow, lambda: None)
        return False

    tf.cond(finite, update, no_update)
    carry = tf.nest.map_structure(lambda new, old: tf.where(finite, new, old), share.next_carry, share.carry)
    return StepResult(loss_sum, tokens, norm, finite, stop, used, clip), carry


def train_step(
    replicas: Replicas, config: RunConfig, batch: Batch, carry: Carry, control: Control, replica: Tensor
) -> tuple[StepResult, Carry]:
    """One update, identical on every replica; batch and carry hold this replica's lanes."""
    topology, loss_scale = replicas.topology, replicas.loss_scale
    watch = Watch(replicas.model, control.position, config.report.log_every) if config.report.signals else None
    scale = loss_scale.value if loss_scale else None
    share = share_of_replica(replicas.model, config, topology, batch, carry, control, replica, watch, scale)
    scalars, gradients, once_finite = sum_over_replicas(replicas, config.cluster, share.scalars, share.gradients)
    share = share._replace(scalars=scalars, gradients=gradients)
    result, carry = apply_gated(
        replicas.optimizer,
        config.optimizer,
        topology.lanes,
        share,
        control.learning_rate,
        which_clipped(config.optimizer, replicas.model.weights),
        global_norm if topology.virtual_shards is None else fixed_global_norm,
        loss_scale,
        once_finite,
    )
    return result if watch is None else result._replace(signals=watch.signals(share.carry, carry)), carry


def compile_step(replicas: Replicas, config: RunConfig) -> Callable[[Batch, Any, Control], tuple[StepResult, Any]]:
    """`train_step` on every replica of this worker, as one compiled function of (batch, carry, control).

    The batch holds this worker's lanes, `topology.padded_lanes` of them; the carry is per replica.
    """
    strategy, of_replica = replicas.strategy, step_of_replica(replicas, config)

    @tf.function(autograph=False)
    def step(batch: Batch, carry: Any, control: Control) -> tuple[StepResult, Any]:
        results, next_carry = strategy.run(of_replica, args=(batch, carry, control))
        return tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], results), next_carry

    return _traced_once(step) if config.data.widths_vary else step


def step_of_replica(
    replicas: Replicas, config: RunConfig
) -> Callable[[Batch, Carry, Control], tuple[StepResult, Carry]]:
    """`train_step` as each replica of this worker runs it, from the worker's batch."""
    topology, lanes = replicas.topology, replicas.topology.lanes_per_replica

    def step(batch: Batch, carry: Carry, control: Control) -> tuple[StepResult, Carry]:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        local = replica - topology.rank * topology.replicas
        mine = Batch(*(part[local * lanes : (local + 1) * lanes] for part in batch))
        return train_step(replicas, config, mine, carry, control, replica)

    return step


def _traced_once(step: Any) -> Callable[[Batch, Any, Control], tuple[StepResult, Any]]:
    """One trace for batches of every width; by itself each width would be traced anew, and which of them first depends
    on where a run was resumed."""

    def of_any_width(batch: Batch, carry: Any, control: Control) -> tuple[StepResult, Any]:
        if not step.experimental_get_tracing_count():
            step.get_concrete_function(any_width(batch), carry, control)
        return step(batch, carry, control)  # type: ignore[no-any-return]

    return of_any_width


def any_width(batch: Batch) -> Batch:
    """What batches of a batch's lanes have in common, whatever their width."""
    return Batch(*(tf.TensorSpec([part.shape[0], *[None] * (part.shape.rank - 1)], part.dtype) for part in batch))


def _known(ids: Tensor, model: LanguageModel) -> Tensor:
    return (ids >= 0) & (ids < model.vocabulary)
