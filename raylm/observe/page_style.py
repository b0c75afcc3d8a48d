"""The look of the pages: one style sheet for light and dark, wide and narrow, and a script that reads values out where
a pointer is. Both stand in the page itself, which asks no network for anything."""

STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --ink: #1a1d21; --dim: #5b6472; --line: #e3e6eb; --card: #f6f7f9;
  --c0: #2563eb; --c1: #c2620c; --c2: #047857; --c3: #9333ea; --c4: #be185d; --c5: #0e7490;
  --bad: #c81e1e; --good: #047857; --warn: #b45309; }
@media (prefers-color-scheme: dark) { :root { --back: #0f1216; --ink: #e6e8eb; --dim: #9aa4b2; --line: #2a3038;
  --card: #171b21; --c0: #6ea8fe; --c1: #f5a742; --c2: #34d399; --c3: #c084fc; --c4: #f472b6; --c5: #22d3ee;
  --bad: #f87171; --good: #34d399; --warn: #fbbf24; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1040px; padding: 20px 16px 60px; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.45rem; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 32px 0 8px; }
p { margin: 4px 0; }
.dim, figcaption, th { color: var(--dim); font-weight: 400; }
.badge { display: inline-block; padding: 0 8px; border-radius: 9px; font-size: .8rem; line-height: 1.5rem;
  border: 1px solid currentColor; vertical-align: .15em; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); gap: 8px; margin: 16px 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 8px 12px; }
.tile b { display: block; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--dim); font-size: .82rem; }
figure { margin: 0; position: relative; }
figcaption { font-size: .85rem; display: flex; flex-wrap: wrap; gap: 2px 16px; }
figcaption i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; background: currentColor; }
figcaption i.dot { width: 8px; height: 8px; border-radius: 4px; }
.readout { min-height: 1.5em; font-size: .85rem; font-variant-numeric: tabular-nums; color: var(--dim); }
svg.plot { display: block; width: 100%; height: auto; touch-action: pan-y; overflow: visible; }
svg.narrow { display: none; }
@media (max-width: 600px) { svg.wide { display: none; } svg.narrow { display: block; } }
svg text { font: 12px system-ui, sans-serif; fill: var(--dim); font-variant-numeric: tabular-nums; }
.axes line { stroke: var(--line); }
.level { stroke: var(--dim); stroke-dasharray: 4 4; }
text.level { stroke: var(--back); stroke-width: 4px; stroke-dasharray: none; paint-order: stroke; font-size: 11.5px; }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.cross { stroke: var(--dim); visibility: hidden; }
.flag line { stroke: currentColor; stroke-width: 1; stroke-dasharray: 2 3; opacity: .7; }
.flag path { fill: currentColor; }
.incident { color: var(--bad); } .rollback { color: var(--warn); } .resume, .resize { color: var(--c3); }
.checkpoint, .end { color: var(--dim); } .verdict { color: var(--c5); }
circle { stroke: var(--back); stroke-width: 1.5; }
.curve.undone { stroke: var(--bad); opacity: .45; }
COLOURS
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
th { font-size: .82rem; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap;
  overflow-wrap: normal; }
td.kind { white-space: nowrap; overflow-wrap: normal; }
td.key { font-family: ui-monospace, monospace; font-size: .84rem; overflow-wrap: normal; }
td.value { font-family: ui-monospace, monospace; font-size: .84rem; min-width: 4.5em; }
tr.floor td { color: var(--dim); }
details { border: 1px solid var(--line); border-radius: 8px; padding: 8px 12px; margin: 12px 0;
  background: var(--card); }
summary { cursor: pointer; font-weight: 600; }
footer { margin-top: 40px; color: var(--dim); font-size: .82rem; }
""".replace(
    "COLOURS",
    "\n".join(
        f".curve.c{n} {{ stroke: var(--c{n}); }} circle.c{n} {{ fill: var(--c{n}); }} "
        f".key.c{n} {{ color: var(--c{n}); }}"
        for n in range(6)
    ),
)

SCRIPT = """
for (const figure of document.querySelectorAll("figure")) {
  const series = JSON.parse(figure.querySelector("script").textContent);
  const readout = figure.querySelector(".readout");
  for (const svg of figure.querySelectorAll("svg")) {
    const { left, right, last, floor } = svg.dataset;
    const cross = svg.querySelector(".cross");
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
      const step = Math.max(0, Math.min(+last, (x - left) / (right - left) * last));
      const at = +left + step / last * (right - left);
      cross.setAttribute("x1", at);
      cross.setAttribute("x2", at);
      cross.setAttribute("y2", floor);
      cross.style.visibility = "visible";
      readout.textContent = "step " + Math.round(step).toLocaleString("en") + series.map(({ name, steps, texts }) => {
        let low = 0, high = steps.length - 1;
        while (high - low > 1) {
          const middle = low + high >> 1;
          if (steps[middle] > step) high = middle; else low = middle;
        }
        const nearest = Math.abs(steps[high] - step) < Math.abs(steps[low] - step) ? high : low;
        const where = steps[nearest] == Math.round(step) ? "" : " (" + steps[nearest] + ")";
        return "  ·  " + name + " " + texts[nearest] + where;
      }).join("");
    });
    svg.addEventListener("pointerleave", () => { cross.style.visibility = "hidden"; readout.textContent = ""; });
  }
}
"""
