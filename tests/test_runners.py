"""Runners: every item is done, here or in several processes, and a process that dies is reported."""

from __future__ import annotations

import os
import signal

import pytest

from raylm.data.runners import WorkersLost, in_processes, run_here
from raylm.errors import UserError


def square(number: int) -> int:
    return number * number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuse(number: int) -> int:
    raise UserError(f"item {number} cannot be done")


def test_every_item_is_done_by_one_process_or_several() -> None:
    expected = [number * number for number in range(10)]
    assert list(run_here(square, range(10))) == expected
    assert sorted(in_processes(2)(square, range(10))) == expected
    assert list(in_processes(2)(square, [3])) == [9]


def test_a_process_that_dies_is_one_clear_line() -> None:
    with pytest.raises(WorkersLost, match="a worker process died"):
        list(in_processes(2)(die, range(3)))


def test_an_error_in_a_process_arrives_as_it_is() -> None:
    with pytest.raises(UserError, match=r"item . cannot be done"):
        list(in_processes(2)(refuse, range(3)))
