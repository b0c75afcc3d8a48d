"""One update: forward, backward, all-reduce, gate, clip, apply.

Invariant: a non-finite number never reaches a weight, an optimizer slot or the carry. The gate looks at the
all-reduced loss and gradient norm, before the clip and before the update, so every replica takes the same branch;
where it is closed, weights and slots are not touched and the carry is selected, never multiplied by zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from raylm.config import OptimizerConfig, RunConfig
from raylm.model.dropout import Masks, mask_key
from raylm.model.language_model import Carry, LanguageModel
from raylm.model.types import Tensor
from raylm.optim.clipping import clip_factor, global_norm
from raylm.optim.optimizers import Optimizer
from raylm.training.distribute import all_reduce_sum
from raylm.training.state import Replicas


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
    stop: float32, 1 where this rank was asked to stop. poison_loss, poison_gradient: float32, added by drills.
    """

    position: Tensor
    learning_rate: Tensor
    stop: Tensor
    poison_loss: Tensor
    poison_gradient: Tensor


class StepResult(NamedTuple):
    """Scalars that are the same on every rank: summed loss (nats), real targets, global gradient norm (after the
    loss scale, before the clip), whether the update was applied, ranks that ask to stop."""

    loss_sum: Tensor
    tokens: Tensor
    norm: Tensor
    finite: Tensor
    stop: Tensor


def train_step(
    model: LanguageModel,
    optimizer: Optimizer,
    config: OptimizerConfig,
    lanes: int,
    batch: Batch,
    carry: Carry,
    masks: Masks | None,
    control: Control,
) -> tuple[StepResult, Carry]:
    """One update, identical on every replica; `lanes` is the global batch's."""
    variables = list(model.weights.values())
    carry = tf.nest.map_structure(lambda part: tf.where(batch.reset[:, None], tf.zeros_like(part), part), carry)
    with tf.GradientTape() as tape:
        loss_sum, next_carry = model.loss_sum(
            tf.transpose(batch.inputs), tf.transpose(batch.targets), tf.transpose(batch.weights), carry, masks
        )
    gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss_sum, variables)]
    gradients[-1] += control.poison_gradient
    scalars = tf.stack([loss_sum + control.poison_loss, tf.reduce_sum(batch.weights), control.stop])
    scalars, *gradients = all_reduce_sum([scalars, *gradients])
    loss_sum, tokens, stop = tf.unstack(scalars)
    scale = 1 / (tf.maximum(tokens, 1) if config.loss_scale == "token_mean" else float(lanes))
    norm = scale * global_norm(gradients)
    finite = tf.math.is_finite(loss_sum) & tf.math.is_finite(norm)

    def update() -> Tensor:
        optimizer.apply(gradients, scale * clip_factor(norm, config.clip_norm), control.learning_rate)
        return True

    tf.cond(finite, update, lambda: False)
    carry = tf.nest.map_structure(lambda new, old: tf.where(finite, new, old), next_carry, carry)
    return StepResult(loss_sum, tokens, norm, finite, stop), carry


def compile_step(replicas: Replicas, config: RunConfig) -> Callable[[Batch, Any, Control], tuple[StepResult, Any]]:
    """`train_step` on every replica of this worker, as one compiled function of (batch, carry, control).

    The batch holds this worker's lanes, `topology.padded_lanes` of them; the carry is per replica.
    """
    strategy, topology, model = replicas.strategy, replicas.topology, replicas.model
    share = topology.lanes_per_replica

    def replica_step(batch: Batch, carry: Carry, control: Control) -> tuple[StepResult, Carry]:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        local = replica - topology.rank * topology.replicas
        mine = Batch(*(part[local * share : (local + 1) * share] for part in batch))
        masks = Masks(mask_key(config.seed, control.position, replica * share)) if model.config.dropout else None
        return train_step(model, replicas.optimizer, config.optimizer, topology.lanes, mine, carry, masks, control)

    @tf.function
    def step(batch: Batch, carry: Any, control: Control) -> tuple[StepResult, Any]:
        results, next_carry = strategy.run(replica_step, args=(batch, carry, control))
        return tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], results), next_carry

    return step  # type: ignore[no-any-return]
