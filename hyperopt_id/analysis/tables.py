"""A table, described once, as Markdown, LaTeX (booktabs) and CSV.

A row is {column: cell}; a cell is text, a number, an `Estimate`, or None where there is nothing to say. Markdown and
LaTeX round for readers; CSV has all digits, and an estimate's deviation and bounds in columns of their own.
"""

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hyperopt_id.analysis.names import in_latex, in_markdown, printable
from hyperopt_id.analysis.statistics import Estimate

NOTHING = "–"
LARGEST = 1e7  # that is written without an exponent
Row = Mapping[str, Any]


class Table(NamedTuple):
    """`note` says what the columns mean. In each block of rows with one value of `block`, the lowest value of the
    columns `lowest` stands out, among the rows whose column `failures` is zero; an estimate of one value, whose
    uncertainty nobody knows, is not compared."""

    name: str
    note: str
    rows: Sequence[Row]
    block: str | None = None
    lowest: Sequence[str] = ()
    failures: str | None = None

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row))


def markdown(table: Table) -> str:
    """With the first column at the left and a line of explanation above."""
    columns, strong = table.columns, lowest_cells(table)
    kinds = ["---" if _is_text(table, column) else "---:" for column in columns]
    note = f"{in_markdown(table.note, None)}\n" if table.note else None
    lines = [note, f"| {' | '.join(map(in_markdown, columns))} |", f"| {' | '.join(kinds)} |"]
    for number, row in enumerate(table.rows):
        texts = {column: in_markdown(shown(row.get(column))) for column in columns}
        cells = [_strong(text, "**", "**") if (number, c) in strong else text for c, text in texts.items()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(line for line in lines if line is not None) + "\n"


def latex(table: Table) -> str:
    """A tabular that needs the packages `booktabs` and nothing else."""
    columns, strong, before = table.columns, lowest_cells(table), None
    kinds = "".join("l" if _is_text(table, column) else "r" for column in columns)
    lines = [f"% {printable(table.note, None)}"] if table.note else []
    lines += [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", " & ".join(map(in_latex, columns)) + r" \\", r"\midrule"]
    for number, row in enumerate(table.rows):
        block = row.get(table.block) if table.block else None
        if number and block != before:
            lines.append(r"\midrule")
        before = block
        cells = [_latex_cell(shown(row.get(c)), row.get(c), (number, c) in strong) for c in columns]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def comma_separated(table: Table) -> str:
    """Every digit, and a header."""
    text = io.StringIO()
    columns = [name for column in table.columns for name in _parts(table, column)]
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(
        {name: value for column in row for name, value in _values(column, row[column])} for row in table.rows
    )
    return text.getvalue()


FORMATS: dict[str, Callable[[Table], str]] = {"md": markdown, "tex": latex, "csv": comma_separated}


def shown(cell: Any) -> str:
    """A cell for readers."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return NOTHING
    if isinstance(cell, float):
        if math.isinf(cell):
            return "∞" if cell > 0.0 else "−∞"
        return f"{cell:.0f}" if 1000 <= abs(cell) < LARGEST else f"{cell:.3g}"
    return printable(str(cell))


def _strong(text: str, before: str, after: str) -> str:
    """The value of `value ± deviation` stands out."""
    value, plus_minus, deviation = text.partition(" ± ")
    return f"{before}{value}{after}{plus_minus}{deviation}"


def _latex_cell(text: str, cell: Any, strong: bool) -> str:
    if isinstance(cell, Estimate) and text != NOTHING:
        value, _, deviation = text.replace("∞", r"\infty").replace("−", "-").partition(" ± ")
        value = rf"\mathbf{{{value}}}" if strong else value
        return rf"${value} \pm {deviation}$" if deviation else f"${value}$"
    return rf"\textbf{{{in_latex(text)}}}" if strong else in_latex(text)


def _is_text(table: Table, column: str) -> bool:
    return any(isinstance(row.get(column), str) for row in table.rows)


def lowest_cells(table: Table) -> set[tuple[int, str]]:
    """(row, column) of the cells that stand out: where there are at least two to compare."""
    found = set()
    blocks: dict[Any, list[int]] = {}
    for number, row in enumerate(table.rows):
        blocks.setdefault(row.get(table.block) if table.block else None, []).append(number)
    for column in table.lowest:
        for numbers in blocks.values():
            numbers = [n for n in numbers if not table.rows[n].get(table.failures or "")]
            values = {n: _compared(table.rows[n].get(column)) for n in numbers}
            there = {n: value for n, value in values.items() if math.isfinite(value)}
            if len(there) > 1:
                found.add((min(there, key=lambda n, there=there: there[n]), column))
    return found


def _compared(cell: Any) -> float:
    """The number of a cell that can be compared with others, else NaN."""
    if isinstance(cell, Estimate):
        return math.nan if math.isnan(cell.deviation) else cell.value
    return float(cell) if isinstance(cell, (int, float)) else math.nan


def _parts(table: Table, column: str) -> list[str]:
    split = any(isinstance(row.get(column), Estimate) for row in table.rows)
    return [column, f"{column} deviation", f"{column} low", f"{column} high"] if split else [column]


def _values(column: str, cell: Any) -> Iterator[tuple[str, Any]]:
    names = [column, f"{column} deviation", f"{column} low", f"{column} high"]
    for name, value in zip(names, cell if isinstance(cell, Estimate) else [cell]):
        text = printable(value, None) if isinstance(value, str) else value
        yield name, "" if value is None or (isinstance(value, float) and math.isnan(value)) else text
