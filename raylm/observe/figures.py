"""Numbers as people read them, one way everywhere; a figure that is missing is a dash, a broken one says so."""

import math

MISSING = "-"


def one_line(text: object) -> str:
    """Any text on one line, without the control characters that would move a terminal's cursor."""
    words = " ".join(str(text).split())
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in words)


def nats(value: float | None) -> str:
    """Cross-entropy a token: `5.812`."""
    return MISSING if value is None else f"{value:.3f}"


def perplexity(value: float | None) -> str:
    """`82.31`, `687.0`, `10,000`, `1.2e+09`."""
    if value is None:
        return MISSING
    if value >= 1e7:
        return f"{value:.1e}"
    decimals = 2 if value < 200 else 1 if value < 1000 else 0
    return f"{value:,.{decimals}f}"


def compact(value: float | None) -> str:
    """Four significant digits, for rates and norms: `0.25`, `1.2e-06`."""
    return MISSING if value is None else f"{value:.4g}"


def count(value: float | None) -> str:
    """`12,345`."""
    return MISSING if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """`12 s`, `3 min 12 s`, `2 h 05 min`."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def perplexity_of(value: float | None) -> float | None:
    """e to the power of nats a token; infinite where that is beyond a float."""
    if value is None:
        return None
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def nats_of(value: float | None) -> float | None:
    """The cross-entropy of a perplexity; None where it has none."""
    return None if value is None or not value > 0 else math.log(value)
