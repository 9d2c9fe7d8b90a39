"""One self-contained HTML page: every figure with its caption and numbers, and what is missing."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment
from lab.spec import DEFAULT_BASE

from pictures.common import Absent, Picture, percent, place_text, short
from pictures.rows import Row, RowError
from pictures.style import drawing, order_of

DOTS_PER_INCH = 130

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ink: #1c2128; --soft: #57606a; --page: #ffffff;
  --line: #d0d7de; --stripe: #f6f8fa; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9da7b3; --page: #0d1117; --line: #30363d;
    --stripe: #161b22; --link: #6cb6ff; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 76rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
a { color: var(--link); }
figure { margin: 0; }
figure img { max-width: 100%; background: #ffffff; border: 1px solid var(--line);
  border-radius: 6px; padding: 8px; box-sizing: border-box; }
figcaption { color: var(--soft); max-width: 60rem; margin: .5rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .6rem; text-align: left;
  white-space: nowrap; }
tbody tr:nth-child(even) { background: var(--stripe); }
summary { cursor: pointer; color: var(--link); }
</style>
</head>
<body>
{%- macro table(columns, lines) %}
<div class="wide"><table><thead><tr>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr>
</thead><tbody>
{%- for line in lines %}
<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- endmacro %}
<h1>{{ title }}</h1>
<p>{{ rows|length }} runs from {{ sources|join(", ") }}. Hit rates are shares of prompt tokens,
FLOPs are shares of all prefill FLOPs. A policy has the same colour and marker in every figure.</p>
<ul>
{%- for one in pictures %}
<li><a href="#{{ one.key }}">{{ one.title }}</a></li>
{%- endfor %}
<li><a href="#runs">All runs</a></li>
{%- if absent %}<li><a href="#missing">Missing figures</a></li>{% endif %}
{%- if problems %}<li><a href="#skipped">Skipped lines</a></li>{% endif %}
</ul>
{%- for one in pictures %}
<h2 id="{{ one.key }}">{{ one.title }}</h2>
<figure>
<img alt="{{ one.title }}" src="data:image/png;base64,{{ images[one.key] }}">
<figcaption>{{ one.caption }}</figcaption>
</figure>
<details><summary>The numbers</summary>{{ table(one.columns, one.table) }}</details>
{%- endfor %}
<h2 id="runs">All runs</h2>
<details><summary>{{ rows|length }} rows</summary>{{ table(run_columns, runs) }}</details>
{%- if absent %}
<h2 id="missing">Missing figures</h2>
<p>The rows do not give these.</p>
{{ table(("figure", "needs"), missing) }}
{%- endif %}
{%- if problems %}
<h2 id="skipped">Skipped lines</h2>
<ul>{% for one in problems %}<li>{{ one }}</li>{% endfor %}</ul>
{%- endif %}
</body>
</html>
"""

_RUN_COLUMNS = (
    "engine",
    "trace",
    "model",
    "memory",
    "setting",
    "policy",
    "requests",
    "token hit rate, %",
    "prefill FLOPs saved, %",
)


def write_report(
    folder: Path,
    rows: Sequence[Row],
    pictures: Sequence[Picture],
    absent: Sequence[Absent],
    problems: Sequence[RowError],
    sources: Sequence[str],
) -> Path:
    """Save every figure as PNG and SVG, and the report that embeds them; returns its path.

    The same rows give the same bytes: files hold no date and no random names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    with drawing():
        for one in pictures:
            png = folder / f"{one.key}.png"
            one.figure.savefig(png, dpi=DOTS_PER_INCH)
            one.figure.savefig(folder / f"{one.key}.svg", metadata={"Date": None})
            images[one.key] = base64.b64encode(png.read_bytes()).decode()
    page = (
        Environment(autoescape=True)
        .from_string(_PAGE)
        .render(
            title="Prefix cache policies, simulated",
            rows=rows,
            sources=sources,
            pictures=pictures,
            images=images,
            run_columns=_RUN_COLUMNS,
            runs=[_run(row) for row in sorted(rows, key=_run_order)],
            absent=absent,
            missing=[(one.title, one.needs) for one in absent],
            problems=problems,
        )
    )
    report = folder / "report.html"
    report.write_text(page, encoding="utf-8")
    return report


def _run_order(row: Row) -> tuple[object, ...]:
    return row.engine, row.trace, row.model, str(row.labels), row.memory_gib or 0.0, order_of(row)


def _run(row: Row) -> tuple[str, ...]:
    memory = [] if row.memory_gib is None else [place_text(row.memory_gib)]
    setting = [] if row.base in ("", DEFAULT_BASE) else [f"SGLang {row.base}"]
    setting += [] if row.concurrency is None else [f"concurrency {row.concurrency}"]
    setting += [f"{name} {value}" for name, value in row.labels]
    return (
        row.engine,
        short(row.trace),
        row.model,
        ", ".join([*memory, *([row.capacity] if row.capacity else [])]),
        ", ".join(setting),
        row.policy,
        f"{row.requests:,}",
        percent(row.token_hit_rate),
        percent(row.flops_saved),
    )
