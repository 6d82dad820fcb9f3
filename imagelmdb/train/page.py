"""The HTML frame of the report, and its style for light and dark screens."""

STYLE = """
:root { color-scheme: light dark;
  --ground: #f6f6f3; --card: #fff; --ink: #1d2025; --soft: #6b7079; --rule: #e4e4de;
  --a: #1b66d6; --b: #cf5a07; --c: #3f8f4f; --d: #8a4fc4; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #111315; --card: #1a1d21; --ink: #e7e7e3; --soft: #979da6; --rule: #2c3036;
  --a: #72aaff; --b: #ff9d57; --c: #77c787; --d: #c69bf2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 32px 24px 64px;
  background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 26px; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 40px 0 12px; }
.facts { margin: 2px 0 20px; color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.tiles div, figure, .card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.tiles div { padding: 12px 16px; display: flex; flex-direction: column; }
.tiles span { color: var(--soft); font-size: 13px; }
.tiles b { font-size: 23px; font-weight: 600; font-variant-numeric: tabular-nums; }
.calm, .warn { margin: 12px 0 0; padding: 10px 16px; background: var(--card);
  border-left: 3px solid var(--c); }
.warn { border-color: var(--b); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); gap: 16px;
  margin-top: 28px; }
figure { margin: 0; padding: 14px 16px 6px; overflow-x: auto; }
figcaption { font-weight: 600; margin-bottom: 6px; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg .name { font-weight: 600; }
svg .grid { stroke: var(--rule); }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .faint { fill: none; stroke-width: 1; opacity: 0.4; }
svg .target { fill: transparent; }
.card { padding: 16px; overflow-x: auto; }
.card img { display: block; width: 100%; border-radius: 4px; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: 13px; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--rule); white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
.n { font-variant-numeric: tabular-nums; }
.bar { width: 45%; } .bar i { display: block; height: 9px; border-radius: 5px; background: var(--b); }
.none { color: var(--soft); margin: 8px 0; }
summary { cursor: pointer; font-weight: 600; }
details { margin-top: 16px; } details > * + * { margin-top: 12px; }
pre { margin: 12px 0 0; font-size: 13px; overflow-x: auto; }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{style}</style></head><body>
<h1>{title}</h1>
{head}
<div class="charts">{charts}</div>
<h2>Training images as the model sees them, after augmentation</h2><div class="card">{grid}</div>
<details class="card"><summary>All epochs</summary>{epochs}</details>
<details class="card"><summary>Options of the run</summary><pre>{config}</pre></details>
</body></html>
"""
