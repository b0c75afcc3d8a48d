"""Where a run stands, told from its events by a pure function."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from raylm.observe import figures
from raylm.observe.events import Event, number

_TIMED_STEPS = 20  # step events that the remaining time is estimated from
_CURVE = 1024  # points of the loss that are kept; past that, every second one is dropped
_CLIPPED_OF = 50  # step events that the share of clipped gradients is of
_LAST = 3  # samples and troubles shown


@dataclass(frozen=True)
class Progress:
    """All that a view shows; what has not been told of yet is None or empty."""

    steps_total: int | None = None
    step: int = 0
    epoch: float | None = None
    loss: float | None = None
    perplexity: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    tokens_per_second: float | None = None
    tokens: float | None = None
    limit: float | None = None
    """Tokens a second that the machine could do at best."""
    data_wait: float | None = None
    """Of a step's time, the wait for data."""
    pauses: float | None = None
    """Of all time, what goes to checkpoints, evaluations and samples."""
    all_reduce_share: float | None = None
    """Of a step's time, the sum over the replicas."""
    loss_scale: float | None = None
    """float16's."""
    overflows: int = 0
    """Updates left out since the loss scale was too high."""
    title: str = ""
    floors: tuple[tuple[str, float], ...] = ()
    """Names and nats a token, the highest first."""
    losses: tuple[tuple[int, float], ...] = ()
    """Steps and nats a token of what stands, thinned out where it is long; what was rolled back is no part of it."""
    clip_norm: float | None = None
    norms: tuple[float, ...] = ()
    """Of the last step events."""
    evaluations: tuple[str, ...] = ()
    """The last evaluation of each split, in the order in which the splits were last evaluated."""
    samples: tuple[tuple[int, str], ...] = ()
    """Steps and texts of the last ones, the oldest first."""
    checkpoint: int | None = None
    """The step of the last checkpoint."""
    incidents: int = 0
    rollbacks: int = 0
    troubles: tuple[str, ...] = ()
    """The last incidents, rollbacks, verdicts and checkpoints that were not saved, the oldest first."""
    ended: str = ""
    timed: tuple[tuple[float, int], ...] = ()
    """Time and step of the last step events."""

    @property
    def clipped(self) -> float | None:
        """The share of the last step events whose gradient was longer than the clip; None where that is not known."""
        if self.clip_norm is None or not self.norms:
            return None
        return sum(norm > self.clip_norm for norm in self.norms) / len(self.norms)

    @property
    def seconds_left(self) -> float | None:
        """The steps that remain at the pace of the last ones; None before there is a pace."""
        if self.steps_total is None or len(self.timed) < 2:
            return None
        (started, first), (ended, last) = self.timed[0], self.timed[-1]
        if last <= first:
            return None
        return (self.steps_total - self.step) * (ended - started) / (last - first)


def advance(progress: Progress, event: Event) -> Progress:
    """The progress after one more event; fields that an event lacks keep what was known."""
    kind = event.get("kind")
    if kind not in ("verdict", "checkpoint"):  # they speak of a step that was undone, or is past
        progress = replace(progress, step=event.get("step") or progress.step)
    match kind:
        case "start":
            return replace(
                progress,
                steps_total=event.get("steps_total") or progress.steps_total,
                title=start_line(event),
                floors=floors(event),
                clip_norm=number(event.get("clip_norm")),
                limit=number(event.get("tokens_per_second_limit")),
                losses=_until(progress.losses, progress.step),
                ended="",
                timed=(),
            )
        case "step":
            return _after_step(progress, event)
        case "eval":
            split = f"{event.get('split', '')} "
            others = tuple(line for line in progress.evaluations if not line.startswith(split))
            return replace(progress, evaluations=(*others, evaluation_line(event)), timed=progress.timed[-1:])
        case "sample":
            return replace(progress, samples=(*progress.samples, (progress.step, sample_line(event)))[-_LAST:])
        case "checkpoint" if event.get("problem"):
            return _troubled(progress, figures.one_line(event["problem"]))
        case "checkpoint":
            return replace(progress, checkpoint=event.get("step"))
        case "incident":
            return _troubled(replace(progress, incidents=progress.incidents + 1), incident_line(event))
        case "rollback":
            to_step = _whole(event.get("to_step"), progress.step)
            back = replace(
                progress,
                step=to_step,
                rollbacks=progress.rollbacks + 1,
                losses=_until(progress.losses, to_step),
                timed=(),
            )
            return _troubled(back, rollback_line(event))
        case "verdict":
            return _troubled(progress, verdict_line(event))
        case "resume":
            return replace(progress, losses=_until(progress.losses, progress.step), ended="", timed=())
        case "end":
            return replace(progress, ended=end_line(event))
        case _:
            return progress


