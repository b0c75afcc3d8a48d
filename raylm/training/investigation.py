"""Writes an incident down while the run goes on, has it diagnosed, and tells the answer.

Rank 0 alone does the work. Whatever fails here is said in one line: explaining a fault never ends a run.
"""

from __future__ import annotations

import time
from pathlib import Path

import tensorflow as tf

from raylm.checkpoint.snapshot import Snapshot
from raylm.config import RunConfig
from raylm.data.cursor import Cursor
from raylm.data.provenance import locate, readings
from raylm.errors import UserError
from raylm.guard.diagnosis import TRANSIENT, Findings
from raylm.guard.drills import Drill, parse_drills, sticky_at
from raylm.guard.judge import Outcome
from raylm.guard.ledger import Ledger
from raylm.guard.memory import Incident as OpenIncident
from raylm.optim.schedules import learning_rate
from raylm.training.datasets import Source, rate_factor
from raylm.training.diagnose import diagnose
from raylm.training.incident import (
    Incident,
    RecordedStep,
    incident_folder,
    prune_incidents,
    read_incident,
    validate,
    write_incident,
    write_verdict,
)
from raylm.training.inject import struck_batch
from raylm.training.record import Recorder
from raylm.training.topology import Topology

_TOLD = (OSError, ValueError, UserError, tf.errors.OpError)


class Investigation:
    """The incidents of one attempt of a run."""

    def __init__(
        self,
        config: RunConfig,
        topology: Topology,
        source: Source,
        record: Recorder,
        run_folder: Path,
        total_steps: int,
    ) -> None:
        """source: of all lanes, with those that pad them on `topology.undivided`."""
        self.config, self.topology, self.source = config, topology, source
        self.record, self.run_folder, self.total_steps = record, run_folder, total_steps

    def open(
        self, outcome: Outcome, incident: OpenIncident, reason: str, snapshot: Snapshot, drill: Drill | None
    ) -> None:
        """Writes the folder of a fault that is about to be computed again from `snapshot`."""
        folder = incident_folder(self.run_folder, outcome.step, outcome.position)
        vocabulary = len(self.source.dataset.vocabulary)
        try:
            steps, last = self._steps(snapshot, outcome, drill, vocabulary)
            recorded = Incident(
                config=self.config,
                vocabulary=vocabulary,
                shares=self.topology.shards,
                kind=incident.kind,
                reason=reason,
                loss=outcome.loss,
                where=self._where(last, steps[-1], vocabulary),
                snapshot=snapshot,
                steps=steps,
            )
            write_incident(folder, recorded, outcome)
            prune_incidents(self.run_folder, self.config.guard.keep_incidents)
        except _TOLD as error:
            self.record.note(f"the incident could not be written to {folder}: {error}")

    def transient(self, incident: OpenIncident) -> None:
        """The place was sound when it was computed again."""
        folder = incident_folder(self.run_folder, incident.step, incident.position)
        try:
            write_verdict(folder, TRANSIENT, Findings(reproduced=False))
        except _TOLD as error:
            self.record.note(f"the verdict could not be written to {folder}: {error}")
        self.record.verdict(incident.step, incident.position, TRANSIENT, folder)

    def failed_again(self, incident: OpenIncident) -> None:
        """Diagnoses a place that failed twice."""
        folder = incident_folder(self.run_folder, incident.step, incident.position)
        self.record.wait(f"diagnosing the incident at step {incident.step}")
        until = time.monotonic() + self.config.guard.probe_seconds
        try:
            verdict, findings, trace = diagnose(read_incident(folder), lambda: time.monotonic() > until)
            write_verdict(folder, verdict, findings, trace)
        except _TOLD as error:
            self.record.note(f"the incident in {folder} could not be diagnosed: {error}")
        else:
            self.record.verdict(incident.step, incident.position, verdict, folder)

    def _where(self, cursor: Cursor, step: RecordedStep, vocabulary: int) -> tuple[str, ...]:
        """What each lane of a window reads, and where: the token whose id is none, else the first."""
        bad = validate(step, vocabulary)[1]
        lanes = {}
        for reading in readings(self.source, cursor):
            token, place = reading.first_token, (reading.shard, reading.chunk, reading.row)
            if bad is not None and bad.lane == reading.lane and bad.token <= reading.targets:
                token += bad.token
                place = locate(self.source.dataset, token)
            shard, chunk, row = place
            lanes[reading.lane] = f"{reading.text!r} (shard {shard}, chunk {chunk}, row {row}, token {token})"
        return tuple(lanes.get(lane, "nothing") for lane in range(self.topology.lanes))

    def _steps(
        self, snapshot: Snapshot, outcome: Outcome, drill: Drill | None, vocabulary: int
    ) -> tuple[tuple[RecordedStep, ...], Cursor]:
        """Every window from the snapshot to the fault's, as the device saw it, and the cursor of the last."""
        drills = parse_drills(self.config.drill)
        steps: list[RecordedStep] = []
        step, cursor = snapshot.step, Cursor.from_json(snapshot.cursor)
        while not steps or steps[-1].position < outcome.position:
            window, after = self.source.read(cursor)
            position, epoch = window.cursor.position, window.cursor.epoch
            struck = drill if position == outcome.position else sticky_at(drills, position)
            inputs, weights = struck_batch(struck, window.inputs, window.weights, 0, vocabulary)
            rate = learning_rate(self.config.schedule, step, epoch, self.total_steps)
            rate *= Ledger.from_json(snapshot.ledger).rate_factor(position, self.config.guard.recovery)
            rate *= rate_factor(self.config.data, window)
            targets, reset = window.targets.copy(), window.reset_lanes.copy()
            steps.append(
                RecordedStep(step, position, epoch, rate, inputs.copy(), targets, weights.copy(), reset, struck)
            )
            step, cursor = step + 1, after
        return tuple(steps), window.cursor
