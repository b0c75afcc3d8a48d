"""A run, or several beside each other, as one HTML page that needs nothing but itself."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from raylm import __version__
from raylm.observe import figures, plot
from raylm.observe.findings import evidence_of
from raylm.observe.page_style import SCRIPT, STYLE
from raylm.observe.progress import floor_words, start_line
from raylm.observe.rate_range import Suggestion, Tried, smoothed
from raylm.observe.story import Mark, Story, differences, flat
from raylm.observe.symptoms import diagnose

MOST_RUNS = 6
"""As many as there are colours."""

_WIDE, _NARROW = (980, 300), (380, 260)
_FLAGS = ("incident", "rollback", "resume", "resize")


def report_page(story: Story) -> str:
    """One run: how it ended, its curves with what happened marked on them, its samples, its configuration."""
    title = start_line(story.start)
    body = [
        f"<h1>{escape(story.name)} {_badge(story)}</h1>",
        f'<p class="dim">{escape(title)}</p>',
        *(f"<p>{escape(line)}</p>" for line in headline(story)),
        _tiles(story),
        *_charts([story]),
        *_happened(story.marks),
        *_diagnosis(story),
        *_results([story]),
        *_samples([story]),
        _details("Configuration", flat(story.config)),
        _details("Environment", {**{f"dataset ({k})": v for k, v in story.datasets.items()}, **story.versions}),
    ]
    return _page(story.name, body)


def compare_page(stories: Sequence[Story]) -> str:
    """Runs beside each other: what differs in their configurations first, then their ends and their curves."""
    names = " and ".join(story.name for story in stories)
    rows = [[key, *values] for key, values in differences(stories).items()]
    head = ["", *(story.name for story in stories)]
    body = [
        f"<h1>{escape(names)}</h1>",
        "<h2>What differs in the configuration</h2>",
        _table(head, rows, "key") if rows else "<p>Nothing.</p>",
        *_results(stories),
        *_charts(stories),
        *_samples(stories),
    ]
    return _page(names, body)


def rate_page(tried: Tried, found: Suggestion, place: str, config: Mapping[str, Any]) -> str:
    """A range test of the learning rate: the loss at each update, while the rate rises."""
    points = [(number, loss) for number, (_, loss) in enumerate(tried, start=1) if math.isfinite(loss)]
    mean = [(number, loss) for (number, _), (_, loss) in zip(points, smoothed(tried), strict=True)]
    near = [number for number, (rate, _) in enumerate(tried, start=1) if rate >= (found.rate or math.inf)][:1]
    flags = [plot.Flag(number, "resume", f"learning rate {figures.compact(found.rate)}") for number in near]
    drawn = plot.Plot([plot.Series(points, "undone"), plot.Series(mean, "c0")], (), flags, last_step=len(tried))
    texts = [f"{_nats(loss)} at learning rate {figures.compact(tried[number - 1][0])}" for number, loss in mean]
    reading: dict[str, object] = {"name": "loss", "steps": [number for number, _ in mean], "texts": texts}
    first, last = tried[0][0], tried[-1][0]
    title = f"Loss, nats a token, while the learning rate rises from {first:.2g} to {last:.2g}"
    head = f"Learning rate: {'none found' if found.rate is None else figures.compact(found.rate)}"
    body = [
        f"<h1>{escape(head)}</h1>",
        f'<p class="dim">range test on a copy of {escape(place)}</p>',
        f"<p>{escape(found.why)}</p>",
        _figure(title, drawn, [_key("smoothed", "c0"), *(["▾ suggested"] if near else [])], [reading], 1.0),
        _details("Configuration", flat(config)),
    ]
    return _page(head, body)


def headline(story: Story) -> list[str]:
    """How a run stands, in a sentence or two."""
    if story.summary is None:
        said = [f"No end is told of: at step {story.last_step:,} it goes on, or was killed."]
    else:
        said = [f"{story.summary.status.capitalize()} after {story.summary.steps:,} updates."]
        if story.summary.status != "completed":
            said = [f"{said[0][:-1]}: {story.summary.reason}"]
    valid = story.evaluations.get("valid")
    if valid and story.floors:
        best = min(nats for _, nats in valid)
        beaten = [floor for floor in story.floors if best < floor[1]]
        missed = [floor for floor in story.floors if best >= floor[1]]
        said.append(
            f"Its best perplexity on the valid text is {_perplexity(best)}"
            + (f", better than {floor_words(*beaten[-1])}" if beaten else "")
            + (f", worse than {floor_words(*missed[0])}" if missed else "")
            + "."
        )
    return [*said, story.note] if story.note else said


def _diagnosis(story: Story) -> list[str]:
    """What the rules find in the run's own figures, the verdict first."""
    found = diagnose(evidence_of(story))
    since = f" since step {found.since:,}" if found.since is not None else ""
    said = [f"<p>{found.verdict}{since}, by the run's own figures; <code>raylm diagnose</code> reads its data too.</p>"]
    for finding in found.findings:
        lines = (*finding.evidence, f"What to do: {finding.advice}")
        told = "".join(f"<br>{escape(line)}" for line in lines)
        said.append(f"<p><b>{finding.severity}: {escape(finding.title)}</b>{told}</p>")
    return ["<h2>Diagnosis</h2>", *said]


