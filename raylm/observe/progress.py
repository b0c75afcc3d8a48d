"""Where a run stands, told from its events by a pure function."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from raylm.observe import figures
from raylm.observe.events import Event, number

_TIMED_STEPS = 20  # step events that the remaining time is estimated from


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
    title: str = ""
    floors: str = ""
    evaluations: tuple[str, ...] = ()
    """The last evaluation of each split, in the order in which the splits were last evaluated."""
    sample: str = ""
    checkpoint: int | None = None
    """The step of the last checkpoint."""
    incidents: int = 0
    rollbacks: int = 0
    trouble: str = ""
    """The last incident, rollback or checkpoint that was not saved."""
    ended: str = ""
    timed: tuple[tuple[float, int], ...] = ()
    """Time and step of the last step events."""

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
                floors=_floors(event),
                timed=(),
            )
        case "step":
            return _after_step(progress, event)
        case "eval":
            split = f"{event.get('split', '')} "
            others = tuple(line for line in progress.evaluations if not line.startswith(split))
            return replace(progress, evaluations=(*others, evaluation_line(event)), timed=progress.timed[-1:])
        case "sample":
            return replace(progress, sample=sample_line(event))
        case "checkpoint" if event.get("problem"):
            return replace(progress, trouble=figures.one_line(event["problem"]))
        case "checkpoint":
            return replace(progress, checkpoint=event.get("step"))
        case "incident":
            return replace(progress, incidents=progress.incidents + 1, trouble=incident_line(event))
        case "rollback":
            return replace(
                progress,
                step=_whole(event.get("to_step"), progress.step),
                rollbacks=progress.rollbacks + 1,
                trouble=rollback_line(event),
                timed=(),
            )
        case "verdict":
            return replace(progress, trouble=verdict_line(event))
        case "resume":
            return replace(progress, timed=())
        case "end":
            return replace(progress, ended=end_line(event))
        case _:
            return progress


def _after_step(progress: Progress, event: Event) -> Progress:
    return replace(
        progress,
        steps_total=event.get("steps_total") or progress.steps_total,
        epoch=number(event.get("epoch")),
        loss=number(event.get("loss")),
        perplexity=number(event.get("perplexity")),
        learning_rate=number(event.get("learning_rate")),
        gradient_norm=number(event.get("gradient_norm")),
        tokens_per_second=number(event.get("tokens_per_second")),
        tokens=number(event.get("tokens")),
        timed=(*progress.timed, (event.get("time") or 0.0, progress.step))[-_TIMED_STEPS:],
    )


def start_line(event: Event) -> str:
    """`ptb-small on ptb, 4,650,000 parameters, 10,000 words, 2 workers x 1 replica`."""
    parts = [f"{event.get('recipe') or 'a run'} on {event.get('dataset') or 'its data'}"]
    if (parameters := number(event.get("parameters"))) is not None:
        parts.append(f"{figures.count(parameters)} parameters")
    if (vocabulary := number(event.get("vocabulary"))) is not None:
        parts.append(f"{figures.count(vocabulary)} words")
    if (workers := event.get("workers")) is not None:
        parts.append(f"{_plural(workers, 'worker')} x {_plural(event.get('replicas') or 1, 'replica')}")
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


def _floors(event: Event) -> str:
    floors = []
    for name in ("uniform", "unigram"):
        entropy = number(event.get(f"{name}_nats"))
        if entropy is not None:
            floors.append(f"{name} {figures.perplexity(figures.perplexity_of(entropy))}")
    return ", ".join(floors)


def _plural(amount: Any, noun: str) -> str:
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"


def _whole(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise
