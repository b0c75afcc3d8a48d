"""The guard at work: snapshots in host memory, the judge's decisions, rollbacks, the journal.

Every rank holds its own snapshots and takes the same decisions; rank 0 alone writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raylm.config import RunConfig
from raylm.errors import UserError
from raylm.guard.drills import Drill
from raylm.guard.judge import Abort, Outcome, Proceed, RollBack, judge
from raylm.guard.ledger import Ledger, configured
from raylm.guard.memory import Incident, Journal, Memory, read_journal, write_journal
from raylm.guard.ring import Ring
from raylm.training.datasets import Source
from raylm.training.investigation import Investigation
from raylm.training.record import Recorder
from raylm.training.saving import Saver
from raylm.training.state import HostState, Replicas, State, capture, keep, make_health_check, put_back

_LOOK_BACK = 20
"""Windows: the update that spoiled the weights comes before the spike, with momentum by some ten."""


class Diverged(Exception):  # noqa: N818 - an end of the run, not a fault of the program
    """The guard's budget is spent; the message is the verdict."""


class Recovery:
    """What one attempt of a run needs to undo a fault in process."""

    def __init__(
        self,
        config: RunConfig,
        replicas: Replicas,
        source: Source,
        investigation: Investigation,
        record: Recorder,
        saver: Saver,
        run_folder: Path,
    ) -> None:
        self.config, self.policy, self.replicas, self.source = config, config.guard, replicas, source
        self.investigation = investigation
        self.record, self.saver, self.run_folder = record, saver, run_folder
        self.uniform_nats = math.log(replicas.model.vocabulary)
        self.memory = Memory()
        self.ring: Ring[HostState] = Ring(config.guard.ring)
        self.health = make_health_check(replicas)

    def begin(self, state: State, saved: Mapping[str, Any] | None) -> State:
        """The state to go on from, with the configuration's and the journal's decisions in its ledger.

        saved: the guard's memory in the checkpoint that the state is from; None for a fresh run.

        Raises:
            UserError: the memory or the journal is damaged.
        """
        if saved is not None:
            self.memory = Memory.from_json(saved)
        journal = read_journal(self.run_folder)
        ledgers = [configured(self.policy)]
        if journal is not None:
            ledgers.append(journal.ledger)
            if journal.memory.rollbacks > self.memory.rollbacks:
                self.memory = replace(journal.memory, losses=self.memory.losses, norms=self.memory.norms)
                state.drills = tuple(dict.fromkeys((*state.drills, *journal.drills)))
        for ledger in ledgers:
            state.ledger = state.ledger.union(ledger.since(state.cursor.position))
        incident = self.memory.incident
        if incident is not None and state.cursor.position > incident.over_at:
            self.memory = replace(self.memory, incident=None)
        state.cursor = self.source.settle(state.ledger.apply(state.cursor))
        self.snapshot(state)
        return state

    @property
    def careful(self) -> bool:
        """Whether a place is being computed again: then the state is looked at after every step."""
        return self.memory.incident is not None and self.memory.incident.replaying

    def snapshot_due(self, state: State) -> bool:
        # By step: where windows were left out right after the newest snapshot, its state is not kept once more.
        return state.step % self.policy.snapshot_every == 0 and state.step > self.ring.newest.state.step

    def snapshot(self, state: State) -> None:
        """Keeps a state that was looked at (`health`) and is sound."""
        self.ring.add(keep(self.replicas, state, (self.record.extra(), self.memory)))

    def kept(self, state: State) -> HostState | None:
        """The snapshot of this very state, where there is one."""
        return self.ring.at(state.cursor.position) if state.cursor.position == self.ring.positions[-1] else None

    def learning_rate_factor(self, state: State, position: int) -> float:
        """What the slow-downs make of the learning rate at a window."""
        return state.ledger.rate_factor(position, self.policy.recovery)

    def after_step(self, outcome: Outcome, state: State, total_steps: int, drill: Drill | None) -> State | None:
        """Judges a step, which `drill` struck: None to go on, or the state to go on from after a rollback.

        Raises:
            Diverged: the budget is spent.
        """
        clipped = self.config.optimizer.clip_norm is not None
        positions = self.ring.positions
        decision = judge(outcome, state.ledger, self.memory, self.policy, positions, self.uniform_nats, clipped)
        match decision:
            case Proceed(memory, was_transient):
                self.memory = memory
                if was_transient is not None and self.record.writes:
                    self.investigation.transient(was_transient)
                self.record.step(outcome, total_steps)
                return None
            case RollBack():
                return self._roll_back(outcome, state, decision, drill)
            case Abort(reason):
                self.record.incident(outcome, reason)
                raise Diverged(reason)

    def _roll_back(self, outcome: Outcome, state: State, decision: RollBack, drill: Drill | None) -> State:
        """Back to a snapshot, in this process. The journal comes before the work: a kill then gives no budget back."""
        self.record.incident(outcome, decision.reason)
        before = self.memory.incident
        slowed = decision.ledger.slow_downs != state.ledger.slow_downs
        unread = decision.left_out is not None and decision.left_out[0] < outcome.position
        # Then what was saved since the snapshot was computed at another learning rate, or with what is left out now.
        self.saver.back_to(self.ring.at(decision.to).state.step, set_aside=slowed or unread)
        if self.record.writes:
            self._write_journal(Journal(decision.ledger, decision.memory, state.drills))
        if decision.left_out is not None and before is not None and self.record.writes:
            self.investigation.failed_again(before)
        kept = self.ring.back_to(decision.to)
        accounts, then = kept.accounts
        self.memory = replace(decision.memory, losses=then.losses, norms=then.norms)
        if decision.left_out is None and self.memory.incident is not None:
            self._open(outcome, self.memory.incident, decision.reason, state.ledger, drill)
        back = put_back(self.replicas, kept)
        back.ledger, back.drills = decision.ledger, state.drills
        back.cursor = self.source.settle(decision.ledger.apply(back.cursor))
        back.epochs_evaluated = min(state.epochs_evaluated, back.cursor.epoch)
        back.validation = state.validation[: back.epochs_evaluated]
        factor = self.learning_rate_factor(back, back.cursor.position)
        self.record.rollback(outcome, back.step, accounts, decision, factor)
        return back

    def _open(self, outcome: Outcome, incident: Incident, reason: str, ledger: Ledger, drill: Drill | None) -> None:
        """Has a fault written down, with the state that led to it; leaves that state in place. A collective."""
        look_back = _LOOK_BACK if incident.kind in ("spike", "leap") else 0
        positions = self.ring.positions
        early_enough = [position for position in positions if position <= outcome.position - look_back]
        then = put_back(self.replicas, self.ring.at(max(early_enough, default=positions[0])))
        cursor = self.source.settle(ledger.apply(then.cursor))
        snapshot = capture(self.replicas, replace(then, ledger=ledger, cursor=cursor), self.config.seed, {})
        if self.record.writes:
            self.investigation.open(outcome, incident, reason, snapshot, drill)

    def _write_journal(self, journal: Journal) -> None:
        try:
            write_journal(self.run_folder, journal)
            self.saver.publish()
        except UserError as problem:  # a full disk costs the record, not the run
            self.record.note(f"the rollback is not kept for a restart: {problem}")