def _badge(story: Story) -> str:
    style = {"completed": "good", "failed": "bad"}.get(story.status, "warn")
    return f'<span class="badge {style}">{escape(story.status)}</span>'


def _tiles(story: Story) -> str:
    summary = story.summary
    facts = [(split, _perplexity(story.evaluations[split][-1][1])) for split in story.evaluations]
    facts = [(f"{split} perplexity", value) for split, value in facts]
    facts.append(("updates", f"{story.last_step:,}"))
    if summary is not None:
        facts += [
            ("tokens", figures.count(summary.tokens)),
            ("tokens a second", figures.count(summary.tokens_per_second)),
            ("time", figures.duration(summary.seconds)),
            ("rollbacks", str(summary.rollbacks)),
            ("resumes", str(summary.resumes)),
        ]
    tiles = (f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in facts)
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _charts(stories: Sequence[Story]) -> list[str]:
    alone = len(stories) == 1
    last = max(1, *(story.last_step for story in stories))
    flags = [plot.Flag(m.step, m.kind, f"step {m.step}: {m.text}") for m in stories[0].marks if m.kind in _FLAGS]
    charts = [_loss_chart(stories, last, flags if alone else [])]
    for figure, title, logarithmic in (
        ("gradient_norm", "Gradient norm", True),
        ("learning_rate", "Learning rate", False),
        ("tokens_per_second", "Tokens a second", False),
    ):
        clip = stories[0].start.get("clip_norm") if figure == "gradient_norm" and alone else None
        levels = [plot.Level(float(clip), f"clip {figures.compact(clip)}")] if isinstance(clip, (int, float)) else []
        series = [(story.name, story.curves[figure], f"c{n}") for n, story in enumerate(stories)]
        shown = [(title.lower() if alone else name, points, style) for name, points, style in series]
        drawn = plot.Plot(
            [plot.Series(points, style) for _, points, style in shown],
            levels,
            flags if alone else (),
            logarithmic=logarithmic,
            last_step=last,
        )
        keys = [] if alone else [_key(name, style) for name, _, style in shown]
        height = 0.6 if alone else 0.75
        readings = [_reading(name, points, figures.compact) for name, points, _ in shown]
        charts.append(_figure(title, drawn, keys, readings, height))
    return charts


def _loss_chart(stories: Sequence[Story], last: int, flags: Sequence[plot.Flag]) -> str:
    alone = len(stories) == 1
    series: list[plot.Series] = []
    readings, keys = [], []
    for n, story in enumerate(stories):
        loss, valid = story.curves["loss"], story.evaluations.get("valid", [])
        own, dots = f"c{n}", "c1" if alone else f"c{n}"
        series += [plot.Series(piece, "undone") for piece in story.undone]
        series += [plot.Series(loss, own), plot.Series(valid, dots, dots=True)]
        names = ("train", "valid") if alone else (story.name, f"{story.name} valid")
        readings += [_reading(name, points, _nats) for name, points in zip(names, (loss, valid), strict=True)]
        keys.append(_key("train, as it goes" if alone else story.name, own))
        keys += [_key("valid", dots, "dot")] if alone and valid else []
    kinds = {flag.style for flag in flags}
    keys += [f'<span class="{kind}">▾ {kind}</span>' for kind in _FLAGS if kind in kinds]
    if any(story.undone for story in stories):
        keys.append('<span class="bad"><i></i>undone</span>')
    levels = [plot.Level(nats, floor_words(name, nats)) for name, nats in stories[0].floors]
    return _figure("Loss, nats a token", plot.Plot(series, levels, flags, last_step=last), keys, readings, 1.0)


def _key(name: str, style: str, shape: str = "") -> str:
    return f'<span><i class="key {style} {shape}"></i>{escape(name)}</span>'


