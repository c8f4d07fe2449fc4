"""Tables for people: plain columns on the terminal, Markdown in files, and the numbers in their cells."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table


def terminal_table(title: str, heads: Sequence[str], left: int) -> Table:
    """Return an empty table without rules, whose first `left` columns are aligned left and the others right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index, head in enumerate(heads):
        table.add_column(head, justify="left" if index < left else "right", no_wrap=True)
    return table


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Return a table in GitHub's dialect.

    Args:
        lines: cells of each line; the first has the headings.

    >>> print(markdown_table([["ticket", "50 %"], ["refill", "+0.10"]]), end="")
    | ticket | 50 % |
    |-|-|
    | refill | +0.10 |
    """
    rows = ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines]
    rows.insert(1, "|-" * len(lines[0]) + "|\n")
    return "".join(rows)


def number(value: float | None, form: str) -> str:
    """Return a number in a format; nothing where it is not known (None or NaN).

    >>> number(1.25, ".1f"), number(float("nan"), ".1f"), number(None, "g")
    ('1.2', '', '')
    """
    return "" if value is None or value != value else format(value, form)


def percent(share: float, decimals: int = 0) -> str:
    """Return a share in per cent; nothing where it is not known (NaN).

    >>> percent(0.125, 1), percent(float("nan"))
    ('12.5 %', '')
    """
    return "" if share != share else f"{100 * share:.{decimals}f} %"
