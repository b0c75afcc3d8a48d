"""`raylm report` and `raylm compare`: a run's folder as a page, looked at in a real browser where there is one."""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from raylm.cli import main as command_line
from raylm.config import RunConfig
from raylm.observe.events import EventLog
from raylm.observe.page import compare_page, report_page
from raylm.observe.plot import Level, Plot, Series, nice_ticks, svg, thinned
from raylm.observe.run_folder import RunRecord, create_run_folder
from raylm.observe.story import differences, read_story
from raylm.observe.summary import Summary, write_summary

NASTY = '</script><script>throw "x"</script> <b>&amp; "quoted" \x1b[31m'


def make_run(folder: Path, *, steps: int = 60, ended: bool = True, rate: float = 1.0, damaged: bool = True) -> Path:
    """A run of some steps, with an incident, a rollback, samples that would break a careless page, and evaluations."""
    config = RunConfig.model_validate({"schedule": {"learning_rate": rate}, "report": {"sample_prompt": NASTY}})
    datasets = {split: f"data/{split}" for split in ("train", "valid", "test")}
    create_run_folder(folder, RunRecord(config, "ptb", "a note & more", datasets))
    log = EventLog(folder, clock=iter(range(10_000)).__next__)
    floors = {"uniform_nats": math.log(10_000), "unigram_nats": 6.532, "bigram_nats": 5.435}
    log.append("start", 0, 0, recipe="quick", dataset="ptb", clip_norm=5.0, vocabulary=10_000, **floors)

    def step(number: int, **changes: Any) -> None:
        loss = 5.0 + 4.2 * math.exp(-number / 15)
        named = {"loss": loss, "gradient_norm": 30 / number, "learning_rate": rate, "tokens_per_second": 9000.0}
        log.append("step", number, number, **{**named, **changes})

    for number in range(1, steps // 2 + 1):
        step(number)
    if damaged:
        log.append("incident", steps // 2, 1, reason="the loss is nan", loss=math.nan)
        log.append("rollback", steps // 2, 1, to_step=steps // 2 - 5, reason="window 30 is left out")
        log.append("verdict", steps // 2, 1, verdict="DATA", text=NASTY, folder="incidents/x")
        for number in range(steps // 2 - 4, steps // 2 + 1):
            step(number, loss=5.5)
    for number in range(steps // 2 + 1, steps + 1):
        step(number)
    log.append("sample", steps, 1, prompt=NASTY, text="text")
    log.append("eval", steps, 1, split="valid", nats=5.6)
    log.append("eval", steps, 1, split="test", nats=5.5)
    if ended:
        log.append("end", steps, 1, status="completed", reason="done")
        write_summary(folder, Summary("completed", "done", steps, 9999, rollbacks=1, tokens_per_second=9000.0))
    log.close()
    return folder


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["raylm", *words])
        with pytest.raises(SystemExit) as end:
            command_line.main()
        output = capsys.readouterr()
        return int(end.value.code or 0), output.out, output.err

    return run


class _Tags(HTMLParser):
    """Checks that tags close in order, and gathers what a page asks for from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.asked: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.asked += [f"{name}={value}" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "wbr", "line", "circle", "path", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        return

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " " if tag in ("td", "th", "tr", "p", "h1", "h2") else ""

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def seen(page: str) -> str:
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.asked == []
    assert not re.search(r"https?://|@import|url\(", page)
    return " ".join(tags.text.split())


# The page of a run


def test_the_page_tells_the_whole_run_and_asks_for_nothing(tmp_path: Path) -> None:
    page = report_page(read_story(make_run(tmp_path / "run")))
    text = seen(page)
    for words in (
        "run completed",
        "quick on ptb, 10,000 words",
        "Completed after 60 updates.",
        "Its best perplexity on the valid text is 270.4, better than unigram 686.8, worse than bigram 229.3.",
        "a note & more",
        "healthy, by the run's own figures",
        "note: 1 fault was found and undone.",
        "the loss is nan at step 30",
        "rolled back from step 30 to 25, window 30 is left out",
        '</script><script>throw "x"</script> <b>&amp; "quoted"',
        "clip 5",
        "schedule.learning_rate",
        "test perplexity",
        "tensorflow",
    ):
        assert words in text
    assert page.count("<script") == page.count("</script>") == 5  # four figures and the reader-out


def test_curves_hold_what_stands_and_what_was_undone(tmp_path: Path) -> None:
    story = read_story(make_run(tmp_path / "run"))
    assert [step for step, _ in story.curves["loss"]] == list(range(1, 61))
    assert dict(story.curves["loss"])[28] == 5.5
    assert [[step for step, _ in piece] for piece in story.undone] == [[25, 26, 27, 28, 29, 30]]
    assert [mark.kind for mark in story.marks] == ["incident", "rollback", "verdict", "end"]


def test_a_run_with_signals_keeps_its_name(tmp_path: Path) -> None:
    log = EventLog(tmp_path, say=print)
    log.append("step", 1, 1, loss=5.0, signals={"row_largest": 1.5})
    log.close()
    story = read_story(tmp_path)
    assert (story.name, story.curves["signals/row_largest"]) == (tmp_path.name, [(1, 1.5)])


def test_a_run_that_goes_on_has_a_page_too(tmp_path: Path) -> None:
    text = seen(report_page(read_story(make_run(tmp_path / "run", ended=False))))
    assert "run not ended" in text
    assert "No end is told of: at step 60 it goes on, or was killed." in text


def test_an_end_whose_summary_is_missing_is_told_by_the_event(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "summary.json").unlink()
    assert "Completed after 60 updates." in seen(report_page(read_story(run)))


def test_a_run_of_one_event_and_without_its_configuration_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"kind":"start","step":0,"position":0,"time":0}\n')
    assert "a run on its data" in seen(report_page(read_story(tmp_path)))


def test_figures_that_are_no_numbers_leave_gaps_and_no_traces(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    lines = (run / "events.jsonl").read_text().splitlines()
    bad = {"kind": "step", "step": 40, "position": 1, "loss": "nan", "gradient_norm": "inf", "tokens_per_second": None}
    lines.insert(-4, json.dumps({**bad, "learning_rate": "rubbish"}))
    (run / "events.jsonl").write_text("\n".join(lines) + "\n")
    drawn = re.findall(r"<svg.*?</svg>", report_page(read_story(run)))
    assert len(drawn) == 8
    assert not [each for each in drawn if "nan" in re.sub("<title>.*?</title>", "", each) or "inf " in each]


def test_the_command_writes_into_the_run_or_where_it_is_told(
    tmp_path: Path, said: Callable[..., tuple[int, str, str]]
) -> None:
    run = make_run(tmp_path / "run")
    assert said("report", str(run))[:2] == (0, f"{run}/report.html\n")
    assert said("report", str(run), "--output", str(tmp_path / "page.html"))[0] == 0
    assert (tmp_path / "page.html").read_text() == (run / "report.html").read_text()
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o644  # others may look at it too


# Runs beside each other


def test_a_comparison_begins_with_what_differs(tmp_path: Path, said: Callable[..., tuple[int, str, str]]) -> None:
    one, other = make_run(tmp_path / "one"), make_run(tmp_path / "other", rate=0.5, damaged=False)
    code, output, _ = said("compare", str(one), str(other), "--output", str(tmp_path / "both.html"))
    assert code == 0
    assert [line.split() for line in output.splitlines()[:2]] == [
        ["one", "other", "configuration"],
        ["1.0", "0.5", "schedule.learning_rate"],
    ]
    assert ["270.4", "270.4", "valid", "perplexity"] in [line.split() for line in output.splitlines()]
    found = json.loads(said("compare", str(one), str(other), "--json")[1])
    assert found["configuration"]["schedule.learning_rate"] == ["1.0", "0.5"]
    assert found["results"]["valid perplexity"] == ["270.4", "270.4"]
    text = seen((tmp_path / "both.html").read_text())
    assert text.index("schedule.learning_rate 1.0 0.5") < text.index("Results") < text.index("Loss, nats a token")


def test_runs_that_differ_in_nothing_are_said_to(tmp_path: Path, said: Callable[..., tuple[int, str, str]]) -> None:
    one, other = make_run(tmp_path / "one"), make_run(tmp_path / "other")
    assert "nothing differs" in said("compare", str(one), str(other))[1]
    assert "Nothing." in seen(compare_page([read_story(one), read_story(other)]))


def test_versions_and_data_count_as_differences(tmp_path: Path) -> None:
    one, other = make_run(tmp_path / "one"), make_run(tmp_path / "other")
    record = json.loads((other / "config.json").read_text())
    record["versions"]["tensorflow"] = "3.0"
    record["datasets"]["train"] = "elsewhere"
    record["config"]["name"] = "other"
    (other / "config.json").write_text(json.dumps(record))
    found = differences([read_story(one), read_story(other)])
    assert list(found) == ["dataset (train)", "version of tensorflow"]


# Mistakes


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("report", "{}/missing"), "there is no such folder"),
        (("report", "{}"), "holds neither config.json nor events.jsonl"),
        (("report", "{}/begun"), "has no events yet"),
        (("report", "{}/bad"), "line 1: not an event"),
        (("report", "{}/config"), "is damaged"),
        (("report", "{}/good", "--output", "{}"), "cannot"),
        (("compare", "{}/good"), "name two to 6 runs"),
        (("compare", *["{}/good"] * 7), "name two to 6 runs"),
    ],
)
def test_a_mistake_is_one_line(
    words: tuple[str, ...], line: str, tmp_path: Path, said: Callable[..., tuple[int, str, str]]
) -> None:
    make_run(tmp_path / "good")
    make_run(tmp_path / "config")
    (tmp_path / "config" / "config.json").write_text("{")
    for name, content in (("begun", b""), ("bad", b"rubbish\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "events.jsonl").write_bytes(content)
    code, _, error = said(*(word.format(tmp_path) for word in words))
    assert (code, error.count("\n")) == (2, 1)
    assert line in error


# The drawing


def test_ticks_are_round_and_within() -> None:
    assert nice_ticks(4.9, 9.3, 5) == [5, 6, 7, 8, 9]
    assert nice_ticks(0, 300, 3) == [0, 100, 200, 300]
    assert nice_ticks(0.011, 0.019, 4) == [0.012, 0.014, 0.016, 0.018]
    assert nice_ticks(3, 3, 4) == [3]


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    points = [(step, float(step)) for step in range(100_000)]
    few = thinned(points, 500)
    assert len(few) <= 502
    assert (few[0], few[-1]) == (points[0], points[-1])
    assert len(svg(Plot([Series(points, "c0")], last_step=100_000), 980, 300)) < 30_000


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [1e-12, 1e12], [-1.0, 5.0], [3.0, 3.0, 3.0]])
def test_any_values_are_drawn_within_the_box(values: list[float], logarithmic: bool) -> None:
    drawn = svg(
        Plot([Series(list(enumerate(values)), "c0", dots=True)], [Level(2.0, "two")], (), logarithmic, 3), 400, 200
    )
    places = [float(number) for number in re.findall(r'(?:cx|cy|y1|y2)="([-\d.e]+)"', drawn)]
    assert all(0 <= place <= 400 for place in places)
    assert drawn or logarithmic


def test_nothing_to_draw_is_nothing() -> None:
    assert svg(Plot([Series([], "c0")]), 400, 200) == ""


# In a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")


def browse(page: Path, profile: Path, *words: str) -> tuple[str, list[str]]:
    """What Chromium prints of a page, and what the page's scripts complained of."""
    assert CHROMIUM
    quiet = ("gpu", "quic", "background-networking", "component-update", "sync")
    options = [f"--disable-{name}" for name in quiet]
    options += ["--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars", f"--user-data-dir={profile}"]
    ended = subprocess.run(
        [CHROMIUM, *options, "--enable-logging=stderr", *words, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return ended.stdout, [line for line in ended.stderr.splitlines() if "CONSOLE" in line]


def colours(png: bytes) -> dict[bytes, int]:
    """How often the first bytes of pixels occur in each of a PNG's rows (8 bits a channel), as a rough look at it."""
    width, height = struct.unpack(">II", png[16:24])
    channels = {2: 3, 6: 4}[png[25]]
    data, at = b"", 8
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        data += png[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += 12 + size
    raw, stride = zlib.decompress(data), width * channels + 1
    assert len(raw) == stride * height
    found: dict[bytes, int] = {}
    for row in range(height):
        line = raw[row * stride + 1 : (row + 1) * stride]
        found[line] = found.get(line, 0) + 1
    return found


@in_a_browser
@pytest.mark.parametrize(("width", "scheme"), [(1040, 1), (390, 0)])
def test_a_browser_draws_the_page_without_complaint(width: int, scheme: int, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(report_page(read_story(make_run(tmp_path / "run"))))
    shot = tmp_path / "shot.png"
    _, complaints = browse(
        page,
        tmp_path / "profile",
        f"--screenshot={shot}",
        f"--window-size={width},1400",
        f"--blink-settings=preferredColorScheme={scheme}",
    )
    assert complaints == []
    png = shot.read_bytes()
    assert struct.unpack(">II", png[16:24]) == (width, 1400)
    assert len(colours(png)) > 300  # most rows have something of their own on them


PROBE = """<script>
  document.querySelector("iframe").onload = ({ target }) => {
    const page = target.contentDocument;
    const svg = [...page.querySelectorAll("svg")].find((each) => each.getBoundingClientRect().width);
    const { left, width, top } = svg.getBoundingClientRect();
    svg.dispatchEvent(new PointerEvent("pointermove", { clientX: left + width / 2, clientY: top + 9 }));
    const root = page.documentElement;
    document.title = [page.querySelector(".readout").textContent, root.scrollWidth, root.clientWidth].join("|");
  };
</script>"""


@in_a_browser
def test_a_pointer_on_a_curve_reads_its_value_out_and_nothing_is_wider_than_a_phone(tmp_path: Path) -> None:
    """In a frame: Chromium's windows are 500 wide at least."""
    page = tmp_path / "page.html"
    content = compare_page([read_story(make_run(tmp_path / name)) for name in ("one", "other")])
    page.write_text(f'<title></title><iframe width="390" height="800" srcdoc="{escape(content)}"></iframe>{PROBE}')
    dom, complaints = browse(page, tmp_path / "profile", "--dump-dom")
    assert complaints == []
    readout, wide, room = re.findall("<title>(.*?)</title>", dom)[0].split("|")
    assert re.match(r"step 2\d+  ·  one 5\.\d+ nats \(perplexity \d+\.\d\)(.*)  ·  other valid", readout)
    assert int(wide) == int(room) <= 390


@in_a_browser
def test_the_look_at_complaints_would_see_one(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<script>nothing.there()</script>")
    assert browse(page, tmp_path / "profile", "--dump-dom")[1]