def _troubled(progress: Progress, line: str) -> Progress:
    return replace(progress, troubles=(*progress.troubles, line)[-_LAST:])


def _until(losses: tuple[tuple[int, float], ...], step: int) -> tuple[tuple[int, float], ...]:
    return tuple(point for point in losses if point[0] <= step)


def _after_step(progress: Progress, event: Event) -> Progress:
    loss, norm = number(event.get("loss")), number(event.get("gradient_norm"))
    losses = progress.losses if loss is None or not math.isfinite(loss) else (*progress.losses, (progress.step, loss))
    return replace(
        progress,
        losses=losses if len(losses) <= _CURVE else (losses[0], *losses[2::2]),
        norms=progress.norms if norm is None else (*progress.norms, norm)[-_CLIPPED_OF:],
        steps_total=event.get("steps_total") or progress.steps_total,
        epoch=number(event.get("epoch")),
        loss=loss,
        perplexity=number(event.get("perplexity")),
        learning_rate=number(event.get("learning_rate")),
        gradient_norm=norm,
        tokens_per_second=number(event.get("tokens_per_second")),
        tokens=number(event.get("tokens")),
        data_wait=number(event.get("data_wait")),
        pauses=number(event.get("pauses")),
        all_reduce_share=number(event.get("all_reduce_share")),
        loss_scale=number(event.get("loss_scale")),
        overflows=_whole(event.get("overflows"), 0),
        timed=(*progress.timed, (event.get("time") or 0.0, progress.step))[-_TIMED_STEPS:],
    )


def time_shares(progress: Progress) -> str | None:
    """`compute 91%, data 1%, all-reduce 6%, pauses 2%`: where the time goes; None before that is known."""
    if progress.data_wait is None:
        return None
    training = 1 - (progress.pauses or 0.0)
    shares = {"data": training * progress.data_wait}
    if progress.all_reduce_share is not None:
        shares["all-reduce"] = training * progress.all_reduce_share
    shares["pauses"] = 1 - training
    compute = max(0.0, 1 - sum(shares.values()))
    return ", ".join(f"{name} {share:.0%}" for name, share in {"compute": compute, **shares}.items())


def exchange_figures(progress: Progress) -> list[tuple[str, str]]:
    """Names and values of what only runs on several replicas, or in float16, have to show."""
    pairs = []
    if progress.all_reduce_share is not None:
        pairs.append(("all-reduce", f"{progress.all_reduce_share:.0%}"))
    if progress.loss_scale is not None:
        pairs.append(("loss scale", f"{progress.loss_scale:g}"))
        pairs.append(("overflows", str(progress.overflows)))
    return pairs


