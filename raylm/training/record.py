"""What a run tells of itself: events, TensorBoard, checkpoints' figures, the summary.

Every rank keeps the same accounts, since decisions hang on some of them; rank 0 alone writes and publishes.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raylm.checkpoint.snapshot import Json, Snapshot, state_sha256
from raylm.config import RunConfig
from raylm.data.cursor import Cursor
from raylm.data.dataset import Dataset
from raylm.data.floors import bigram_nats, unigram_entropy
from raylm.guard.diagnosis import Verdict
from raylm.guard.judge import Outcome, RollBack
from raylm.observe.events import EventLog, read_events, validation_losses
from raylm.observe.migration import differences
from raylm.observe.run_folder import to_be_kept
from raylm.observe.sinks import Sink, open_sinks
from raylm.observe.summary import Summary, steady_rate, write_summary
from raylm.observe.tensorboard import TensorBoardLog
from raylm.training.accounts import EpochLoss, Interval
from raylm.training.evaluate import Score, perplexity


class Recorder:
    """Keeps the accounts of one attempt of a run."""

    def __init__(
        self,
        config: RunConfig,
        run_folder: Path,
        rank: int,
        publish: Callable[[Mapping[str, Any]], None],
        clock: Callable[[], float] = time.perf_counter,
        place: str | None = None,
    ) -> None:
        """place: where others find the run, if not in `run_folder`."""
        self.place = place or str(run_folder)
        self.config, self.run_folder, self.writes = config, run_folder, rank == 0
        self.publish, self.clock = publish, clock
        self.tokens = 0
        self.resumes = 0
        self.workers_before: int | None = None
        self.dataset: str | None = None
        self.scores: dict[str, Score] = {}
        self.validation: dict[int, float] = {}
        self.ranks_agree: bool | None = None
        self.epoch_loss = EpochLoss(0, 0.0, 0)
        self.rates: list[float | None] = []
        self.floors: dict[str, float] = {}
        self.began, self.waited = clock(), 0.0
        self.interval = Interval(clock, self.began, self.waited)
        self.signals: Mapping[str, float] = {}
        self.compiled = False
        self.loss_scale = 1.0
        self.overflows = 0
        self.all_reduce_seconds: float | None = None
        self.all_reduce_shares: list[float | None] = []
        self._lock = threading.Lock()
        if self.writes:
            self.log = EventLog(run_folder, say=self.note)
            board = TensorBoardLog(run_folder, say=self.note)
            self.sinks: Sequence[Sink] = (board, *open_sinks(config, run_folder, self.note))

    def begin(self, train: Dataset, valid: Dataset, facts: Mapping[str, Any], step: int, cursor: Cursor) -> None:
        """The run starts, or goes on: from here on time counts."""
        if not self.writes:
            return
        self.dataset = facts["dataset"]
        self.floors = {
            "uniform_nats": math.log(len(train.vocabulary)),
            "unigram_nats": unigram_entropy(train),
            "bigram_nats": bigram_nats(train, valid),
        }
        if self.workers_before not in (None, facts["workers"]):
            size = {"workers_before": self.workers_before, "workers": facts["workers"], "replicas": facts["replicas"]}
            self.emit("resize", step, cursor.position, **size)
        self.emit(
            "start",
            step,
            cursor.position,
            recipe=self.config.recipe,
            vocabulary=len(train.vocabulary),
            clip_norm=self.config.optimizer.clip_norm,
            **self.floors,
            **facts,
        )

    def resume(self, path: Path | None, made_with: Json, snapshot: Snapshot, cursor: Cursor, tokens_left: int) -> None:
        """The run goes on from a checkpoint, made with a configuration; the accounts in it are taken over."""
        self._take_over(snapshot.extra)
        if self.writes:
            history = read_events(self.run_folder)
            self.resumes = 1 + sum(event["kind"] == "resume" for event in history)
            self.workers_before = next((e.get("workers") for e in reversed(history) if e["kind"] == "start"), None)
            self.validation = validation_losses(history, snapshot.step)
            self.emit(
                "resume",
                snapshot.step,
                cursor.position,
                path=str(path),
                epoch=cursor.epoch,
                tokens_left=tokens_left,
                changes=differences(made_with, to_be_kept(self.config)),
                rollbacks=next((e.get("rollbacks") for e in reversed(history) if e["kind"] == "rollback"), 0),
            )

    def step(self, outcome: Outcome, total_steps: int) -> None:
        """One more update was applied, or left out since float16's loss scale was too high: trained on nothing then."""
        self.interval.add(outcome)
        self.signals = outcome.signals or self.signals
        if outcome.epoch != self.epoch_loss.epoch:
            self.epoch_loss = EpochLoss(outcome.epoch, 0.0, 0)
        if outcome.overflowed:
            self.overflows += 1
        else:
            self.tokens += outcome.tokens
            self.epoch_loss = self.epoch_loss.plus(outcome.loss * outcome.tokens, outcome.tokens)
        step = outcome.step + 1
        if step % self.config.report.log_every and self.compiled:
            return
        interval, seconds = self.interval, self.interval.seconds
        rate = interval.tokens / seconds if self.compiled else None
        wait = (self.waited - interval.waited) / seconds if self.compiled else None
        pauses = interval.apart / (seconds + interval.apart) if self.compiled else None
        self.compiled = True  # the first step's time is the compiler's
        self.rates.append(rate)
        more: dict[str, Any] = {}
        if self.all_reduce_seconds is not None and rate is not None:
            more["all_reduce_share"] = min(1.0, self.all_reduce_seconds * interval.steps / seconds)
            self.all_reduce_shares.append(more["all_reduce_share"])
        if self.config.model.precision == "float16":
            more |= {"loss_scale": self.loss_scale, "overflows": self.overflows}
        self.emit(
            "step",
            step,
            outcome.position,
            loss=outcome.loss,
            perplexity=perplexity(outcome.loss),
            learning_rate=outcome.learning_rate,
            gradient_norm=None if outcome.overflowed else outcome.norm,
            tokens_per_second=rate,
            data_wait=wait,
            pauses=pauses,
            epoch=outcome.epoch,
            steps_total=total_steps,
            tokens=self.tokens,
            clipped=None if self.config.optimizer.clip_norm is None else interval.share_clipped,
            signals=self.signals,
            **more,
        )
        self._new_interval()

    def _new_interval(self) -> None:
        self.interval = Interval(self.clock, self.clock(), self.waited)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Time spent inside is not counted as training."""
        began = self.clock()
        yield
        self.interval.pause(self.clock() - began)

    def incident(self, outcome: Outcome, reason: str) -> None:
        self.emit(
            "incident",
            outcome.step,
            outcome.position,
            reason=reason,
            loss=outcome.loss,
            gradient_norm=outcome.norm,
            epoch=outcome.epoch,
        )

    def verdict(self, step: int, position: int, verdict: Verdict, folder: Path) -> None:
        """What an incident was found to be."""
        found = f"{self.place}/{folder.relative_to(self.run_folder).as_posix()}"
        self.emit("verdict", step, position, verdict=verdict.name, text=verdict.line, folder=found)

    def rollback(
        self, outcome: Outcome, to_step: int, accounts: Mapping[str, Any], decision: RollBack, factor: float
    ) -> None:
        """The state is a snapshot's again, and so are the accounts."""
        self._take_over(accounts)
        self._new_interval()
        skip = decision.left_out
        self.emit(
            "rollback",
            outcome.step,
            outcome.position,
            to_step=to_step,
            skip=skip,
            reason="computed again, nothing is left out" if skip is None else _left_out(*skip),
            learning_rate_factor=factor,
            rollbacks=decision.memory.rollbacks,
        )

    def evaluation(self, step: int, position: int, split: str, score: Score, seconds: float) -> None:
        self.scores[split] = score
        if split == "valid":
            self.validation[step] = score.nats
        self.emit(
            "eval",
            step,
            position,
            split=split,
            nats=score.nats,
            perplexity=score.perplexity,
            tokens=score.tokens,
            seconds=seconds,
            lanes_apart=score.lanes_apart,
            **({} if self.ranks_agree is None else {"ranks_agree": self.ranks_agree}),
        )

    def sample(self, step: int, position: int, text: str) -> None:
        self.emit("sample", step, position, prompt=self.config.report.sample_prompt, text=text)

    def extra(self) -> dict[str, Any]:
        """Accounts that go into a checkpoint beside the state."""
        scores = {f"{split}_nats": score.nats for split, score in self.scores.items()}
        overflows = {"overflows": self.overflows} if self.overflows else {}
        return {"tokens": self.tokens, "epoch_loss": list(self.epoch_loss), **overflows, **scores}

    def metrics(self) -> dict[str, float]:
        """Figures for Ray's own records."""
        figures = {"train_perplexity": self.train_perplexity, "tokens": float(self.tokens)}
        scores = {f"{split}_perplexity": score.perplexity for split, score in self.scores.items()}
        return {name: value for name, value in (figures | scores).items() if value is not None}

    @property
    def train_perplexity(self) -> float | None:
        """Of the epoch that the last update was in, dropout and all; None before the first update."""
        _, loss_sum, tokens = self.epoch_loss
        return perplexity(loss_sum / tokens) if tokens else None

    def _take_over(self, accounts: Mapping[str, Any]) -> None:
        self.tokens = int(accounts.get("tokens", 0))
        self.epoch_loss = EpochLoss(*accounts.get("epoch_loss", (0, 0.0, 0)))
        self.overflows = int(accounts.get("overflows", 0))

    def end(self, status: str, reason: str, snapshot: Snapshot, rollbacks: int) -> Summary:
        """The summary of the run; rank 0 writes it, and the last event."""
        splits = {split: score.perplexity for split, score in self.scores.items()}
        summary = Summary(
            status=status,
            reason=reason,
            steps=snapshot.step,
            tokens=self.tokens,
            train_perplexity=self.train_perplexity,
            valid_perplexity=splits.get("valid"),
            test_perplexity=splits.get("test"),
            tokens_per_second=steady_rate(self.rates),
            all_reduce_share=steady_rate(self.all_reduce_shares),
            rollbacks=rollbacks,
            resumes=self.resumes,
            state_sha256=state_sha256(snapshot),
            seconds=self.clock() - self.began,
            recipe=self.config.recipe,
            dataset=self.dataset,
            uniform_nats=self.floors.get("uniform_nats"),
            unigram_nats=self.floors.get("unigram_nats"),
            bigram_nats=self.floors.get("bigram_nats"),
        )
        if self.writes:
            self.emit("end", snapshot.step, snapshot.cursor["position"], status=status, reason=reason)
            write_summary(self.run_folder, summary)
            for sink in self.sinks:
                sink.close()
            self.log.close()
        return summary

    def note(self, line: str) -> None:
        """One line for the person who watches; no event."""
        self.publish({"kind": "note", "text": line})

    def wait(self, what: str) -> None:
        """Says what the run waits for; no event."""
        if self.writes:
            self.publish({"kind": "wait", "what": what})

    def emit(self, kind: str, step: int, position: int, **fields: Any) -> None:
        """One event to the log, to TensorBoard and to whoever watches."""
        if self.writes:
            with self._lock:  # a checkpoint's event comes from the thread that wrote it
                event = self.log.append(kind, step, position, **fields)
                for sink in self.sinks:
                    sink.record(event)
                self.publish(event)


def _left_out(first: int, last: int) -> str:
    return f"window {first} is left out" if last == first + 1 else f"windows {first} to {last - 1} are left out"
