"""The guard's decisions, as values in and values out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.config import GuardConfig
from raylm.errors import UserError
from raylm.guard.judge import Abort, Decision, Outcome, Proceed, RollBack, judge
from raylm.guard.ledger import Ledger, configured
from raylm.guard.memory import Incident, Journal, Memory, read_journal, write_journal

POLICY = GuardConfig(snapshot_every=10)
UNIFORM = math.log(10_000)


def outcome(position: int, loss: float = 5.0, applied: bool = True, not_finite: str = "", tokens: int = 400) -> Outcome:
    return Outcome(position, position, 0, loss, tokens, 1.0, applied, 1.0, not_finite)


def bad(position: int) -> Outcome:
    return outcome(position, math.nan, applied=False)


class Run:
    """Judges a run whose windows in `faulty` fail each time, those in `once` the first time only."""

    def __init__(self, faulty: set[int], once: set[int], policy: GuardConfig = POLICY) -> None:
        self.faulty, self.once, self.policy = faulty, set(once), policy
        self.ledger, self.memory = Ledger(), Memory()
        self.snapshots, self.seen = [0], 0
        self.decisions: list[Decision] = []

    def go(self, windows: int) -> Decision | None:
        position = 0
        while position < windows:
            position = next((last for first, last in self.ledger.left_out if first <= position < last), position)
            if position % self.policy.snapshot_every == 0 and position > self.snapshots[-1]:
                self.snapshots = [*self.snapshots, position][-self.policy.ring :]
            struck = position in self.faulty or position in self.once
            self.once.discard(position)
            step = bad(position) if struck else outcome(position)
            decision = judge(step, self.ledger, self.memory, self.policy, self.snapshots, UNIFORM)
            self.seen += 1
            match decision:
                case Proceed(memory):
                    self.memory, position = memory, position + 1
                case RollBack():
                    self.decisions.append(decision)
                    self.ledger, self.memory, position = decision.ledger, decision.memory, decision.to
                    while self.snapshots[-1] > position:
                        self.snapshots.pop()
                case Abort():
                    return decision
        return None


def test_a_transient_fault_leaves_nothing_out_and_leaves_no_trace_in_the_ledger() -> None:
    run = Run(faulty=set(), once={25})
    assert run.go(40) is None
    assert (run.ledger, run.memory.rollbacks, run.memory.incident) == (Ledger(), 1, None)
    assert [decision.to for decision in run.decisions if isinstance(decision, RollBack)] == [20]


def test_a_window_that_fails_twice_is_left_out_alone_and_the_incident_ends() -> None:
    run = Run(faulty={25}, once=set())
    assert run.go(60) is None
    assert run.ledger == Ledger(((25, 26),))
    assert (run.memory.rollbacks, run.memory.incident) == (2, None)


def test_faults_that_go_on_nearby_are_met_with_wider_windows_from_further_back_at_a_lower_rate() -> None:
    run = Run(faulty=set(range(45, 52)), once=set())
    assert run.go(100) is None
    assert run.ledger.left_out == ((45, 52),)
    assert [one.factor for one in run.ledger.slow_downs] == [0.5, 0.5]
    assert [decision.to for decision in run.decisions if isinstance(decision, RollBack)] == [40, 40, 40, 30, 40, 10]


def test_a_transient_fault_near_a_bad_window_leaves_nothing_more_out() -> None:
    run = Run(faulty={25}, once={28})
    assert run.go(60) is None
    assert run.ledger == Ledger(((25, 26),))


def test_a_run_in_which_every_step_fails_ends_within_its_budget() -> None:
    run = Run(faulty=set(range(1000)), once=set())
    verdict = run.go(1000)
    assert isinstance(verdict, Abort)
    assert "guard.max_rollbacks_per_incident" in verdict.reason
    assert run.memory.rollbacks == POLICY.max_rollbacks_per_incident
    assert run.seen < 100


def test_incidents_far_apart_spend_the_budget_of_the_run() -> None:
    run = Run(faulty=set(range(5, 1000, 50)), once=set(), policy=POLICY.model_copy(update={"max_rollbacks": 6}))
    verdict = run.go(1000)
    assert isinstance(verdict, Abort)
    assert "6 rollbacks in a run (guard.max_rollbacks)" in verdict.reason


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(0, 80), max_size=4), st.sets(st.integers(0, 80), max_size=4))
def test_exactly_the_windows_that_fail_each_time_are_left_out_where_they_are_far_apart(
    faulty: set[int], once: set[int]
) -> None:
    run = Run({40 * place for place in faulty}, {40 * place + 20 for place in once})
    assert run.go(40 * 82) is None
    assert run.ledger.left_out == tuple(sorted((40 * place, 40 * place + 1) for place in faulty))


def test_a_corrupted_state_is_found_at_its_window_when_computed_again() -> None:
    first = judge(outcome(29, not_finite="slot x"), Ledger(), Memory(), POLICY, [10, 20])
    assert isinstance(first, RollBack)
    assert (first.to, first.left_out) == (20, None)
    again = judge(outcome(24, not_finite="slot x"), first.ledger, first.memory, POLICY, [10, 20])
    assert isinstance(again, RollBack)
    assert again.left_out == (24, 25)
    assert "slot x is not finite after window 24" in again.reason


def test_a_loss_worse_than_guessing_is_a_spike_only_after_the_warm_up() -> None:
    early = replace(outcome(50), loss=UNIFORM + 1.5)
    assert isinstance(judge(early, Ledger(), Memory(), POLICY, [0], UNIFORM), Proceed)
    late = replace(early, step=150, position=150)
    decision = judge(late, Ledger(), Memory(), POLICY, [100], UNIFORM)
    assert isinstance(decision, RollBack)
    assert "worse than guessing" in decision.reason


def test_where_spikes_go_on_every_window_since_the_snapshot_is_left_out() -> None:
    """The update that spoiled the weights came before the first of them."""
    spike = replace(outcome(153), loss=UNIFORM + 2)
    memory = Memory(3, Incident("spike", 152, 153, 3, 1, True, 163))
    decision = judge(spike, Ledger(((151, 152),)), memory, POLICY, [130, 140, 150], UNIFORM)
    assert isinstance(decision, RollBack)
    assert (decision.to, decision.left_out) == (140, (140, 155))
    assert decision.ledger == Ledger(((140, 155),)).slow_down(140, POLICY.backoff)


def test_a_rejected_loss_never_enters_the_window_that_the_next_ones_are_judged_by() -> None:
    memory = Memory(losses=tuple(5.0 + 0.01 * (number % 7) for number in range(64)))
    spike = replace(outcome(150), loss=8.0)
    decision = judge(spike, Ledger(), memory, POLICY, [100], UNIFORM)
    assert isinstance(decision, RollBack)
    assert "median of the last 64" in decision.reason
    assert decision.memory.losses == memory.losses


@pytest.mark.parametrize("tokens", [20, 400, 70_000])
def test_the_scatter_of_few_tokens_is_no_spike(tokens: int) -> None:
    memory = Memory(losses=tuple(5.0 + 0.01 * (number % 7) for number in range(64)))
    sound = replace(outcome(150, tokens=tokens), loss=5.0 + 3 * 3.0 / math.sqrt(tokens))
    assert isinstance(judge(sound, Ledger(), memory, POLICY, [100], UNIFORM), Proceed)


LEAP = replace(outcome(150), norm=300.0)


def test_a_gradient_that_leaps_is_a_fault_where_nothing_clips_it() -> None:
    memory = Memory(norms=tuple(0.2 + 0.01 * (number % 7) for number in range(64)))
    decision = judge(LEAP, Ledger(), memory, POLICY, [140], UNIFORM, clipped=False)
    assert isinstance(decision, RollBack)
    assert decision.memory.incident is not None
    assert decision.memory.incident.kind == "leap"
    assert "norm is 300 on window 150, in epoch 0: the median of the last 64 is 0.23, and nothing" in decision.reason
    assert decision.memory.norms == memory.norms


@pytest.mark.parametrize(
    ("norms", "step", "clipped"),
    [
        ((0.2,) * 64, LEAP, True),
        ((0.2,) * 15, LEAP, False),
        ((0.4,) * 64, LEAP, False),
        ((0.001,) * 64, replace(LEAP, norm=9.0), False),
        ((0.2,) * 64, replace(LEAP, step=99), False),
    ],
    ids=["clipped", "few steps seen", "a smaller leap", "a small gradient", "in the warm-up"],
)
def test_other_large_gradients_are_no_fault(norms: tuple[float, ...], step: Outcome, clipped: bool) -> None:
    decision = judge(step, Ledger(), Memory(norms=norms), POLICY, [90], UNIFORM, clipped=clipped)
    assert isinstance(decision, Proceed)
    assert decision.memory.norms == (*norms, step.norm)[-64:]


def test_a_slowed_learning_rate_comes_back_within_the_recovery() -> None:
    ledger = Ledger().slow_down(100, 0.25)
    assert [ledger.rate_factor(place, 200) for place in (99, 100, 200, 300)] == [1.0, 0.25, 0.5, 1.0]
    assert ledger.slow_down(100, 0.25).rate_factor(100, 200) == 0.0625


def test_ledgers_unite_without_counting_the_same_twice() -> None:
    one = Ledger().leave_out(5, 7).slow_down(4, 0.5).slow_down(4, 0.5)
    other = Ledger().leave_out(7, 9).slow_down(4, 0.5)
    assert one.union(other) == Ledger(((5, 9),)).slow_down(4, 0.5).slow_down(4, 0.5)
    assert one.union(one) == one
    assert one.since(6) == Ledger(((6, 7),))


def test_the_configuration_says_what_a_rollback_would() -> None:
    policy = GuardConfig(leave_out=("5:7", "9:10"), slow_down=("4:0.5",))
    assert configured(policy) == Ledger(((5, 7), (9, 10))).slow_down(4, 0.5)


def test_ledger_memory_and_journal_come_back_as_they_were(tmp_path) -> None:  # type: ignore[no-untyped-def]
    ledger = Ledger().leave_out(5, 7).slow_down(4, 0.5)
    memory = Memory(3, Incident("spike", 5, 6, 2, 1, True, 17), (5.0, 4.5))
    assert read_journal(tmp_path) is None
    journal = Journal(ledger, memory, ("nan-loss@5",))
    write_journal(tmp_path, journal)
    assert read_journal(tmp_path) == journal


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"ledger": {}, "memory": {}}'])
def test_a_damaged_journal_is_named_with_what_to_do(tmp_path, content: bytes) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "guard.json").write_bytes(content)
    with pytest.raises(UserError, match=r"guard\.json is damaged .* remove it"):
        read_journal(tmp_path)


def test_a_ledger_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="ledger in the checkpoint is malformed"):
        Ledger.from_json({"left_out": [[1]], "slow_downs": []})


def test_an_overflow_of_the_loss_scale_is_no_fault_and_no_measure_of_what_is_usual() -> None:
    over = replace(outcome(40, applied=False), norm=math.inf, overflowed=True)
    memory = Memory(losses=(5.0,) * 20, norms=(1.0,) * 20)
    assert judge(over, Ledger(), memory, POLICY, [30], UNIFORM) == Proceed(memory)
    at_the_lowest_scale = replace(over, overflowed=False)
    assert isinstance(judge(at_the_lowest_scale, Ledger(), memory, POLICY, [30], UNIFORM), RollBack)
