"""The training loop: the only place that sequences batch → step → decide → save → report.

It runs in every worker alike and knows nothing of Ray. All ranks take the same decisions from the same outcomes;
rank 0 alone writes files, evaluates and tells the world.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow as tf

from raylm.checkpoint.mirror import Mirror, StoreMarks
from raylm.config import RunConfig
from raylm.data.reader import Reader
from raylm.data.streams import Window
from raylm.guard.drills import PROCESS_KINDS, STATE_SITES, Drill, due, parse_drills
from raylm.guard.judge import Outcome
from raylm.guard.ledger import Ledger
from raylm.guard.watchdog import FolderMarks, Watchdog
from raylm.model.shapes import weight_shapes
from raylm.observe.summary import Summary
from raylm.optim.scaling import overflowed
from raylm.optim.schedules import learning_rate
from raylm.training import exchange
from raylm.training.accounts import tokens_of
from raylm.training.agenda import Agenda
from raylm.training.agreement import check_same_start, weights_agree
from raylm.training.averaging import averaged, compile_averaging, of_first_rank
from raylm.training.datasets import Datasets, open_source, rate_factor
from raylm.training.distribute import make_strategy
from raylm.training.evaluate import Evaluator
from raylm.training.inject import strike_of, strike_process, strike_state, struck_batch
from raylm.training.investigation import Investigation
from raylm.training.limit import tokens_per_second_limit
from raylm.training.loading import starting_weights
from raylm.training.record import Recorder
from raylm.training.recovery import Diverged, Recovery
from raylm.training.saving import Saver
from raylm.training.several import Read, Steps, Update
from raylm.training.signals import named
from raylm.training.state import State, assign_all, capture, fresh_carry, make_replicas, restore
from raylm.training.step import Batch, Control
from raylm.training.topology import Topology

OUTCOMES_IN_FLIGHT = 2
"""Steps that are given to the device before the first one's outcome is read; the gate makes reading late safe."""


@dataclass(frozen=True)
class Outside:
    """What the loop may ask of, and tell, the world around it.

    publish: takes each event of rank 0, {"kind": "wait", "what": …} before something long, {"kind": "note", "text": …}.
    stop_requested: whether this rank was asked to end early; every rank then stops at the same step.
    report: called at the same steps on every rank with the metrics and the newest checkpoint's folder.
    """

    publish: Callable[[Mapping[str, Any]], None]
    stop_requested: Callable[[], bool]
    report: Callable[[Mapping[str, float], Path | None], None]


def train(
    config: RunConfig,
    datasets: Datasets,
    topology: Topology,
    run_folder: Path,
    outside: Outside,
    mirror: Mirror | None = None,
) -> Summary:
    """Trains to the end of the configured run, from the newest checkpoint in `run_folder` if it holds one.

    mirror: of a run that is kept in an object store, which `run_folder` was pulled from.

    Returns the summary, the same status on every rank: completed, failed (diverged) or interrupted.

    Raises:
        UserError: the checkpoint does not fit the run, or more replicas than devices or lanes were asked for.
    """
    marks = StoreMarks(mirror.uri) if mirror else FolderMarks(run_folder / "alive")
    with Watchdog(marks, topology.rank, config.guard.step_timeout) as watchdog:
        with watchdog.busy():
            run = _Run(config, datasets, topology, run_folder, outside, watchdog, mirror)
        with closing(run.saver):
            try:
                status, reason = run.until_the_end()
            except Diverged as verdict:
                status, reason = "failed", str(verdict)
            return run.finish(status, reason)


@dataclass(frozen=True)
class _Sent:
    """A step given to the device whose outcome was not read yet."""

    step: int
    window: Window
    learning_rate: float
    drill: Drill | None
    read: Read


