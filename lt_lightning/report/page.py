"""The page: parts with figures, tables and text, in one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from string import Template
from typing import Any

from lt_lightning.report.figures import Figure


@dataclass
class Page:
    """Collects parts of a page.

    Attributes:
        title: of the page.
        subtitle: below it.
        figures: of all parts, by the number in their places.
        sections: name, heading and HTML of each part.
    """

    title: str
    subtitle: str
    figures: list[Figure] = field(default_factory=list)
    sections: list[tuple[str, str, str]] = field(default_factory=list)

    def figure(self, figure: Figure) -> str:
        """The place of a figure, which is drawn when its part is looked at."""
        self.figures.append(figure)
        return f'<div class="figure" data-figure="{len(self.figures) - 1}"></div>'

    def add(self, name: str, heading: str, *blocks: str) -> None:
        """Adds a part."""
        self.sections.append((name, heading, "\n".join(blocks)))

    def html(self) -> str:
        """The whole file, with plotly, which draws, in it."""
        template = resources.files("lt_lightning.report").joinpath("page.html").read_text(encoding="utf-8")
        nav = "".join(f'<button data-part="{name}">{escape(heading)}</button>' for name, heading, _ in self.sections)
        parts = "\n".join(
            f'<section id="{name}"><h2>{escape(heading)}</h2>\n{body}\n</section>'
            for name, heading, body in self.sections
        )
        return Template(template).substitute(
            title=escape(self.title), subtitle=escape(self.subtitle), nav=nav, sections=parts,
            plotly=_plotly(), figures=json.dumps(_finite(self.figures), allow_nan=False).replace("</", "<\\/"),
        )  # fmt: skip


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Sequence[int] = (),
    marked: Sequence[int] = (),
    bold: Sequence[int] = (),
) -> str:
    """A table that scrolls by itself where it is too wide.

    Args:
        headings: of the columns.
        rows: of cells, plain text.
        left: columns of text.
        marked: rows to be seen at once, in colour.
        bold: rows that sum others up.
    """

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(f"<{tag}{_class(i, left, cell)}>{escape(cell)}</{tag}>" for i, cell in enumerate(cells))

    look = dict.fromkeys(marked, " class=back") | dict.fromkeys(bold, " class=sum")
    body = "".join(f"<tr{look.get(index, '')}>{line('td', row)}</tr>\n" for index, row in enumerate(rows))
    head = f"<thead><tr>{line('th', headings)}</tr></thead>"
    return f'<div class="scroll"><table>{head}\n<tbody>{body}</tbody></table></div>'


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{escape(text)}</p>"


def bullets(lines: Iterable[str]) -> str:
    """A list of plain text."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def heading(text: str) -> str:
    """Within a part."""
    return f"<h3>{escape(text)}</h3>"


def chooser(name: str, label: str, choices: Mapping[str, str]) -> str:
    """Blocks of which one is seen at a time.

    Args:
        name: of the class that the blocks get.
        label: beside the list to choose from.
        choices: HTML of each block, by what it is called.
    """
    entries = "".join(f'<option value="{index}">{escape(choice)}</option>' for index, choice in enumerate(choices))
    blocks = "".join(
        f'<div class="{name}" data-choice="{index}"{" hidden" if index else ""}>{block}</div>'
        for index, block in enumerate(choices.values())
    )
    return f'<p><label>{escape(label)}: <select data-chooses="{name}">{entries}</select></label></p>{blocks}'


def side_by_side(*blocks: str) -> str:
    """Blocks beside each other where the page is wide enough."""
    return f'<div class="pair">{"".join(f"<div>{block}</div>" for block in blocks)}</div>'


def _class(column: int, left: Sequence[int], cell: str) -> str:
    return (' class="l w"' if len(cell) > 50 else ' class="l"') if column in left else ""


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is none is null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and value - value != 0 else value


def _plotly() -> str:
    return resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
