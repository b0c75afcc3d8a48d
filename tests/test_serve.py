"""`jobs/serve.py`: what requests are answered with."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tiny_runs import WORDS
from trained_runs import load, make_run

from raylm.errors import UserError


@pytest.fixture(scope="module")
def serve() -> ModuleType:
    place = importlib.util.spec_from_file_location("serve", Path(__file__).parent.parent / "jobs" / "serve.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    sys.modules["serve"] = module
    place.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("served") / "made")


@pytest.fixture(scope="module")
def service(run: Path, serve: ModuleType) -> Any:
    return serve.Service(str(run))


def asked(service: Any, path: str, **request: Any) -> Any:
    return service.answer(path, json.dumps(request).encode())


def words(run: Path, count: int) -> list[str]:
    return list(load(run).vocabulary.words[2 : 2 + count])


def test_a_score_is_what_each_next_word_had(run: Path, service: Any) -> None:
    text = words(run, 5)
    found = asked(service, "/score", text=" ".join(text))
    assert found["tokens"] == text
    for place in range(1, 5):
        likeliest = asked(service, "/next", text=" ".join(text[:place]), most=WORDS)["next"]
        logs = {each["word"]: each["log_probability"] for each in likeliest}
        assert found["log_probabilities"][place] == pytest.approx(logs[text[place]], abs=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(-np.mean(found["log_probabilities"])))


def test_a_session_goes_on_where_it_stopped(run: Path, service: Any) -> None:
    one, two, three = words(run, 3)
    whole = asked(service, "/next", text=f"{one} {two} {three}", most=WORDS)
    asked(service, "/next", text=f"{one} {two}", session="me")
    later = asked(service, "/next", text=three, session="me", most=WORDS)
    alone = asked(service, "/next", text=three, most=WORDS)
    assert later == whole != alone
    assert sum(np.exp([each["log_probability"] for each in whole["next"]])) == pytest.approx(1)


def test_only_so_many_sessions_are_kept(
    run: Path, service: Any, serve: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "SESSIONS", 2)
    for name in "abc":
        asked(service, "/next", text=words(run, 1)[0], session=name)
    assert list(service._sessions)[-2:] == ["b", "c"]
    assert "a" not in service._sessions


def test_sampled_text_streams_and_is_the_seed_s(run: Path, service: Any) -> None:
    request = {"prompt": words(run, 1)[0], "words": 7, "seed": 3}
    pieces = list(asked(service, "/generate", **request))
    assert len(pieces) == 7
    assert pieces == list(asked(service, "/generate", **request))
    assert pieces != list(asked(service, "/generate", **{**request, "seed": 4}))


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/scores", b"{}", "there is no /scores"),
        ("/score", b"{", "Invalid JSON"),
        ("/score", b"{}", "text: Field required"),
        ("/score", b'{"text": " "}', "no words"),
        ("/next", b'{"text": "a", "most": 0}', "most: Input should be greater"),
        ("/generate", b'{"wrds": 3}', "wrds: Extra inputs"),
    ],
)
def test_a_bad_request_is_refused_with_the_reason(path: str, body: bytes, said: str, service: Any) -> None:
    with pytest.raises(UserError, match=said):
        service.answer(path, body)


# Over HTTP, as the job serves it


@pytest.fixture
def server(run: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The job, once it says that it serves, and its port on loopback."""
    pytest.importorskip("starlette", reason="needs Ray Serve: pip install 'raylm[serve]'")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    job = Path(__file__).parent.parent / "jobs" / "serve.py"
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, str(job), str(run), "--port", str(port)],
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    try:
        assert process.stdout is not None
        assert "/generate" in process.stdout.readline(), (tmp_path / "said").read_text()[-2000:]
        yield process, port
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()


def posted(port: int, path: str, body: bytes) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, body)
    return connection.getresponse()


@pytest.mark.ray
def test_the_job_answers_streams_keeps_sessions_and_refuses_over_http(
    run: Path, service: Any, server: tuple[subprocess.Popen[str], int]
) -> None:
    process, port = server
    one, two, three = words(run, 3)

    def document(path: str, **request: Any) -> Any:
        return json.load(posted(port, path, json.dumps(request).encode()))

    assert document("/score", text=f"{one} {two}") == asked(service, "/score", text=f"{one} {two}")
    document("/next", text=f"{one} {two}", session="me")
    assert document("/next", text=three, session="me") == asked(service, "/next", text=f"{one} {two} {three}")
    request = {"prompt": one, "words": 40, "seed": 3}
    streamed = posted(port, "/generate", json.dumps(request).encode())
    assert streamed.headers["Transfer-Encoding"] == "chunked"
    assert streamed.read() == b"".join(asked(service, "/generate", **request))
    refused = posted(port, "/score", b'{"txt": "x"}')
    assert (refused.status, "text: Field required" in refused.read().decode()) == (400, True)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    with pytest.raises(ConnectionRefusedError):
        posted(port, "/score", b"{}")
