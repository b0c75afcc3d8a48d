"""Steps ahead of their outcomes: windows given to the device before it is known how the ones before them ended.

The host reads outcomes a few steps late, so that the device never waits. What is decided depends on outcomes and
positions alone, never on when they were read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tensorflow as tf

from raylm.config import RunConfig
from raylm.data.reader import Reader
from raylm.data.streams import Window
from raylm.guard.drills import PROCESS_KINDS, STATE_SITES, Drill, due, parse_drills
from raylm.guard.judge import Outcome
from raylm.guard.watchdog import Watchdog
from raylm.optim.scaling import overflowed
from raylm.optim.schedules import learning_rate
from raylm.training.datasets import rate_factor
from raylm.training.inject import strike_of, strike_process, strike_state, struck_batch
from raylm.training.record import Recorder
from raylm.training.recovery import Recovery
from raylm.training.several import Read, Steps, Update
from raylm.training.signals import named
from raylm.training.state import Replicas, State
from raylm.training.step import Batch, Control

OUTCOMES_IN_FLIGHT = 2
"""Steps that are given to the device before the first one's outcome is read; the gate makes reading late safe."""


@dataclass(frozen=True)
class _Sent:
    """A step given to the device whose outcome was not read yet."""

    step: int
    window: Window
    learning_rate: float
    drill: Drill | None
    read: Read


class Pipeline:
    """The steps of one attempt at a run. `made`: those given to the device so far."""

    def __init__(
        self,
        config: RunConfig,
        replicas: Replicas,
        run_folder: Path,
        total_steps: int,
        reader: Reader,
        recovery: Recovery,
        record: Recorder,
        watchdog: Watchdog,
        stop_requested: Callable[[], bool],
    ) -> None:
        self.config, self.replicas, self.topology = config, replicas, replicas.topology
        self.run_folder, self.total_steps = run_folder, total_steps
        self.reader, self.recovery, self.record, self.watchdog = reader, recovery, record, watchdog
        self.made = 0
        self._stop_requested = stop_requested
        self._drills = parse_drills(config.drill)
        self._steps = Steps(replicas, config)
        self._sent: deque[_Sent] = deque()

    @property
    def compiled(self) -> bool:
        """Whether the first steps are over, which take long to compile."""
        return self.made > self._steps.most

    def send(self, state: State, due_between: Callable[[], bool]) -> None:
        """Gives the next window to the device, or the next few where nothing is due between them, and moves the state
        past them, as if their updates will be applied."""
        first, told = self._next(state)
        updates, sent = [first], [told]
        while len(updates) < self._steps.most and not due_between():
            update, told = self._next(state)
            updates.append(update)
            sent.append(told)
        reads, state.carry = self._steps(updates, state.carry)
        self._sent += [told(read) for told, read in zip(sent, reads, strict=True)]

    def _next(self, state: State) -> tuple[Update, Callable[[Read], _Sent]]:
        window = self.reader.read()
        self.record.waited = self.reader.waited
        position = window.cursor.position
        drill = due(self._drills, state.step, position, state.drills)
        if drill is not None:
            self._strike(state, drill)
        rate = self.recovery.learning_rate_factor(state, position) * learning_rate(
            self.config.schedule, state.step, window.cursor.epoch, self.total_steps
        )
        rate *= rate_factor(self.config.data, window)
        control = Control(
            position=tf.constant(position, tf.int32),
            learning_rate=tf.constant(rate, tf.float32),
            stop=tf.constant(float(self._stop_requested()), tf.float32),
            strike=strike_of(drill) if self._drills else None,
        )
        inputs, weights = struck_batch(
            drill, window.inputs, window.weights, self.topology.first_lane, self.replicas.model.vocabulary
        )
        batch = Batch(*map(tf.constant, (inputs, window.targets, weights, window.reset_lanes)))
        told = partial(_Sent, state.step, window, rate, drill)
        state.step, state.cursor, self.made = state.step + 1, self.reader.cursor, self.made + 1
        return Update(batch, control), told

    def _strike(self, state: State, drill: Drill) -> None:
        """Injects what is not injected in the step."""
        state.drills += () if drill.sticky else (str(drill),)
        if drill.site in STATE_SITES:
            state.carry = strike_state(self.replicas, state.carry, drill)
        if drill.kind in PROCESS_KINDS and self.topology.rank == self.topology.workers - 1:
            strike_process(drill, self.run_folder)

    def settle(self, state: State, *, all_of_them: bool) -> tuple[State, bool]:
        """Reads outcomes, all of them or until as few are in flight as may be; rolls back at a bad one. The state then,
        and whether a rank asks to stop."""
        left, stop = 0 if all_of_them else max(OUTCOMES_IN_FLIGHT, self._steps.most), False
        while len(self._sent) > left:
            sent = self._sent.popleft()
            loss_sum, tokens, norm, applied, asked, loss_scale, clip, signals = sent.read()
            self.watchdog.beat()
            stop = stop or asked > 0
            look = applied and left == 0 and not self._sent  # a state that is not finite is never kept or saved
            outcome = Outcome(
                step=sent.step,
                position=sent.window.cursor.position,
                epoch=sent.window.cursor.epoch,
                loss=loss_sum / max(tokens, 1.0),
                tokens=int(tokens),
                norm=norm,
                applied=bool(applied),
                learning_rate=sent.learning_rate,
                not_finite=self.recovery.health(state.carry) if look else "",
                overflowed=overflowed(loss_sum, bool(applied), loss_scale),
                clipped=clip < 1,
                signals=named(self.replicas.model, signals),
            )
            self.record.loss_scale = loss_scale
            with self.watchdog.busy("looking into a step") if self.topology.rank == 0 else nullcontext():
                back = self.recovery.after_step(outcome, state, self.total_steps, sent.drill)
            if back is not None:
                self._sent.clear()
                self.reader.seek(back.cursor)
                state = back
        return state, stop
