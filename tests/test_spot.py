"""The spot watcher against a metadata service on loopback, and a program named `ray` that notes what it is told."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from metadata_service import Service, notice_in

from raylm.cluster.spot import Metadata, Notice, read_notice


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    threading.Thread(target=service.serve_forever, args=(0.05,), daemon=True).start()
    yield service
    service.shutdown()
    service.server_close()


class Watching:
    """The watcher as cluster.yaml starts it, beside a `ray` that exits with 1 as often as `failures` says."""

    def __init__(self, folder: Path, service: Service, failures: int = 0) -> None:
        self.told = folder / "told"
        script = f'echo "$@" >> {self.told}; [ $(wc -l < {self.told}) -gt {failures} ]'
        (folder / "ray").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "ray").chmod(0o755)
        self.process = subprocess.Popen(
            (
                *(sys.executable, "-m", "raylm.cluster.spot", "--address", "10.0.0.1:6379", "--node-id", "abc"),
                *("--metadata", service.url, "--every", "0.1"),
            ),
            env={**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            text=True,
        )

    def end(self) -> tuple[list[str], str]:
        """What `ray` was told once the watcher has ended, and what the watcher said."""
        said, _ = self.process.communicate(timeout=30)
        return self.told.read_text().splitlines(), said


def test_a_notice_becomes_a_drain_with_its_deadline(tmp_path: Path, service: Service) -> None:
    watching = Watching(tmp_path, service)
    while not service.tokens:
        time.sleep(0.05)
    assert not watching.told.exists()
    service.notice = notice_in(120)
    told, said = watching.end()
    assert len(told) == 1
    words = told[0].split()
    assert words[:5] == ["drain-node", "--address", "10.0.0.1:6379", "--node-id", "abc"]
    assert words[5:7] == ["--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    assert words[-2] == "--deadline-remaining-seconds"
    assert 90 <= int(words[-1]) <= 120
    assert "AWS will terminate this machine" in said
    assert len(service.tokens) == 1


def test_a_drain_that_ray_refuses_is_asked_for_again(tmp_path: Path, service: Service) -> None:
    service.notice = notice_in(120, "stop")
    told, said = Watching(tmp_path, service, failures=2).end()
    assert len(told) == 3
    assert "AWS will stop this machine" in said


def test_the_watcher_ends_when_the_time_has_come_undrained(tmp_path: Path, service: Service) -> None:
    service.notice = notice_in(-5)
    told, _ = Watching(tmp_path, service, failures=99).end()
    assert [line.split()[-1] for line in told] == ["0"]


def test_a_service_that_fails_for_a_while_is_asked_on(tmp_path: Path, service: Service) -> None:
    service.broken = True
    watching = Watching(tmp_path, service)
    while not service.tokens:
        time.sleep(0.05)
    time.sleep(0.5)
    service.notice, service.broken = notice_in(60), False
    told, said = watching.end()
    assert len(told) == 1
    assert said.count("cannot be read") == 1
    assert "it can be read again" in said


def test_an_expired_token_is_replaced(service: Service) -> None:
    metadata = Metadata(service.url)
    assert metadata.notice() is None
    service.tokens.append("another")
    service.notice = notice_in(60)
    with pytest.raises(OSError, match="401"):
        metadata.notice()
    assert metadata.notice() is not None


def test_the_seconds_left_are_whole_and_never_negative() -> None:
    at = datetime(2026, 1, 31, 8, 22, tzinfo=UTC)
    notice = read_notice(b'{"action": "hibernate", "time": "2026-01-31T08:22:00Z"}')
    assert notice == Notice("hibernate", at)
    assert notice.seconds_left(at - timedelta(seconds=1.9)) == 1
    assert notice.seconds_left(at + timedelta(days=1)) == 0


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"action": "stop"}', b'{"time": 3, "action": "stop"}'])
def test_what_is_no_notice_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_notice(body)