def _reading(name: str, points: plot.Points, said: Callable[[float], str]) -> dict[str, object]:
    few = plot.thinned(points, 1500)
    return {"name": name, "steps": [round(step) for step, _ in few], "texts": [said(value) for _, value in few]}


def _figure(
    title: str, drawn: plot.Plot, keys: Sequence[str], readings: Iterable[dict[str, object]], height: float
) -> str:
    wide, narrow = ((width, round(tall * height)) for width, tall in (_WIDE, _NARROW))
    svgs = [
        plot.svg(drawn, *size).replace('class="plot"', f'class="plot {name}" aria-label="{escape(title)}"', 1)
        for name, size in (("wide", wide), ("narrow", narrow))
    ]
    if not svgs[0]:
        return ""
    data = json.dumps([each for each in readings if each["steps"]], separators=(",", ":")).replace("</", "<\\/")
    return (
        f"<h2>{escape(title)}</h2><figure><figcaption>{''.join(keys)}</figcaption>{''.join(svgs)}"
        f'<div class="readout"></div><script type="application/json">{data}</script></figure>'
    )


def _happened(marks: Sequence[Mark]) -> list[str]:
    if not marks:
        return []
    rows = "".join(
        f'<tr><td class="number">{mark.step:,}</td><td class="kind {mark.kind}">{mark.kind}</td>'
        f"<td>{escape(mark.text)}</td></tr>"
        for mark in marks
    )
    head = '<tr><th class="number">step</th><th></th><th></th></tr>'
    return ["<h2>What happened</h2>", f'<div class="scroll"><table>{head}{rows}</table></div>']


def _results(stories: Sequence[Story]) -> list[str]:
    splits = list(dict.fromkeys(split for story in stories for split in story.evaluations))
    rows = []
    for split in splits:
        ends = [story.evaluations.get(split, [])[-1:] for story in stories]
        rows.append([f"{split} perplexity", *(_perplexity(end[0][1]) if end else "-" for end in ends)])
    floors = [dict(story.floors) for story in stories]
    for name in dict.fromkeys(name for each in floors for name in each):
        rows.append([f"floor: {name}", *(_perplexity(each[name]) if name in each else "-" for each in floors)])
    if len(stories) > 1:
        rows += [
            ["updates", *(f"{story.last_step:,}" for story in stories)],
            ["how it ended", *(story.status for story in stories)],
        ]
        for name, field in (("tokens a second", "tokens_per_second"), ("rollbacks", "rollbacks")):
            rows.append([name, *(figures.count(getattr(story.summary, field, None)) for story in stories)])
    if not rows:
        return []
    head = ["", *([story.name for story in stories] if len(stories) > 1 else [""])]
    return ["<h2>Results</h2>", _table(head, rows, "", "number")]


def _samples(stories: Sequence[Story]) -> list[str]:
    parts = []
    for story in stories:
        if story.samples:
            name = "" if len(stories) == 1 else f": {escape(story.name)}"
            rows = [[f"{step:,}", text] for step, text in story.samples]
            parts += [f"<h2>Samples{name}</h2>", _table(["step", ""], rows, "number")]
    return parts


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], first: str, others: str = "value") -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        styles = [first, *[others] * (len(cells) - 1)]
        texts = [re.sub(r"([._])", r"\1<wbr>", escape(cells[0])) if first == "key" else escape(cells[0])]
        texts += map(escape, cells[1:])
        return "".join(f'<{tag} class="{style}">{text}</{tag}>' for text, style in zip(texts, styles, strict=True))

    lines = "".join(
        f"<tr{' class=floor' if cells[0].startswith('floor: ') else ''}>{row(cells, 'td')}</tr>" for cells in rows
    )
    return f'<div class="scroll"><table><tr>{row(head, "th")}</tr>{lines}</table></div>'


def _details(title: str, facts: dict[str, str]) -> str:
    if not facts:
        return ""
    table = _table(["", ""], [[key, value] for key, value in facts.items()], "key")
    return f"<details><summary>{escape(title)}</summary>{table}</details>"


def _page(title: str, body: Iterable[str]) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>raylm: {escape(title)}</title><style>{STYLE}</style></head><body>{''.join(body)}"
        f"<footer>raylm {__version__}</footer><script>{SCRIPT}</script></body></html>\n"
    )


def _nats(value: float) -> str:
    return f"{figures.nats(value)} nats (perplexity {_perplexity(value)})"


def _perplexity(nats: float) -> str:
    return figures.perplexity(figures.perplexity_of(nats))
