"""What a range test of the learning rate suggests."""

from __future__ import annotations

import math

from raylm.observe.page import rate_page
from raylm.observe.rate_range import Suggestion, diverges, drawn, suggest


def fell(fastest: float, worst: float, first: float = 9.2) -> list[tuple[float, float]]:
    """Losses that fall by three nats around one rate, and rise past another; 1e-4 to 1e3."""
    rates = [10 ** (-4 + 7 * number / 119) for number in range(120)]
    return [(rate, first - 3 / (1 + (fastest / rate) ** 2) + max(0.0, 20 * math.log10(rate / worst))) for rate in rates]


def test_the_rate_where_the_loss_falls_fastest_is_suggested() -> None:
    found = suggest(fell(0.1, 30.0))
    assert found.rate is not None
    assert 0.08 <= found.rate <= 0.5  # the mean trails the losses
    assert "falls fastest at" in found.why


def test_the_suggestion_stays_a_third_below_the_lowest_loss() -> None:
    found = suggest(fell(1.0, 1.5))
    assert found.rate is not None
    assert found.lowest is not None
    assert found.rate <= found.lowest / 2.5


def test_a_loss_that_never_falls_or_too_few_of_them_suggest_nothing() -> None:
    flat = suggest([(10.0**-number, 9.2) for number in range(30)])
    few = suggest([(0.1, 9.2), (0.2, math.nan)])
    assert (flat.rate, few.rate) == (None, None)
    assert "does not fall" in flat.why
    assert "Only 1" in few.why


def test_a_loss_that_is_no_number_or_a_nat_above_the_best_ends_the_test() -> None:
    tried = fell(0.1, 30.0)
    assert not diverges(tried[:60])
    assert diverges(tried)
    assert diverges([*tried[:60], (3.0, math.nan)])


def test_the_suggestion_is_marked_in_the_chart_and_on_the_page() -> None:
    tried = fell(0.1, 30.0)
    found = suggest(tried)
    lines = drawn(tried, found, 9.21, 80, 10)
    assert any(line.strip() == f"▲ {found.rate:g}" for line in lines)
    assert "0.01" in lines[-1]
    assert max(map(len, lines)) <= 80
    page = rate_page(tried, found, "fresh weights", {"seed": 0})
    assert f"<h1>Learning rate: {found.rate:g}</h1>" in page
    assert "▾ suggested" in page
    assert "none found" in rate_page([*tried[:5], (1.0, math.nan)], Suggestion(None, "x"), "fresh", {})
