"""The table of the documentation, from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

from benchmarks.compatibility.measure import EXACT

Row = Mapping[str, Any]

_BEGIN = "<!-- table: python -m benchmarks.compatibility --write -->"
_END = "<!-- end of the table -->"

_HEADS = (
    "Network", "Droppable", "Parameters at 50 / 25 %", "FLOPs at 50 / 25 %", "Difference, evaluation",
    "Difference, training", "Regroup", "Torch-Pruning: droppable", "Parameters at 50 / 25 %", "Exact",
)  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """Return a table in Markdown, a part for every source.

    Args:
        rows: what `look_at` returned.
    """
    parts = []
    for source in dict.fromkeys(row["source"] for row in rows):
        lines = [f"### {source}", "", _line(_HEADS), _line(["---", *["--:"] * (len(_HEADS) - 1)])]
        parts.append("\n".join([*lines, *(_line(_cells(row)) for row in rows if row["source"] == source)]))
    return "\n\n".join(parts)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: Row) -> list[str]:
    left = list(row["left"].values())
    if not left:
        return [row["network"], _percent(row["droppable"]), row["problem"], *[""] * 4, *_peer_cells(row["peer"])]
    training = [each["training"] for each in left if each["training"] is not None]
    return [
        row["network"],
        _percent(row["droppable"]),
        _both(left, "parameters"),
        _both(left, "flops"),
        _difference(max(each["evaluation"] for each in left)),
        _difference(max(training)) if training else "does not train",
        _difference(row["regroup"]),
        *_peer_cells(row["peer"]),
    ]


def _peer_cells(peer: Row | None) -> list[str]:
    if peer is None:
        return [""] * 3
    if peer["problem"]:
        return [_percent(peer["droppable"]), "fails", ""]
    left = list(peer["left"].values())
    exact = max(each["evaluation"] for each in left)
    said = "yes" if exact <= EXACT else f"no, {exact:.0e}" if exact < inf else "no, other shapes"
    if any(each["training"] == inf for each in left):
        said = f"{said}; does not train"
    return [_percent(peer["droppable"]), _both(left, "parameters"), said]


def _both(left: Sequence[Row], key: str) -> str:
    return " / ".join(_percent(each[key]) for each in left)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def _difference(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.0e}"


def behind(rows: Sequence[Row]) -> list[str]:
    """Return in words where something is not exact, or where Torch-Pruning runs and drops more."""
    lines = []
    for row in rows:
        name = f"{row['source']} {row['network']}"
        if row["problem"]:
            lines.append(f"{name}: {row['problem']}")
        for density, left in row["left"].items():
            worst = max(left["evaluation"], left["training"] or 0.0)
            if worst > EXACT:
                lines.append(f"{name}: differs by {worst:.0e} at {density}")
        if (row["regroup"] or 0.0) > EXACT:
            lines.append(f"{name}: regrouped it differs by {row['regroup']:.0e}")
        peer = row["peer"]
        if peer and not peer["problem"] and peer["droppable"] > row["droppable"] + 1e-3:
            lines.append(f"{name}: may drop {row['droppable']:.3f}, and Torch-Pruning {peer['droppable']:.3f}")
    return lines


def insert(page: Path, text: str) -> None:
    """Put a table into a page, between its marks.

    Raises:
        ValueError: if the page has no marks.
    """
    before, begin, rest = page.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"{page} has no lines {_BEGIN} and {_END}: put them where the table belongs")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
