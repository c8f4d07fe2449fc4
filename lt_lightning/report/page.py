"""The page: parts with figures, tables and text, in one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from string import Template
from typing import Any

from lt_lightning.report.figures import BarChart, Figure, Picture, plotly_json


@dataclass
class Page:
    """Collects the parts of a page.

    Attributes:
        title: title of the page.
        subtitle: text below the title.
        figures: figures of all parts, by the number in their places.
        pngs: figures that are also drawn as pictures of their own, by the name of the file.
        sections: name, heading and HTML of each part.
    """

    title: str
    subtitle: str
    figures: list[Figure | BarChart | Picture] = field(default_factory=list)
    pngs: dict[str, Figure] = field(default_factory=dict)
    sections: list[tuple[str, str, str]] = field(default_factory=list)

    def figure(self, figure: Figure | BarChart | Picture, png: str = "") -> str:
        """Return the HTML of a figure, which is drawn when its part is looked at.

        Args:
            figure: figure to show.
            png: name of a file that the figure is also drawn in; empty for none.
        """
        self.figures.append(figure)
        if png and isinstance(figure, Figure):
            self.pngs[png] = figure
        return f'<div class="figure" data-figure="{len(self.figures) - 1}"></div>'

    def add(self, name: str, heading: str, *blocks: str) -> None:
        """Add a part."""
        self.sections.append((name, heading, "\n".join(blocks)))

    def html(self) -> str:
        """Return the whole file, with the script of plotly in it."""
        template = resources.files("lt_lightning.report").joinpath("page.html").read_text(encoding="utf-8")
        nav = "".join(f'<button data-part="{name}">{escape(heading)}</button>' for name, heading, _ in self.sections)
        parts = "\n".join(
            f'<section id="{name}"><h2>{escape(heading)}</h2>\n{body}\n</section>'
            for name, heading, body in self.sections
        )
        return Template(template).substitute(
            title=escape(self.title), subtitle=escape(self.subtitle), nav=nav, sections=parts,
            plotly=_plotly(),
            figures=json.dumps(_finite(list(map(plotly_json, self.figures))), allow_nan=False).replace("</", "<\\/"),
        )  # fmt: skip


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Sequence[int] = (),
    marked: Sequence[int] = (),
    bold: Sequence[int] = (),
) -> str:
    """Return a table that scrolls by itself where it is too wide.

    Args:
        headings: headings of the columns.
        rows: cells of each row, plain text.
        left: numbers of the columns that are aligned left.
        marked: numbers of the rows that are coloured.
        bold: numbers of the rows that sum up others.
    """

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(f"<{tag}{_class(i, left, cell)}>{escape(cell)}</{tag}>" for i, cell in enumerate(cells))

    look = dict.fromkeys(marked, " class=back") | dict.fromkeys(bold, " class=sum")
    body = "".join(f"<tr{look.get(index, '')}>{line('td', row)}</tr>\n" for index, row in enumerate(rows))
    head = f"<thead><tr>{line('th', headings)}</tr></thead>"
    return f'<div class="scroll"><table>{head}\n<tbody>{body}</tbody></table></div>'


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def bullets(lines: Iterable[str]) -> str:
    """Return a list of plain text."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def heading(text: str) -> str:
    """Return a heading within a part."""
    return f"<h3>{escape(text)}</h3>"


def chooser(name: str, label: str, choices: Mapping[str, str]) -> str:
    """Return blocks of which one is shown at a time.

    Args:
        name: class that the blocks get.
        label: text beside the list of choices.
        choices: HTML of the blocks, by the text of their choices.
    """
    entries = "".join(f'<option value="{index}">{escape(choice)}</option>' for index, choice in enumerate(choices))
    blocks = "".join(
        f'<div class="{name}" data-choice="{index}"{" hidden" if index else ""}>{block}</div>'
        for index, block in enumerate(choices.values())
    )
    return f'<p><label>{escape(label)}: <select data-chooses="{name}">{entries}</select></label></p>{blocks}'


def side_by_side(*blocks: str) -> str:
    """Return blocks that stand beside each other where the page is wide enough."""
    return f'<div class="pair">{"".join(f"<div>{block}</div>" for block in blocks)}</div>'


def _class(column: int, left: Sequence[int], cell: str) -> str:
    return (' class="l w"' if len(cell) > 50 else ' class="l"') if column in left else ""


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and value - value != 0 else value


def _plotly() -> str:
    return resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
