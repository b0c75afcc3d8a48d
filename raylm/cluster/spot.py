"""Watches for the notice that AWS will take this spot machine back, and has Ray drain the node until then.

    python -m raylm.cluster.spot --address=HEAD:6379

Runs on every worker node (cluster.yaml starts it), and ends when it has passed the notice on. The notice comes two
minutes ahead, at the instance metadata service, which answers this machine alone: in version 2 with a session token.
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

METADATA = "http://169.254.169.254"
_TOKEN_SECONDS = 21_600
_ANSWER_SECONDS = 2.0
_open = build_opener(ProxyHandler({})).open  # a proxy would ask for its own machine's metadata


@dataclass(frozen=True)
class Notice:
    """What AWS will do (terminate, stop or hibernate), and when."""

    action: str
    time: datetime

    def seconds_left(self, now: datetime) -> int:
        """Whole seconds until then, never less than none."""
        return max(0, int((self.time - now).total_seconds()))


class Metadata:
    """The metadata service of this machine."""

    def __init__(self, url: str = METADATA) -> None:
        self._url = url
        self._token: str | None = None

    def notice(self) -> Notice | None:
        """The notice, None while there is none.

        Raises:
            OSError, HTTPException, ValueError: the service does not answer, or not with what we can read.
        """
        self._token = self._token or self._new_token()
        try:
            return read_notice(self._ask("meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": self._token}))
        except HTTPError as error:
            self._token = None if error.code == 401 else self._token  # it has expired
            if error.code == 404:
                return None
            raise

    def _new_token(self) -> str:
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
        return self._ask("api/token", lifetime, "PUT").decode("ascii")

    def _ask(self, what: str, headers: dict[str, str], method: str = "GET") -> bytes:
        request = Request(f"{self._url}/latest/{what}", headers=headers, method=method)
        with _open(request, timeout=_ANSWER_SECONDS) as answer:
            return bytes(answer.read())


def read_notice(body: bytes) -> Notice:
    """A notice as AWS writes it, `{"action": "terminate", "time": "2026-01-31T08:22:00Z"}`. Raises: ValueError."""
    content = json.loads(body)
    try:
        moment = datetime.fromisoformat(content["time"])
        return Notice(str(content["action"]), moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (KeyError, TypeError) as error:
        raise ValueError(f"no notice of an interruption: {body[:100]!r}") from error


def find_node(address: str) -> str:
    """The identity of the Ray node that this runs on. Raises: LookupError: the cluster knows none here."""
    from ray._private.services import get_node_ip_address  # here: Ray takes 100 MB, and --node-id does without it
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.gcs_pb2 import GcsNodeInfo

    here = get_node_ip_address(address)
    for identity, node in GcsClient(address=address).get_all_node_info().items():
        if node.node_manager_address == here and node.state == GcsNodeInfo.ALIVE:
            return str(identity.hex())
    raise LookupError(f"the cluster at {address} has no node at {here}")


def drain(address: str, node: str, notice: Notice) -> bool:
    """Has Ray drain a node: nothing new is placed on it, and runs are told. Whether it will.

    Without the node's name the command would become a driver on it, which then ends with the node.
    """
    command = (
        *("ray", "drain-node", "--address", address, "--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION"),
        *("--reason-message", f"AWS will {notice.action} this spot machine at {notice.time.isoformat()}"),
        *("--deadline-remaining-seconds", str(notice.seconds_left(datetime.now(UTC)))),
    )
    return subprocess.run(command, check=False).returncode == 0


def watch(metadata: Metadata, address: str, node: str, every: float) -> None:
    """Returns once Ray drains this node, or when the time of the notice has come without that."""
    said = ""
    while True:
        try:
            notice = metadata.notice()
            problem = ""
        except (OSError, HTTPException, ValueError) as error:
            notice, problem = None, f"{type(error).__name__}: {error}"
        if problem != said:
            _say(f"the metadata service cannot be read ({problem}); trying on" if problem else "it can be read again")
            said = problem
        if notice is not None:
            _say(f"AWS will {notice.action} this machine in {notice.seconds_left(datetime.now(UTC))} s: draining it")
            if drain(address, node, notice) or notice.seconds_left(datetime.now(UTC)) == 0:
                return
        time.sleep(every)


def _say(line: str) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}", flush=True)


def main(arguments: Sequence[str]) -> None:
    """Watches until the notice."""
    parser = argparse.ArgumentParser("python -m raylm.cluster.spot", description=__doc__.splitlines()[0])
    parser.add_argument("--address", required=True, help="of the Ray cluster, as in 10.0.0.1:6379")
    parser.add_argument("--node-id", help="of the node to drain (default: the one that this runs on)")
    parser.add_argument("--metadata", default=METADATA, help="URL of the metadata service (default: %(default)s)")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between questions (default: %(default)s)")
    known = parser.parse_args(arguments)
    node = known.node_id or find_node(known.address)
    _say(f"watching for node {node}")
    watch(Metadata(known.metadata), known.address, node, known.every)


if __name__ == "__main__":
    main(sys.argv[1:])
