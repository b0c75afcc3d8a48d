"""Addresses that no run can start from are refused in one line, before Ray is asked."""

from __future__ import annotations

import pytest

from raylm.cluster.connection import connected
from raylm.errors import UserError


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "http://127.0.0.1:8265"])
def test_an_address_of_rays_client_or_dashboard_is_refused_with_what_to_name_instead(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError) as refusal, connected(None):
        pytest.fail("connected")
    assert str(refusal.value).startswith(f"{address} is not where a run can start from: ")
    for part in ("HOST:PORT", "--cluster.address", "$RAY_ADDRESS", "ray job submit"):
        assert part in str(refusal.value)