class _Run:
    """One attempt at a run, from its newest checkpoint to its end or to the loss of a worker."""

    def __init__(
        self,
        config: RunConfig,
        datasets: Datasets,
        topology: Topology,
        run_folder: Path,
        outside: Outside,
        watchdog: Watchdog,
        mirror: Mirror | None,
    ) -> None:
        self.config, self.datasets, self.topology, self.outside = config, datasets, topology, outside
        self.run_folder, self.watchdog = run_folder, watchdog
        self.agenda = Agenda(config)
        self.drills = parse_drills(config.drill)
        self.source = open_source(config, datasets.train, topology)
        self.total_steps = config.steps or sum(map(self.source.windows_per_epoch, range(config.epochs)))
        place = mirror.place if mirror else None
        self.record = Recorder(config, run_folder, topology.rank, outside.publish, place=place)
        self.sent: deque[_Sent] = deque()
        self.made = 0  # steps of this attempt
        self.record.wait("building the model")
        self.replicas = make_replicas(make_strategy(topology), topology, config, len(datasets.train.vocabulary))
        self.steps = Steps(self.replicas, config)
        self.average = compile_averaging(self.replicas)
        self.all_reduce = exchange.make_all_reduce(self.replicas, config)
        self.evaluator = Evaluator(self.replicas.model, config.data)
        all_lanes = open_source(config, datasets.train, topology.undivided)
        investigation = Investigation(config, topology, all_lanes, self.record, run_folder, self.total_steps)
        self.saver = Saver(config, self.replicas, run_folder, self.record, datasets.train.dataset_id, mirror)
        self.recovery = Recovery(config, self.replicas, self.source, investigation, self.record, self.saver, run_folder)
        self.state = self._begin()
        self.reader = Reader(open_source(config, datasets.train, topology), self.state.cursor)

    def _begin(self) -> State:
        """The newest checkpoint's state, or a fresh one, which is saved: there is always something to go back to."""
        newest, saved = self.saver.load_newest(), None
        check_same_start(self.replicas, None if newest is None else newest[0].step)
        if newest is None:
            self.state = State(0, self.source.start(), Ledger(), fresh_carry(self.replicas))
            if self.config.start_from is not None:
                train = self.datasets.train
                shapes = weight_shapes(self.config.model, len(train.vocabulary))
                weights = starting_weights(self.config.start_from, train.dataset_id, shapes, self.topology.rank)
                assign_all("model", self.replicas.model.weights, weights)
        else:
            snapshot, manifest = newest
            self.state = restore(self.replicas, snapshot)
            cursor = self.state.cursor
            self.source.check(cursor)
            windows = self.total_steps - (snapshot.step if self.config.steps else cursor.position)
            self.record.resume(self.saver.newest, manifest.config, snapshot, cursor, tokens_of(self.source, windows))
            saved = snapshot.extra.get("guard")
        self.state = self.recovery.begin(self.state, saved)
        facts: dict[str, Any] = {
            "dataset": self.datasets.name,
            "steps_total": self.total_steps,
            "parameters": self.replicas.model.parameters,
            "workers": self.topology.workers,
            "replicas": self.topology.replicas,
            "kernel": self.replicas.kernel.kernel,
            "kernel_reason": self.replicas.kernel.why,
        }
        if self.topology.rank == 0:
            words = len(self.datasets.train.vocabulary)
            facts["tokens_per_second_limit"] = tokens_per_second_limit(self.config, words, self.topology)
        self.record.begin(self.datasets.train, self.datasets.valid, facts, self.state.step, self.state.cursor)
        if self.record.writes and self.replicas.kernel.line:
            self.record.note(self.replicas.kernel.line)
        if newest is None:
            self._save()
        self.record.wait("compiling the step")
        return self.state

    def until_the_end(self) -> tuple[str, str]:
        """Steps until the run is over; its status and the reason in one line."""
        while True:
            stop = self._settle(0 if self._anything_due() else max(OUTCOMES_IN_FLIGHT, self.steps.most))
            if stop:
                self._settle(0)
                with self._long():
                    self.saver.end_at(self.state.step)
                self._save()
                return "interrupted", f"asked to stop after {self.state.step} updates"
            if self._anything_due():
                self._pause()
                if self.agenda.over(self.state):
                    why = ": the validation loss fell no more" if self.agenda.stopped_early(self.state) else ""
                    return "completed", f"{self.state.step} updates{why}"
            with nullcontext() if self.made > self.steps.most else self.watchdog.busy():
                self._send()

    def _send(self) -> None:
        """Gives the next window to the device, or the next few where nothing is due between them."""
        first, told = self._next()
        updates, sent = [first], [told]
        while len(updates) < self.steps.most and not self._anything_due():
            update, told = self._next()
            updates.append(update)
            sent.append(told)
        reads, self.state.carry = self.steps(updates, self.state.carry)
        self.sent += [told(read) for told, read in zip(sent, reads, strict=True)]
        if self.agenda.averages(self.state):
            self.average()

    def _next(self) -> tuple[Update, Callable[[Read], _Sent]]:
        """Reads the next window and moves the state past it, as if its update will be applied."""
        state = self.state
        window = self.reader.read()
        self.record.waited = self.reader.waited
        position = window.cursor.position
        drill = due(self.drills, state.step, position, state.drills)
        if drill is not None:
            self._strike(drill)
        rate = self.recovery.learning_rate_factor(state, position) * learning_rate(
            self.config.schedule, state.step, window.cursor.epoch, self.total_steps
        )
        rate *= rate_factor(self.config.data, window)
        control = Control(
            position=tf.constant(position, tf.int32),
            learning_rate=tf.constant(rate, tf.float32),
            stop=tf.constant(float(self.outside.stop_requested()), tf.float32),
            strike=strike_of(drill) if self.drills else None,
        )
        inputs, weights = struck_batch(
            drill, window.inputs, window.weights, self.topology.first_lane, self.replicas.model.vocabulary
        )
        batch = Batch(*map(tf.constant, (inputs, window.targets, weights, window.reset_lanes)))
        told = partial(_Sent, state.step, window, rate, drill)
        state.step, state.cursor, self.made = state.step + 1, self.reader.cursor, self.made + 1
        return Update(batch, control), told

    def _strike(self, drill: Drill) -> None:
        """Injects what is not injected in the step."""
        self.state.drills += () if drill.sticky else (str(drill),)
        if drill.site in STATE_SITES:
            self.state.carry = strike_state(self.replicas, self.state.carry, drill)
        if drill.kind in PROCESS_KINDS and self.topology.rank == self.topology.workers - 1:
            strike_process(drill, self.run_folder)

    def _settle(self, left: int) -> bool:
        """Reads outcomes until `left` are in flight; rolls back at a bad one. True where a rank asks to stop."""
        stop = False
        while len(self.sent) > left:
            sent = self.sent.popleft()
            loss_sum, tokens, norm, applied, asked, loss_scale, clip, signals = sent.read()
            self.watchdog.beat()
            stop = stop or asked > 0
            look = applied and left == 0 and not self.sent  # a state that is not finite is never kept or saved
            outcome = Outcome(
                step=sent.step,
                position=sent.window.cursor.position,
                epoch=sent.window.cursor.epoch,
                loss=loss_sum / max(tokens, 1.0),
                tokens=int(tokens),
                norm=norm,
                applied=bool(applied),
                learning_rate=sent.learning_rate,
                not_finite=self.recovery.health(self.state.carry) if look else "",
                overflowed=overflowed(loss_sum, bool(applied), loss_scale),
                clipped=clip < 1,
                signals=named(self.replicas.model, signals),
            )
            self.record.loss_scale = loss_scale
            with self._long():
                back = self.recovery.after_step(outcome, self.state, self.total_steps, sent.drill)
            if back is not None:
                self.sent.clear()
                self.reader.seek(back.cursor)
                self.state = back
        return stop

    def _anything_due(self) -> bool:
        """Whether something stands between this step and the next, so that every outcome must be read first."""
        between_steps = self.agenda.anything(self.state, self.saver.saved_at)
        timing = exchange.due(self.made, self.topology)
        return between_steps or timing or self.recovery.careful or self.recovery.snapshot_due(self.state)

    def _pause(self) -> None:
        """Everything that is due between two steps. What is expensive to repeat comes after the checkpoint."""
        if self.recovery.snapshot_due(self.state):
            self.recovery.snapshot(self.state)
        if self.agenda.save(self.state, self.saver.saved_at):
            self._save()
        if self.agenda.sample(self.state) and self.topology.rank == 0:
            self._sample()
        if self.agenda.evaluation(self.state):
            self._evaluate()
        if exchange.due(self.made, self.topology):
            with self.record.apart(), self.watchdog.busy():
                self.record.all_reduce_seconds = exchange.seconds(self.all_reduce)

    def _long(self) -> AbstractContextManager[None]:
        """Around what rank 0 does while the others wait."""
        return self.watchdog.busy() if self.topology.rank == 0 else nullcontext()

    def _sample(self) -> None:
        report, state = self.config.report, self.state
        train, seed = self.datasets.train, self.config.seed
        with self.record.apart(), self._long():
            text = self.evaluator.sample(
                train.vocabulary, report.sample_prompt, report.sample_words, seed, state.step, train.tokenizer
            )
        self.record.sample(state.step, state.cursor.position, text)

    def _evaluate(self) -> None:
        """Rank 0 evaluates while the others wait; then every rank reports."""
        state = self.state
        averaging = self.agenda.averages(state)
        state.epochs_evaluated = state.cursor.epoch
        if self.topology.workers * self.topology.replicas > 1:
            with self.record.apart():
                self.record.ranks_agree = weights_agree(self.replicas)
        loss = self._score("valid")
        if self.config.heeds_validation:
            state.validation += (of_first_rank(self.replicas, loss),) * (state.cursor.epoch - len(state.validation))
        if self.agenda.over(state):
            self._score("test")
        if self.topology.rank == 0:
            if self.agenda.averages(state) and not averaging:
                self.record.note("the validation loss fell no more: from here on the mean of the weights is evaluated")
            self.saver.publish(behind=True)
        self.outside.report(self.record.metrics(), self.saver.newest)

    def _score(self, split: str) -> float:
        """Nats a token, on rank 0."""
        if self.topology.rank > 0:
            return 0.0
        state = self.state
        self.record.wait(f"evaluating on the {split} text")
        began = self.record.clock()
        with self.record.apart(), self._long(), averaged(self.replicas):
            score = self.evaluator.score(getattr(self.datasets, split))
        self.record.evaluation(state.step, state.cursor.position, split, score, self.record.clock() - began)
        return score.nats

    def _save(self) -> None:
        """Saves the state, which was looked at after its last step. The capture is a collective."""
        with self.record.apart(), self._long():
            extra = {**self.record.extra(), "guard": self.recovery.memory.to_json()}
            self.saver.save(self.state, extra, self.recovery.kept(self.state))

    def finish(self, status: str, reason: str) -> Summary:
        """The summary; rank 0 writes it. A collective: the state's digest is over every lane's carry."""
        self.reader.close()
        snapshot = capture(self.replicas, self.state, self.config.seed, {})
        with self._long():
            self.saver.wait()
        summary = self.record.end(status, reason, snapshot, self.recovery.memory.rollbacks)
        with self._long():
            self.saver.publish()
        return summary
