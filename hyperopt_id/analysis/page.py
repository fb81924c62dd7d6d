"""A report as one HTML file that needs nothing else: text, tables, and pictures drawn into it."""

import html
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from hyperopt_id.analysis.names import printable
from hyperopt_id.analysis.tables import Table, lowest_cells, shown

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 80rem; margin: 2rem auto;
       padding: 0 1.5rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p { max-width: 48rem; } code, pre { font: 0.88em/1.45 ui-monospace, monospace; }
pre { background: #f5f5f5; padding: 0.8rem 1rem; white-space: pre-wrap; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e6e6e6; }
th { border-bottom: 2px solid #222; } th.text, td.text { text-align: left; }
tbody tr:hover { background: #f7f7f2; } td.lowest { font-weight: 700; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: 0.92rem; max-width: 48rem; }
""".strip()
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<h1>{title}</h1>
{parts}
</body>
</html>
"""


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Code(NamedTuple):
    """A command, as it is typed."""

    text: str


class Heading(NamedTuple):
    text: str


class Picture(NamedTuple):
    """A figure of matplotlib, drawn as lines and text, not as pixels."""

    figure: Any
    caption: str


Part = Text | Code | Heading | Picture | Table


def page(title: str, parts: Sequence[Part]) -> str:
    """The whole file."""
    return PAGE.format(title=_escaped(title), style=STYLE, parts="\n".join(map(_part, parts)))


def _part(part: Part) -> str:
    if isinstance(part, Picture):
        return f"<figure>\n{_drawing(part.figure)}\n<figcaption>{_escaped(part.caption)}</figcaption>\n</figure>"
    if isinstance(part, Table):
        return _table(part)
    tag = {Text: "p", Code: "pre", Heading: "h2"}[type(part)]
    return f"<{tag}>{_escaped(part.text)}</{tag}>"


def _table(table: Table) -> str:
    strong, columns = lowest_cells(table), table.columns
    text = [any(isinstance(row.get(column), str) for row in table.rows) and n == 0 for n, column in enumerate(columns)]
    kinds = [' class="text"' if left else "" for left in text]
    head = "".join(f"<th{kind}>{_escaped(column)}</th>" for column, kind in zip(columns, kinds))
    rows = []
    for number, row in enumerate(table.rows):
        marks = [' class="lowest"' if (number, c) in strong else kind for c, kind in zip(columns, kinds)]
        cells = "".join(f"<td{mark}>{_escaped(shown(row.get(c)))}</td>" for c, mark in zip(columns, marks))
        rows.append(f"<tr>{cells}</tr>")
    note = f"<p>{_escaped(table.note)}</p>\n" if table.note else ""
    body = "\n".join(rows)
    return (
        f'{note}<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
    )


def _escaped(text: str) -> str:
    return "\n".join(html.escape(printable(line, None)) for line in text.split("\n"))


def _drawing(figure: Any) -> str:
    """The <svg> element alone, the same for the same figure."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "hyperopt_id", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :].strip()
