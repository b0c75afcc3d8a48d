"""What a person sees: exact plain lines, a live screen that fits any terminal, a final table."""

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raylm.observe import figures
from raylm.observe.live import LiveView
from raylm.observe.plain import PlainView
from raylm.observe.progress import Progress, advance, start_line
from raylm.observe.summary import Summary
from raylm.observe.table import perplexity_table, plain_table, print_table, summary_notes, summary_rows
from raylm.observe.view import choose_view


def _step(step: int, **fields: Any) -> dict[str, Any]:
    figures_of_the_step = {
        "loss": 5.8121,
        "perplexity": 334.3,
        "learning_rate": 1.0,
        "gradient_norm": 2.125,
        "tokens_per_second": 12345.4,
        "epoch": 1,
        "steps_total": 400,
        "tokens": step * 400,
    }
    return {"kind": "step", "step": step, "position": step, "time": float(step), **figures_of_the_step, **fields}


_START = {
    "kind": "start",
    "step": 0,
    "position": 0,
    "time": 0.0,
    "steps_total": 400,
    "recipe": "ptb-small",
    "parameters": 4_650_000,
    "workers": 1,
    "replicas": 2,
    "dataset": "ptb",
    "vocabulary": 10_000,
    "uniform_nats": math.log(10_000),
    "unigram_nats": 6.532,
}
_EVAL = {"kind": "eval", "step": 120, "position": 1, "split": "valid", "nats": 5.502, "perplexity": 245.18, "time": 9.0}
_SAMPLE = {"kind": "sample", "step": 120, "position": 1, "prompt": "the", "text": "company said\nit \x1b[31mwould"}
_INCIDENT = {"kind": "incident", "step": 121, "position": 1, "reason": "loss is nan"}
_ROLLBACK = {
    "kind": "rollback",
    "step": 121,
    "position": 1,
    "to_step": 100,
    "learning_rate_factor": 0.5,
    "reason": "window 121 left out",
}
_END = {"kind": "end", "step": 400, "position": 1, "status": "completed", "reason": "all steps done"}


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _plain() -> tuple[PlainView, io.StringIO, _Clock]:
    stream, clock = io.StringIO(), _Clock()
    return PlainView(stream, every_seconds=5, clock=clock), stream, clock


def test_plain_lines_are_exactly_these() -> None:
    view, stream, clock = _plain()
    view.wait("starting Ray")
    for event in (
        _START,
        _step(1),
        _EVAL,
        _SAMPLE,
        {"kind": "checkpoint", "step": 120, "path": "x"},
        {"kind": "checkpoint", "step": 121, "problem": "not saved: disk full"},
        _INCIDENT,
        _ROLLBACK,
        {
            "kind": "resume",
            "step": 100,
            "position": 101,
            "path": "x",
            "epoch": 1,
            "tokens_left": 12345,
            "changes": {"cluster.workers": [2, 1]},
        },
        {"kind": "resize", "step": 100, "workers": 2, "replicas": 1},
    ):
        view.show(event)
    clock.now = 10.0
    view.show(_step(101, time=101.0))
    view.show(_step(400, time=400.0))
    view.show(_END)
    view.note("bye")
    view.close()
    assert stream.getvalue().splitlines() == [
        "starting Ray ...",
        "start: ptb-small on ptb, 4,650,000 parameters, 10,000 words, 1 worker x 2 replicas",
        "step 1/400, epoch 1, loss 5.812 nats, perplexity 334.3, 12,345 tokens/s, lr 1, gradient norm 2.125",
        "evaluation: valid perplexity 245.2 (5.502 nats) at step 120",
        "sample at step 120: the company said it �[31mwould",
        "checkpoint at step 120",
        "not saved: disk full",
        "incident: loss is nan at step 121",
        "rollback: rolled back from step 121 to 100, learning rate x 0.5, window 121 left out",
        "resumed at step 100, epoch 1, window 101, about 12,345 tokens left, changed: cluster.workers 2 -> 1",
        "now on 2 workers x 1 replica",
        "step 101/400, epoch 1, loss 5.812 nats, perplexity 334.3, 12,345 tokens/s, lr 1, gradient norm 2.125",
        "step 400/400, epoch 1, loss 5.812 nats, perplexity 334.3, 12,345 tokens/s, lr 1, gradient norm 2.125",
        "completed at step 400: all steps done",
        "bye",
    ]


def _steps_said(stream: io.StringIO) -> list[int]:
    return [int(line.split()[1].split("/")[0]) for line in stream.getvalue().splitlines() if line.startswith("step")]


def test_steps_are_said_every_few_seconds_and_the_first_and_the_last_always() -> None:
    view, stream, clock = _plain()
    for step in range(1, 21):
        clock.now = float(step)
        view.show(_step(step))
    view.close()
    view.close()
    assert _steps_said(stream) == [1, 6, 11, 16, 20]


def test_the_remaining_time_comes_from_the_last_steps() -> None:
    view, stream, clock = _plain()
    for step in (1, 11, 21):
        clock.now += 10
        view.show(_step(step, time=step / 2))
    assert stream.getvalue().splitlines()[-1].endswith("3 min 10 s left")


@pytest.mark.parametrize("loss", [float("nan"), "nan", "inf", None, "rubbish"])
def test_a_broken_or_missing_figure_is_said_and_breaks_nothing(loss: object) -> None:
    view, stream, _ = _plain()
    view.show(_step(1, loss=loss, perplexity=loss, learning_rate=None, epoch=None, tokens_per_second=loss))
    expected = {"nan": "nan", "inf": "inf"}.get(str(loss), "-")
    assert f"loss {expected} nats, perplexity {expected}, {expected} tokens/s, lr -" in stream.getvalue()


@pytest.mark.parametrize("kind", ["start", "step", "eval", "sample", "checkpoint", "incident", "rollback", "resume"])
def test_an_event_without_any_optional_field_is_shown(kind: str) -> None:
    view, stream, _ = _plain()
    view.show({"kind": kind, "step": 3, "position": 0, "time": 0.0})
    view.close()
    assert len(stream.getvalue().splitlines()) == 1
    console = _console(80)
    live = LiveView(console)
    live.show({"kind": kind, "step": 3, "position": 0, "time": 0.0})
    live.close()


def test_plain_lines_fit_any_encoding_and_outlive_their_reader() -> None:
    raw = io.BytesIO()
    view = PlainView(io.TextIOWrapper(raw, encoding="ascii"))
    view.show({**_SAMPLE, "text": "naïve “quotes”"})
    assert raw.getvalue() == b"sample at step 120: the na?ve ?quotes?\n"
    closed = io.StringIO()
    closed.close()
    PlainView(closed).note("nobody reads this")


def _console(width: int) -> Console:
    return Console(
        file=io.StringIO(), width=width, height=30, record=True, force_terminal=True, color_system=None, _environ={}
    )


def _run_through(view: LiveView) -> None:
    for event in (
        _START,
        _step(1),
        _step(100),
        _EVAL,
        _SAMPLE,
        {"kind": "checkpoint", "step": 120},
        _INCIDENT,
        _ROLLBACK,
    ):
        view.show(event)


def _last_screen(view: LiveView, width: int) -> list[str]:
    console = _console(width)
    console.print(view.render())
    return console.export_text().rstrip().splitlines()


def test_the_all_reduce_s_share_and_the_loss_scale_are_shown_where_there_are_any() -> None:
    stream, view = io.StringIO(), LiveView(_console(120))
    event = _step(1, all_reduce_share=0.123, loss_scale=2048.0, overflows=3)
    PlainView(stream, every_seconds=5).show(event)
    view.show(event)
    for screen in (stream.getvalue(), " ".join(_last_screen(view, 120))):
        assert all(words in screen for words in ("all-reduce 12%", "loss scale 2048", "overflows 3"))
    view.close()
    told = summary_notes(replace(_SUMMARY, all_reduce_share=0.123), Path("runs/x"))
    assert "12,345 tokens/s, at most 12% of it the sum over the replicas" in told


def test_a_run_on_cudnn_says_so_where_it_starts() -> None:
    assert start_line({**_START, "kernel": "cudnn"}) == f"{start_line(_START)}, cuDNN"
    assert start_line({**_START, "kernel": "fused"}) == start_line(_START)


def test_the_machine_s_limit_and_where_the_time_goes_are_shown() -> None:
    view = LiveView(_console(120))
    view.show({**_START, "tokens_per_second_limit": 20_000.4})
    view.show(_step(1, data_wait=0.1, all_reduce_share=0.3, pauses=0.5))
    screen = " ".join(" ".join(_last_screen(view, 120)).split())
    view.close()
    assert "tokens/s 12,345 of at most 20,000 " in screen
    assert "time compute 30%, data 5%, all-reduce 15%, pauses 50%" in screen


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_the_screen_fits_the_width_and_says_it_all(width: int) -> None:
    view = LiveView(_console(width))
    _run_through(view)
    lines = _last_screen(view, width)
    view.close()
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= 24
    flat = " ".join(" ".join(lines).split())
    for words in ("100/400", "loss 5.812 nats", "perplexity 334.3", "lr 1", "gradient norm", "step 120"):
        assert words in flat
    if width >= 80:
        for words in (
            "ptb-small on ptb, 4,650,000 parameters",
            "tokens/s 12,345",
            "valid perplexity 245.2 (5.502 nats) at step 120",
            "floors: uniform 10,000, unigram 686.8",
            "the company said it",
            "1 incident, 1 rollback loss is nan at step 121 rolled back from step 121 to 100",
        ):
            assert words in flat


def test_the_screen_at_eighty_columns_is_exactly_this() -> None:
    view = LiveView(_console(80))
    _run_through(view)
    view.show(_END)
    lines = _last_screen(view, 80)
    view.close()
    assert [line.rstrip() for line in lines] == [
        "ptb-small on ptb, 4,650,000 parameters, 10,000 words, 1 worker x 2 replicas",
        "━" * 71 + "  400/400",
        "epoch 1   loss 5.812 nats       perplexity 334.3      tokens/s 12,345",
        "lr 1      gradient norm 2.125   checkpoint step 120",
        "floors: uniform 10,000, unigram 686.8",
        "valid perplexity 245.2 (5.502 nats) at step 120",
        "step 120 the company said it �[31mwould",
        "1 incident, 1 rollback",
        "  loss is nan at step 121",
        "  rolled back from step 121 to 100, learning rate x 0.5, window 121 left out",
        "completed at step 400: all steps done",
    ]


_FLOORS = {**_START, "bigram_nats": 5.434, "clip_norm": 2.0}


def _learning(view: LiveView, steps: int = 60) -> None:
    view.show(_FLOORS)
    for step in range(1, steps + 1):
        view.show(_step(step, loss=5.2 + 4 * math.exp(-step / 10), gradient_norm=3.0 if step % 4 else 1.0))


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_loss_is_drawn_against_the_floors(width: int) -> None:
    view = LiveView(_console(width))
    _learning(view)
    lines = _last_screen(view, width)
    view.close()
    assert all(len(line) <= width for line in lines)
    uniform, unigram, bigram = (
        next(row for row, line in enumerate(lines) if line.rstrip().endswith(label))
        for label in ("┄ uniform 10,000", "┄ unigram 686.8", "bigram 229.1")
    )
    assert uniform < unigram < bigram
    assert any("⠀" < mark <= "⣿" for mark in lines[uniform])  # the curve begins at guessing
    assert "clipped 74%" in " ".join(lines)  # of the last 50 steps


def test_a_low_or_narrow_terminal_gets_no_curve_but_the_figures() -> None:
    for width, height in ((30, 30), (80, 8)):
        console = Console(
            file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None, _environ={}
        )
        view = LiveView(console)
        _learning(view)
        lines = _last_screen(view, width)
        view.close()
        assert not any("┄" in line for line in lines)
        assert "loss 5.210 nats" in " ".join(" ".join(lines).split())


def test_what_was_rolled_back_leaves_the_curve() -> None:
    progress = Progress()
    for event in (_START, *(_step(step) for step in range(1, 121)), _ROLLBACK):
        progress = advance(progress, event)
    assert [step for step, _ in progress.losses] == list(range(1, 101))
    progress = advance(progress, {**_START, "step": 50})
    assert progress.losses[-1][0] == 50


def test_a_long_run_keeps_a_thin_curve_from_its_first_step_on() -> None:
    progress = Progress()
    for step in range(1, 5000):
        progress = advance(progress, _step(step))
    assert progress.losses[0][0] == 1
    assert progress.losses[-1][0] == 4999
    assert 500 < len(progress.losses) <= 1024


def test_the_last_samples_stand_one_below_the_other() -> None:
    view = LiveView(_console(80))
    for step in (100, 200, 300, 400):
        view.show({**_SAMPLE, "step": step, "text": f"text {step}"})
    assert [line for line in _last_screen(view, 80) if line.startswith("step ")][-3:] == [
        "step 200 the text 200",
        "step 300 the text 300",
        "step 400 the text 400",
    ]
    view.close()


def test_on_a_screen_of_its_own_the_last_state_and_notes_are_left_on_the_terminal() -> None:
    console = _console(80)
    view = LiveView(console, own_screen=True)
    view.show(_START)
    view.note("not \x1b[2Jthe run's")
    view.close()
    view.close()
    shown = console.export_text()
    assert shown.count("ptb-small on ptb") == 1
    assert "not �[2Jthe run's" in shown


def test_waiting_shows_what_for_and_the_seconds_gone_by() -> None:
    clock = _Clock()
    view = LiveView(_console(80), clock=clock)
    view.wait("importing TensorFlow")
    clock.now = 12.2
    assert "importing TensorFlow ... 12 s" in _last_screen(view, 80)[0]
    view.show(_START)
    view.wait("compiling the step")
    clock.now = 15.2
    lines = _last_screen(view, 80)
    assert "ptb-small on ptb" in lines[0]
    assert "compiling the step ... 3 s" in lines[-1]
    view.show(_step(1))
    assert not any("compiling" in line for line in _last_screen(view, 80))
    view.close()


def test_after_closing_the_last_state_and_the_notes_stay_on_the_terminal() -> None:
    console = _console(80)
    view = LiveView(console)
    view.note("[bold]a warning[/bold] \x1b[2Jfrom Ray")
    _run_through(view)
    view.show(_END)
    view.close()
    view.close()
    shown = console.export_text()
    assert "[bold]a warning[/bold] �[2Jfrom Ray" in shown
    assert "completed at step 400: all steps done" in shown.splitlines()[-1]


def test_markup_in_a_sample_is_text() -> None:
    view = LiveView(_console(80))
    view.show({**_SAMPLE, "text": "[red]said[/red] [/]"})
    assert any("the [red]said[/red] [/]" in line for line in _last_screen(view, 80))
    view.close()


def test_a_rollback_takes_the_screen_back_and_forgets_the_pace() -> None:
    progress = Progress()
    for event in (_START, _step(1), _step(120), _ROLLBACK):
        progress = advance(progress, event)
    assert (progress.step, progress.rollbacks, progress.seconds_left) == (100, 1, None)


def test_the_last_evaluation_of_each_split_is_kept() -> None:
    progress = Progress()
    for step, split in ((1, "valid"), (2, "test"), (3, "valid")):
        progress = advance(progress, {**_EVAL, "step": step, "split": split})
    assert [line.split()[0] + line.split()[-1] for line in progress.evaluations] == ["test2", "valid3"]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_the_live_view_and_all_else_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    view = choose_view(_Terminal(), 400)
    assert isinstance(view, LiveView)
    view.close()
    assert isinstance(choose_view(io.StringIO(), 400), PlainView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose_view(_Terminal(), 400), PlainView)


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = _Terminal()
    view = choose_view(stream, 400)
    view.show(_START)
    view.show(_EVAL)
    view.close()
    assert "\x1b[32m" not in stream.getvalue()
    assert "valid perplexity 245.2" in stream.getvalue()


_SUMMARY = Summary(
    "completed",
    "all steps done",
    13_000,
    5_200_000,
    train_perplexity=98.123,
    valid_perplexity=121.4,
    test_perplexity=None,
    tokens_per_second=12_345.4,
    rollbacks=1,
    unigram_nats=6.532,
    uniform_nats=math.log(10_000),
)


def test_the_plain_table_is_exactly_this() -> None:
    notes = summary_notes(_SUMMARY, Path("runs/x"), "these perplexities are not PTB's")
    assert plain_table(summary_rows(_SUMMARY), notes) == (
        "         perplexity  nats/token\n"
        "train         98.12       4.586\n"
        "valid        121.40       4.799\n"
        "test              -           -\n"
        "unigram       686.8       6.532\n"
        "uniform      10,000       9.210\n"
        "\n"
        "completed after 13,000 steps: all steps done\n"
        "12,345 tokens/s\n"
        "rollbacks: 1, resumes: 0\n"
        "these perplexities are not PTB's\n"
        "run folder: runs/x\n"
    )


@pytest.mark.parametrize("width", [32, 80])
def test_the_table_for_a_terminal_says_the_same(width: int) -> None:
    console = _console(width)
    console.print(perplexity_table(summary_rows(_SUMMARY), summary_notes(_SUMMARY, Path("runs/" + "x" * 60))))
    lines = console.export_text().splitlines()
    assert all(len(line) <= width for line in lines)
    assert [line.split() for line in lines[:3]] == [
        ["perplexity", "nats/token"],
        ["train", "98.12", "4.586"],
        ["valid", "121.40", "4.799"],
    ]
    assert "runs/" + "x" * 60 in "".join(line.rstrip() for line in lines)


def test_the_table_is_printed_as_the_stream_can_show_it() -> None:
    plain, terminal = io.StringIO(), _Terminal()
    for stream in (plain, terminal):
        print_table(stream, summary_rows(_SUMMARY), ["done"])
    assert plain.getvalue() == plain_table(summary_rows(_SUMMARY), ["done"])
    assert "98.12" in terminal.getvalue()


def test_a_diverged_runs_table_says_so() -> None:
    bad = Summary("failed", "diverged", 3, 30, train_perplexity=math.inf, valid_perplexity=math.nan)
    lines = plain_table(summary_rows(bad), []).splitlines()
    assert lines[1].split() == ["train", "inf", "inf"]
    assert lines[2].split() == ["valid", "nan", "-"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (82.314, "82.31"), (687.04, "687.0"), (9897.1, "9,897"), (1.25e9, "1.2e+09"), (math.nan, "nan")],
)
def test_perplexities_are_shown_with_the_digits_that_matter(value: float | None, shown: str) -> None:
    assert figures.perplexity(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (math.inf, "-"), (-3, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3725, "1 h 02 min")],
)
def test_durations_are_shown_in_the_unit_that_fits(seconds: float | None, shown: str) -> None:
    assert figures.duration(seconds) == shown


def test_a_perplexity_beyond_a_float_is_infinite() -> None:
    assert figures.perplexity_of(1e6) == math.inf
    assert figures.nats_of(0.0) is None
