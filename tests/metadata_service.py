"""AWS's instance metadata service, as far as spot machines go.

In a process of its own, `python metadata_service.py SECONDS`: at its own address, with a notice from the first moment.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PATH = "/latest/meta-data/spot/instance-action"


class Service(ThreadingHTTPServer):
    """Instance metadata, version 2: a token first, and no answer without a valid one."""

    def __init__(self, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        super().__init__(address, _Answer)
        self.notice: bytes | None = None
        self.tokens: list[str] = []
        self.broken = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: Service

    def do_PUT(self) -> None:
        asked = int(self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "0"))
        if self.path != "/latest/api/token" or not 1 <= asked <= 21_600:
            return self._send(400)
        self.server.tokens.append(f"token-{len(self.server.tokens)}")
        return self._send(200, self.server.tokens[-1].encode())

    def do_GET(self) -> None:
        if self.server.broken:
            return self._send(500)
        if self.headers.get("X-aws-ec2-metadata-token") != (self.server.tokens or [None])[-1]:
            return self._send(401)
        if self.path != PATH or self.server.notice is None:
            return self._send(404)
        return self._send(200, self.server.notice)

    def _send(self, code: int, body: bytes = b"") -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


def notice_in(seconds: float, action: str = "terminate") -> bytes:
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return json.dumps({"action": action, "time": f"{moment:%Y-%m-%dT%H:%M:%SZ}"}).encode()


if __name__ == "__main__":
    service = Service(("169.254.169.254", 80))
    service.notice = notice_in(float(sys.argv[1]))
    service.serve_forever()