def start_line(event: Event) -> str:
    """`ptb-small on ptb, 4,650,000 parameters, 10,000 words, 2 workers x 1 replica`, and where it computes, `cuDNN`."""
    parts = [f"{event.get('recipe') or 'a run'} on {event.get('dataset') or 'its data'}"]
    if (parameters := number(event.get("parameters"))) is not None:
        parts.append(f"{figures.count(parameters)} parameters")
    if (vocabulary := number(event.get("vocabulary"))) is not None:
        parts.append(f"{figures.count(vocabulary)} words")
    if (workers := event.get("workers")) is not None:
        parts.append(f"{_plural(workers, 'worker')} x {_plural(event.get('replicas') or 1, 'replica')}")
    parts += ["cuDNN"] if event.get("kernel") == "cudnn" else []
    return figures.one_line(", ".join(parts))


def evaluation_line(event: Event) -> str:
    """`valid perplexity 245.1 (5.502 nats) at step 500`."""
    value, entropy = number(event.get("perplexity")), number(event.get("nats"))
    return (
        f"{event.get('split', '')} perplexity {figures.perplexity(value)} ({figures.nats(entropy)} nats) "
        f"at step {event.get('step', 0)}"
    )


def sample_line(event: Event) -> str:
    """Prompt and text."""
    return figures.one_line(f"{event.get('prompt') or ''} {event.get('text') or ''}")


def incident_line(event: Event) -> str:
    """What was found, and where."""
    return figures.one_line(f"{event.get('reason') or 'an incident'} at step {event.get('step', 0)}")


def resume_line(event: Event) -> str:
    """`resumed at step 500, epoch 1, window 500, 650,000 tokens left, changed: cluster.workers 1 -> 2`."""
    parts = [f"resumed at step {event.get('step', 0)}"]
    if (epoch := number(event.get("epoch"))) is not None:
        parts.append(f"epoch {figures.count(epoch)}")
    if (position := number(event.get("position"))) is not None:
        parts.append(f"window {figures.count(position)}")
    if (left := number(event.get("tokens_left"))) is not None:
        parts.append(f"about {figures.count(left)} tokens left")
    changes = event.get("changes")
    if isinstance(changes, Mapping) and changes:
        told = (f"{key} {_shown(old)} -> {_shown(new)}" for key, (old, new) in changes.items())
        parts.append(f"changed: {', '.join(told)}")
    return figures.one_line(", ".join(parts))


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def resize_line(event: Event) -> str:
    """`now on 2 workers x 1 replica`."""
    return f"now on {_plural(event.get('workers'), 'worker')} x {_plural(event.get('replicas'), 'replica')}"


def rollback_line(event: Event) -> str:
    """From where to where, and with what change."""
    parts = [f"rolled back from step {event.get('step', 0)} to {event.get('to_step', 'an earlier one')}"]
    factor = number(event.get("learning_rate_factor"))
    if factor is not None and factor != 1:
        parts.append(f"learning rate x {figures.compact(factor)}")
    if event.get("reason"):
        parts.append(str(event["reason"]))
    return figures.one_line(", ".join(parts))


def verdict_line(event: Event) -> str:
    """`TRANSIENT: ...; more in runs/x/incidents/step-00000120`."""
    more = f"; more in {event['folder']}" if event.get("folder") else ""
    return figures.one_line(f"{event.get('text') or event.get('verdict') or 'none'}{more}")


def end_line(event: Event) -> str:
    """`completed at step 500: all steps done`."""
    reason = f": {event['reason']}" if event.get("reason") else ""
    return figures.one_line(f"{event.get('status') or 'ended'} at step {event.get('step', 0)}{reason}")


def floors(event: Event) -> tuple[tuple[str, float], ...]:
    """Names and nats of what a start event tells to hold the loss against."""
    named = ((name, number(event.get(f"{name}_nats"))) for name in ("uniform", "unigram", "bigram"))
    return tuple((name, entropy) for name, entropy in named if entropy is not None)


def floor_words(name: str, entropy: float) -> str:
    """`unigram 686.8`."""
    return f"{name} {figures.perplexity(figures.perplexity_of(entropy))}"


def _plural(amount: Any, noun: str) -> str:
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"


def _whole(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise
