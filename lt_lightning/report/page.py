"""The page: parts with figures, tables and text, in one HTML file that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import TypeVar
from urllib.parse import quote

from lt_lightning.report.figures import NARROW, WIDE, Figure, custom_properties, svg, write_svg

T = TypeVar("T")
Cell = str
"""The text of a cell; HTML where it is an instance of `Html`."""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


@dataclass
class Page:
    """Collects the parts of a page, and writes it.

    Attributes:
        folder: folder that the page is written to.
        title: what the page is about.
        subtitle: HTML below the title.
        sections: name, heading and HTML of each part.
    """

    folder: Path
    title: str
    subtitle: str
    sections: list[tuple[str, str, str]] = field(default_factory=list)

    def figure(self, figure: Figure, name: str, file: bool = True, wide: bool = False) -> str:
        """Return the HTML of a figure.

        Args:
            figure: figure to show.
            name: name of its files, without the ending.
            file: whether it is also written as an SVG file.
            wide: whether it takes the width of the page where there is room.
        """
        drawn = svg(figure, NARROW)
        if wide:
            drawn = f'<div class="roomy">{svg(figure, WIDE)}</div><div class="tight">{drawn}</div>'
        links = ""
        if file:
            write_svg(path := self.folder / f"{name}.svg", figure)
            links = self.link(path, "SVG")
        return f'<figure class="chart" data-name="{escape(name)}">{drawn}<p class="save">{links}</p></figure>'

    def link(self, path: Path, text: Cell) -> Html:
        """Return a link to a file or folder."""
        return Html(f'<a href="{self.address(path)}">{_html(text)}</a>')

    def address(self, path: Path) -> str:
        """Return the address of a file or folder relative to the page, so that both can be moved together."""
        return quote(os.path.relpath(path, self.folder))

    def add(self, name: str, heading: str, *blocks: str) -> None:
        """Add a part."""
        self.sections.append((name, heading, "\n".join(blocks)))

    def html(self) -> str:
        """Return the whole file."""
        files = {kind: _asset(f"page.{kind}") for kind in ("html", "css", "js")}
        nav = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in self.sections)
        parts = "\n".join(
            f'<section id="{name}" aria-labelledby="{name}-heading"><h2 id="{name}-heading">{escape(heading)}</h2>\n'
            f"{body}\n</section>"
            for name, heading, body in self.sections
        )
        light, dark = (
            "".join(f"--{name}:{colour};" for name, colour in custom_properties(dark).items()) for dark in (False, True)
        )
        style = Template(files["css"]).substitute(light=light, dark=dark)
        return Template(files["html"]).substitute(
            title=escape(self.title), subtitle=self.subtitle, nav=nav, sections=parts, style=style, script=files["js"]
        )


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    left: Sequence[int] = (),
    marked: Sequence[int] = (),
    total: Sequence[Cell] = (),
) -> str:
    """Return a table that scrolls by itself where it is too wide, and can be sorted, filtered and copied.

    Args:
        headings: headings of the columns.
        rows: cells of each row.
        left: numbers of the columns that are aligned left.
        marked: numbers of the rows that are coloured.
        total: cells of a last row that sums up the others, and stays where it is; empty for none.
    """

    def line(tag: str, cells: Sequence[Cell], scope: str = "") -> str:
        return "".join(f"<{tag}{scope}{_class(i, left, cell)}>{_html(cell)}</{tag}>" for i, cell in enumerate(cells))

    look = dict.fromkeys(marked, " class=back")
    body = "".join(f"<tr{look.get(index, '')}>{line('td', row)}</tr>\n" for index, row in enumerate(rows))
    foot = f"<tfoot><tr>{line('td', total)}</tr></tfoot>" if total else ""
    head = f"<thead><tr>{line('th', headings, ' scope=col')}</tr></thead>"
    return f'<div class="scroll" tabindex="0"><table class="data">{head}\n<tbody>{body}</tbody>{foot}</table></div>'


def heat_table(corner: str, groups: Mapping[str, Mapping[str, Sequence[tuple[float | None, str]]]]) -> str:
    """Return a table of shares whose cells are the darker the larger their share is.

    Args:
        corner: heading of the first column.
        groups: a share (None where it is not known) and its text for each row, by column, by group of columns.
            The column that is named like `corner` holds the names of the rows.
    """
    groups = dict(groups)
    names = groups.pop(corner)[corner]
    top = "".join(
        f"<th scope=colgroup colspan={len(columns)}>{escape(group)}</th>" for group, columns in groups.items()
    )
    head = "".join(f"<th scope=col>{escape(column)}</th>" for columns in groups.values() for column in columns)
    lines = []
    for index, (_, name) in enumerate(names):
        cells = [_heat_cell(*cells[index]) for columns in groups.values() for cells in columns.values()]
        lines.append(f'<tr><th scope=row class="l">{escape(name)}</th>{"".join(cells)}</tr>\n')
    return (
        f'<div class="scroll" tabindex="0"><table class="heat"><thead><tr><th scope=col class="l" rowspan=2>'
        f"{escape(corner)}</th>{top}</tr><tr>{head}</tr></thead>\n<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _heat_cell(share: float | None, text: str) -> str:
    if share is None:
        return "<td></td>"
    return f'<td style="--share:{max(0.0, min(share, 1.0)):.2f}">{escape(text)}</td>'


def bar(share: float, text: str) -> Html:
    """Return the content of a cell that is filled up to a share."""
    return Html(f'<span class="bar" style="--share:{share:.3f}">{escape(text)}</span>')


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{_html(text)}</p>"


def bullets(lines: Iterable[str]) -> str:
    """Return a list of plain text."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def heading(text: str) -> str:
    """Return a heading within a part."""
    return f"<h3>{escape(text)}</h3>"


