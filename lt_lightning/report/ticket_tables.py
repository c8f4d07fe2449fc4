"""The table of all tickets over seeds: as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from lt_lightning.files import replacing
from lt_lightning.report.contents import name_of
from lt_lightning.report.curves import half_width
from lt_lightning.results.aggregate import Row, short
from lt_lightning.tables import markdown_table, number

HEADINGS = (
    "data", "network", "setting", "round", "ticket", "density %", "accuracy %", "± 95 %", "vs dense", "wins", "FLOPs",
    "infer", "train", "seeds",
)  # fmt: skip


LATEX = {"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "±": r"$\pm$", "$": r"\$", "~": r"\textasciitilde{}",
         "{": r"\{", "}": r"\}", "\\": r"\textbackslash{}", "^": r"\textasciicircum{}"}  # fmt: skip


def cells(row: Row) -> list[str]:
    """Of a row, under `HEADINGS`; what is not known is empty."""
    half = half_width(row.accuracy_sd, row.seeds)
    wins = {None: "", True: "yes", False: "not shown"}[row.wins]
    return [
        row.data, row.model, short(row.setting), str(row.round), name_of(row), f"{100 * row.density:.1f}",
        f"{100 * row.accuracy:.2f}", "" if half is None else f"{100 * half:.2f}",
        "" if row.round == 0 else f"{100 * row.difference:+.2f}", wins, number(row.flops_ratio, ".3f"),
        number(row.time_ratio_inference, ".3f"), number(row.time_ratio_training, ".3f"), str(row.seeds),
    ]  # fmt: skip


def markdown(rows: Sequence[Row]) -> str:
    """A table in GitHub's dialect."""
    return markdown_table([HEADINGS, *map(cells, rows)])


def latex(rows: Sequence[Row]) -> str:
    """A tabular between booktabs' rules."""
    columns = "lllrl" + "r" * (len(HEADINGS) - 5)
    body = "".join(" & ".join(map(_escaped, cells(row))) + " \\\\\n" for row in rows)
    heading = " & ".join(map(_escaped, HEADINGS)) + " \\\\\n"
    return f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{heading}\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n"


def write_tables(folder: Path, rows: Sequence[Row]) -> None:
    """`table.md`, `table.csv` and `table.tex`."""
    for name, text in (("table.md", markdown(rows)), ("table.tex", latex(rows))):
        with replacing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    with replacing(folder / "table.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADINGS, *map(cells, rows)])


def _escaped(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in text)
