"""Whether a learning rate is high: that depends on the optimizer, the scale of the loss and the clip.

Sources of the thresholds. SGD, on a mean over tokens: Zaremba, Sutskever and Vinyals 2014 (arXiv:1409.2329) train with
20 and clip 0.25 (they write it as 1 and 5 on a sum over 20 steps), Merity, Keskar and Socher 2017 (arXiv:1708.02182)
with 30 and clip 0.25. Adam: Kingma and Ba 2014 (arXiv:1412.6980): 0.001, and no weight moves by much more than the rate
in an update (section 2.1). Adagrad: Jozefowicz et al. 2016 (arXiv:1602.02410): 0.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raylm.observe.figures import compact

Level = Literal["low", "usual", "high", "too high", "unknown"]

_ADAPTIVE = ("adam", "adamw", "nadam", "amsgrad", "adamax", "rmsprop", "radam")
_WEIGHT = 0.1  # size of a fresh LSTM's weights: Zaremba et al. draw them from ± 0.1
_LONGEST_STEP = (
    10.0  # rate x clip, the most that SGD moves all weights together: 5 in Zaremba et al., 7.5 in Merity et al.
)


@dataclass(frozen=True)
class RateVerdict:
    """How high a learning rate is, and why, in one or two sentences."""

    level: Level
    why: str


def judge_rate(
    optimizer: str | None, rate: float | None, terms: float | None, clip: float | None = None
) -> RateVerdict:
    """The verdict on a rate; `terms` is how many times the mean over tokens the loss is whose gradient is used (None
    where that is not known), and `clip` the largest norm of that gradient."""
    if rate is None:
        return RateVerdict("unknown", "The learning rate is not known: add --lr.")
    name = (optimizer or "").lower()
    if not name:
        why = (
            f"Whether {compact(rate)} is high depends on the optimizer and the loss scale (add --optimizer): "
            f"for SGD on a mean over tokens it is {_word(judge_rate('sgd', rate, 1.0, clip))}, "
            f"for Adam {_word(judge_rate('adam', rate, 1.0, clip))}."
        )
        return RateVerdict("unknown", why)
    if name in _ADAPTIVE:
        return _adaptive(name, rate)
    if name == "adagrad":
        why = f"Adagrad is used at 0.2 for large LSTMs (Jozefowicz et al. 2016); {compact(rate)} is {{}}."
        return _ranged(rate, 1e-3, 0.5, 2.0, why)
    if name in ("sgd", "momentum", "asgd"):
        return _sgd(name, rate, terms, clip)
    return RateVerdict("unknown", f"I know no rule for the optimizer {optimizer!r}; for sgd, adam and adagrad I do.")


def contrast(optimizer: str, rate: float) -> str:
    """What the same number would mean for the other kind of optimizer."""
    other = "sgd" if optimizer.lower() in _ADAPTIVE else "adam"
    verdict = judge_rate(other, rate, 1.0, None)
    return f"The same {compact(rate)} for {_TITLES[other]} would be {_word(verdict)}: {_reason(other, rate)}"


_TITLES = {"sgd": "plain SGD on a mean over tokens", "adam": "Adam"}


def _reason(name: str, rate: float) -> str:
    if name == "sgd":
        return "there 20 to 30 are used, with clip 0.25."
    if rate > 0.05:
        return f"it moves weights of ± {_WEIGHT} by up to {compact(rate)} in each update, and diverges within a few."
    return f"it moves each weight by up to {compact(rate)} in each update; 0.001 is usual."


def _adaptive(name: str, rate: float) -> RateVerdict:
    title = {"adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}.get(name, name)
    why = (
        f"{title} moves each weight by up to the rate in an update, whatever the loss scale; 0.001 is usual (Kingma "
        f"and Ba 2014), and fresh weights are about ± {_WEIGHT}: {compact(rate)} is {{}}."
    )
    return _ranged(rate, 1e-5, 5e-3, 5e-2, why)


def _sgd(name: str, rate: float, terms: float | None, clip: float | None) -> RateVerdict:
    if terms is None:
        why = (
            f"Whether SGD's {compact(rate)} is high depends on the loss scale: on a mean over tokens 20 to 30 are used "
            "(with clip 0.25), on a sum over T steps that divided by T."
        )
        return RateVerdict("unknown", why)
    effective = rate * terms * (10 if name == "momentum" else 1)
    scale = "" if terms == 1 else f" ({compact(rate)} × the {compact(terms)} terms of the sum)"
    scale += " (with momentum 0.9)" if name == "momentum" else ""
    title = "Plain SGD" if name == "sgd" else "SGD"
    why = (
        f"{title} at {compact(effective)} on a mean over tokens{scale} is {{}}: published LSTM runs use 20 (Zaremba et "
        "al. 2014) to 30 (Merity et al. 2017) on that scale, with the gradient's norm clipped at 0.25."
    )
    if clip is not None and effective > 5:
        longest = rate * clip
        why += f" Rate × clip, the longest step, is {compact(longest)}; theirs are 5 to 7.5."
        return _ranged(longest, 0.0, _LONGEST_STEP, 5 * _LONGEST_STEP, why)
    if effective > 5:
        why += " It needs that clip: add --clip if you have one."
        return _ranged(effective, 0.01, 5.0, 50.0, why)
    return _ranged(effective, 0.01, 5.0, 50.0, why)


def _ranged(value: float, low: float, high: float, too_high: float, why: str) -> RateVerdict:
    level: Level = "low" if value < low else "usual" if value <= high else "high" if value <= too_high else "too high"
    return RateVerdict(level, why.replace("{}", _WORDS[level]))


_WORDS: dict[Level, str] = {
    "low": "low",
    "usual": "not high",
    "high": "high",
    "too high": "far too high",
    "unknown": "hard to judge",
}


def _word(verdict: RateVerdict) -> str:
    return "usual" if verdict.level == "usual" else _WORDS[verdict.level]