def folded(summary: str, *blocks: str) -> str:
    """Return blocks that are shown on demand, below a line of text."""
    return f"<details><summary>{_html(summary)}</summary>{''.join(blocks)}</details>"


def chooser(name: str, label: str, choices: Mapping[str, str]) -> str:
    """Return blocks of which one is shown at a time.

    Args:
        name: class that the blocks get.
        label: text beside the list of choices.
        choices: HTML of the blocks, by the text of their choices.
    """
    entries = "".join(f'<option value="{index}">{escape(choice)}</option>' for index, choice in enumerate(choices))
    blocks = "".join(
        f'<div class="{name}" data-choice="{index}"><h3 class="printed">{escape(choice)}</h3>{block}</div>'
        for index, (choice, block) in enumerate(choices.items())
    )
    return (
        f'<p class="tool"><label>{escape(label)}: <select data-chooses="{name}">{entries}</select></label></p>{blocks}'
    )


def side_by_side(*blocks: str) -> str:
    """Return blocks that stand beside each other where the page is wide enough."""
    return f'<div class="pair">{"".join(f"<div>{block}</div>" for block in blocks)}</div>'


def first_of(things: Sequence[T], most: int, what: str, where: str) -> tuple[Sequence[T], list[str]]:
    """Return as many things as are drawn, and a paragraph on the rest, if there is any.

    Args:
        things: all that could be drawn.
        most: how many are drawn at most.
        what: plural of what they are.
        where: where the rest can be found.
    """
    if len(things) <= most:
        return things, []
    return things[:most], [
        f'<p class="rest">{most} of {len(things)} {escape(what)} are shown here; {escape(where)}.</p>'
    ]


def _html(text: Cell) -> str:
    return text if isinstance(text, Html) else escape(text)


def _class(column: int, left: Sequence[int], cell: Cell) -> str:
    wide = len(cell) > 50 and not isinstance(cell, Html)
    return (' class="l w"' if wide else ' class="l"') if column in left else ""


def _asset(name: str) -> str:
    return resources.files("lt_lightning.report").joinpath(name).read_text(encoding="utf-8")
