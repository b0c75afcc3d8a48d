"""A small actor between the workers and the driver: events come down from rank 0, the wish to stop goes up."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylm.cluster.nodes import this_node

Message = Mapping[str, Any]

_SECONDS_BETWEEN_POSTS = 0.25
_SECONDS_TO_ANSWER = 30.0


class ConnectionLost(Exception):  # noqa: N818 - an end of the driver's view of the run
    """The cluster's head does not answer any more."""


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class _Board:
    """Holds what the driver has not taken yet; the oldest goes first where nobody takes it."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque(maxlen=100_000)
        self._stop = False

    def post(self, messages: list[Message]) -> bool:
        """Adds messages; whether the run was asked to stop."""
        self._messages.extend(messages)
        return self._stop

    def take(self, stop: bool) -> list[Message]:
        """All messages since the last call. stop: whether the workers are to save a checkpoint and end."""
        self._stop = stop
        messages = list(self._messages)
        self._messages.clear()
        return messages


class Board:
    """The driver's end of the board. The actor lies on the driver's node: it does not die with a worker's."""

    def __init__(self, run: str) -> None:
        here = NodeAffinitySchedulingStrategy(this_node(), soft=False)
        name = f"board of {run}"
        self.actor = _Board.options(scheduling_strategy=here, name=name).remote()  # type: ignore[attr-defined]

    def take(self, stop: bool) -> list[Message]:
        """All messages since the last call. stop: whether the workers are to save a checkpoint and end.

        Raises:
            ConnectionLost: the head died, or the way to it is cut.
        """
        try:
            messages: list[Message] = ray.get(self.actor.take.remote(stop), timeout=_SECONDS_TO_ANSWER)
        except (RayError, TimeoutError, ConnectionError) as error:
            raise ConnectionLost(str(error)) from error
        return messages


class Poster:
    """A worker's end of the board: a thread posts, so that training never waits for the network.

    A board that is gone ends the posts, not the training.
    """

    def __init__(self, board: Any) -> None:
        self._board = board
        self._messages: deque[Message] = deque()
        self._closing = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="poster", daemon=True)
        self._thread.start()

    def publish(self, message: Message) -> None:
        self._messages.append(message)

    def stop_requested(self) -> bool:
        """Whether the driver asked the run to end, as of the last post."""
        return self._stop

    def close(self) -> None:
        """Posts what is left."""
        self._closing.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(_SECONDS_BETWEEN_POSTS)
            batch = [self._messages.popleft() for _ in range(len(self._messages))]
            try:
                self._stop = ray.get(self._board.post.remote(batch), timeout=30)
            except Exception:  # any way in which Ray can fail to reach the driver: training goes on without it
                return
