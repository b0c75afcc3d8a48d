"""The training loop: the only place that sequences batch → step → decide → save → report.

It runs in every worker alike and knows nothing of Ray. All ranks take the same decisions from the same outcomes;
rank 0 alone writes files, evaluates and tells the world.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylm.checkpoint.mirror import Mirror, marks_of
from raylm.config import RunConfig
from raylm.data.reader import Reader
from raylm.guard.ledger import Ledger
from raylm.guard.watchdog import Watchdog
from raylm.model.shapes import weight_shapes
from raylm.observe.summary import Summary
from raylm.training import exchange
from raylm.training.accounts import tokens_of
from raylm.training.agenda import Agenda
from raylm.training.agreement import check_same_start, weights_agree
from raylm.training.averaging import averaged, compile_averaging, of_first_rank
from raylm.training.datasets import Datasets, open_source
from raylm.training.distribute import make_strategy
from raylm.training.evaluate import Evaluator
from raylm.training.investigation import Investigation
from raylm.training.limit import tokens_per_second_limit
from raylm.training.loading import starting_weights
from raylm.training.pipeline import Pipeline
from raylm.training.record import Recorder
from raylm.training.recovery import Diverged, Recovery
from raylm.training.saving import Saver
from raylm.training.state import State, assign_all, capture, fresh_carry, make_replicas, restore
from raylm.training.topology import Topology


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
    marks = marks_of(run_folder, mirror)
    workers, replicas = topology.workers, topology.replicas
    timeout = config.guard.step_timeout
    with Watchdog(marks, topology.rank, timeout, workers=workers, replicas=replicas) as watchdog:
        with watchdog.busy("starting"):
            run = _Run(config, datasets, topology, run_folder, outside, watchdog, mirror)
        with closing(run.saver):
            try:
                status, reason = run.until_the_end()
            except Diverged as verdict:
                status, reason = "failed", str(verdict)
            return run.finish(status, reason)


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
        self.source = open_source(config, datasets.train, topology)
        self.total_steps = config.steps or sum(map(self.source.windows_per_epoch, range(config.epochs)))
        place = mirror.place if mirror else None
        self.record = Recorder(config, run_folder, topology.rank, outside.publish, place=place)
        self.record.wait("building the model")
        self.replicas = make_replicas(make_strategy(topology), topology, config, len(datasets.train.vocabulary))
        self.average = compile_averaging(self.replicas)
        self.all_reduce = exchange.make_all_reduce(self.replicas, config)
        self.evaluator = Evaluator(self.replicas.model, config.data)
        all_lanes = open_source(config, datasets.train, topology.undivided)
        investigation = Investigation(config, topology, all_lanes, self.record, run_folder, self.total_steps)
        self.saver = Saver(config, self.replicas, run_folder, self.record, datasets.train.dataset_id, mirror)
        self.recovery = Recovery(config, self.replicas, self.source, investigation, self.record, self.saver, run_folder)
        self.state = self._begin()
        self.reader = Reader(open_source(config, datasets.train, topology), self.state.cursor)
        self.pipeline = Pipeline(
            config,
            self.replicas,
            run_folder,
            self.total_steps,
            self.reader,
            self.recovery,
            self.record,
            watchdog,
            outside.stop_requested,
        )

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
            self.state, stop = self.pipeline.settle(self.state, all_of_them=self._anything_due())
            if stop:
                self.state, _ = self.pipeline.settle(self.state, all_of_them=True)
                with self._long("saving"):
                    self.saver.end_at(self.state.step)
                self._save()
                return "interrupted", f"asked to stop after {self.state.step} updates"
            if self._anything_due():
                self._pause()
                if self.agenda.over(self.state):
                    why = ": the validation loss fell no more" if self.agenda.stopped_early(self.state) else ""
                    return "completed", f"{self.state.step} updates{why}"
            with nullcontext() if self.pipeline.compiled else self.watchdog.busy("compiling"):
                self.pipeline.send(self.state, self._anything_due)
                if self.agenda.averages(self.state):
                    self.average()

    def _anything_due(self) -> bool:
        """Whether something stands between this step and the next, so that every outcome must be read first."""
        between_steps = self.agenda.anything(self.state, self.saver.saved_at)
        timing = exchange.due(self.pipeline.made, self.topology)
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
        if exchange.due(self.pipeline.made, self.topology):
            with self.record.apart(), self.watchdog.busy("timing the sum over replicas"):
                self.record.all_reduce_seconds = exchange.seconds(self.all_reduce)

    def _long(self, doing: str) -> AbstractContextManager[None]:
        """Around what rank 0 does while the others wait."""
        return self.watchdog.busy(doing) if self.topology.rank == 0 else nullcontext()

    def _sample(self) -> None:
        report, state = self.config.report, self.state
        train, seed = self.datasets.train, self.config.seed
        with self.record.apart(), self._long("sampling"):
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
        with self.record.apart(), self._long("evaluating"), averaged(self.replicas):
            score = self.evaluator.score(getattr(self.datasets, split))
        self.record.evaluation(state.step, state.cursor.position, split, score, self.record.clock() - began)
        return score.nats

    def _save(self) -> None:
        """Saves the state, which was looked at after its last step. The capture is a collective."""
        with self.record.apart(), self._long("saving"):
            extra = {**self.record.extra(), "guard": self.recovery.memory.to_json()}
            self.saver.save(self.state, extra, self.recovery.kept(self.state))

    def finish(self, status: str, reason: str) -> Summary:
        """The summary; rank 0 writes it. A collective: the state's digest is over every lane's carry."""
        self.reader.close()
        snapshot = capture(self.replicas, self.state, self.config.seed, {})
        with self._long("saving"):
            self.saver.wait()
        summary = self.record.end(status, reason, snapshot, self.recovery.memory.rollbacks)
        with self._long("saving"):
            self.saver.publish()
        return summary
