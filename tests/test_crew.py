"""The workers as those who watch a run see them: what they do, which one is silent."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from raylm.guard.watchdog import FolderMarks, Watchdog
from raylm.observe.crew import Crew, Worker, crew_line
from raylm.observe.live import screen
from raylm.observe.plain import PlainView
from raylm.observe.progress import Progress


def word(node: str = "a", doing: str = "training", time: float = 0.0, **changes: Any) -> str:
    said = {"node": node, "workers": 2, "replicas": 1, "every": 1.0, "doing": doing, "time": time}
    return json.dumps({**said, **changes})


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_a_rank_does_stands_beside_the_log_from_its_first_moment_on(tmp_path: Path) -> None:
    clock, marks = Clock(), FolderMarks(tmp_path)

    def doing() -> str:
        watchdog.look()
        (worker,) = Crew().hear(marks.read("worker"))
        assert (worker.rank, worker.replicas, worker.silent) == (3, 2, None)
        return worker.doing

    watchdog = Watchdog(marks, 3, 1000, clock=clock, workers=4, replicas=2)
    with watchdog:
        assert [worker.rank for worker in Crew().hear(marks.read("worker"))] == [3]
        with watchdog.busy("evaluating"):
            assert doing() == "evaluating"
            with watchdog.busy("saving"):
                assert doing() == "saving"
            assert doing() == "evaluating"
        assert doing() == "training"
        clock.now += 11
        assert doing() == "waiting for another worker"
        watchdog.beat()
        assert doing() == "training"
    assert "busy-3" not in marks.read("worker")


def test_a_worker_whose_word_stays_the_same_is_silent_whatever_its_own_clock_says() -> None:
    clock = Clock()
    crew = Crew(clock)
    crew.hear({"worker-0": word(time=5000.0), "worker-1": word("b", time=99.0)})  # the first one's clock is ahead
    clock.now += 20
    first, second = crew.hear({"worker-0": word(time=5020.0), "worker-1": word("b", time=99.0)})
    assert (first.silent, first.state) == (None, "training")
    assert (second.silent, second.state) == (21.0, "silent for 21 s")
    clock.now += 2
    assert crew.hear({"worker-0": word(time=5022.0), "worker-1": word("b", time=121.0)})[1].silent is None


def test_the_words_of_a_run_that_was_killed_yesterday_are_silent_at_once() -> None:
    (worker,) = Crew(lambda: 90_000.0).hear({"worker-0": word(time=3600.0, workers=1)})
    assert worker.state == "silent for 24 h 00 min"


def test_words_of_workers_that_are_no_more_and_broken_ones_are_passed_over() -> None:
    crew = Crew(Clock())
    crew.hear({"worker-0": word(time=90.0, workers=4), "worker-3": word("d", time=90.0, workers=4)})
    broken = {"worker-1": '{"node": "a"', "worker-x": word(), "worker-2": "[1]", "worker-4": word(every="soon")}
    assert [each.rank for each in crew.hear({"worker-0": word(time=95.0, workers=2), **broken})] == [0]


def test_few_are_named_and_many_are_counted() -> None:
    one = Worker(0, "a", 2, "compiling", None)
    assert crew_line([one]) == "1 worker x 2 replicas: 0 on a compiling"
    many = [Worker(rank, f"n{rank // 8}", 8, "training", None) for rank in range(1, 63)]
    crew = [Worker(0, "n0", 8, "evaluating", None), *many, Worker(63, "n7", 8, "training", 125.0)]
    assert crew_line(crew) == "64 workers x 8 replicas: 62 training, 0 on n0 evaluating, 63 on n7 silent for 2 min 05 s"
    gone = [Worker(rank, "b", 1, "training", 20.0) for rank in range(5)]
    named = ", ".join(f"{rank} on b silent for 20 s" for rank in range(3))
    assert crew_line([*gone, Worker(5, "a", 1, "training", None)]) == (
        f"6 workers x 1 replica: {named}, 2 more silent, 5 on a training"
    )


def test_the_screen_shows_the_workers_while_the_run_goes_and_plain_lines_tell_of_a_silent_one_once() -> None:
    def shown(progress: Progress) -> str:
        console = Console(file=io.StringIO(), width=100)
        console.print(screen(progress, workers=workers))
        return console.file.getvalue()  # type: ignore[attr-defined]

    workers = [Worker(0, "a", 1, "training", None), Worker(1, "b", 1, "training", 16.0)]
    assert "2 workers x 1 replica: 0 on a training, 1 on b silent for 16 s" in shown(Progress(step=3))
    assert "silent" not in shown(Progress(step=3, ended="completed"))
    stream = io.StringIO()
    view = PlainView(stream)
    for crew in (workers[:1], workers, workers, workers[:1], workers):
        view.crew(crew)
    assert stream.getvalue() == 2 * "worker 1 on b: silent for 16 s\n"
