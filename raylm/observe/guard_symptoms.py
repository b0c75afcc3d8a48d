"""Rules that tell a sick training from what its guard met. As those of `symptoms`."""

from __future__ import annotations

from raylm.observe.findings import Evidence, Finding
from raylm.observe.update_symptoms import slower

_EXPLODED = "OPTIMISATION"


def ended_failed(seen: Evidence) -> Finding | None:
    """The guard gave up: its own verdict is the finding."""
    if not seen.failed:
        return None
    last = seen.verdicts[-1:] or ((seen.last_step, seen.failed),)
    evidence = (seen.failed, *(text for _, text in last if text != seen.failed))
    title = f"The run failed at step {seen.last_step}."
    if last[0][1].startswith(_EXPLODED):
        patch, advice = slower(seen)
    else:
        patch, advice = {}, "Read the incident's verdict; raylm replay computes its step again."
    return Finding("failed", "wrong", title, evidence, advice, "the run's own guard", last[0][0], seen.loss, patch)


def bad_batches(seen: Evidence) -> Finding | None:
    """Three batches or more that the data made bad: no rarity, but a mistake in how they are made."""
    bad = [(step, text) for step, text in seen.verdicts if text.startswith("DATA")]
    if len(bad) < 3:
        return None
    return Finding(
        "bad batches",
        "wrong",
        f"{len(bad)} batches were bad in themselves, the first at step {bad[0][0]}.",
        tuple(f"step {step}: {text}" for step, text in bad[:2]),
        "Look at the ids and the targets that batches are made of: the vocabulary may be off by one.",
        "one may be a damaged row; sound data has none",
        bad[0][0],
        seen.loss,
    )


def explodes_again(seen: Evidence) -> Finding | None:
    """Three faults or more that a clip or a slower rate mends: the guard undoes what the configuration causes."""
    steps = [step for step, text in seen.verdicts if text.startswith(_EXPLODED)]
    if len(steps) < 3 or seen.failed:
        return None
    patch, advice = slower(seen)
    return Finding(
        "explodes again",
        "wrong",
        f"The weights exploded {len(steps)} times, first at step {steps[0]}; the guard undid it each time.",
        tuple(f"step {step}: {text}" for step, text in seen.verdicts[-1:]),
        advice,
        "once may be a batch's; ten clean runs of raylm's recipes had none",
        steps[0],
        seen.loss,
        patch,
    )


def went_through_faults(seen: Evidence) -> Finding | None:
    """The guard mended faults: said, since where there was one there are more."""
    if not seen.verdicts or seen.failed:
        return None
    lines = tuple(f"step {step}: {text}" for step, text in seen.verdicts[-2:])
    title = f"{len(seen.verdicts)} fault{'s were' if len(seen.verdicts) > 1 else ' was'} found and undone."
    transient = all(text.startswith("TRANSIENT") for _, text in seen.verdicts)
    sound = "as if they had not been" if transient else "sound without what was left out"
    advice = f"The run is {sound}; the incidents' folders say more."
    return Finding("faults", "note", title, lines, advice, "the run's own guard", seen.verdicts[0][0], seen.loss)
