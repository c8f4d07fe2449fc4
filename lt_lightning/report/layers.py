"""What became of every layer: densities asked and achieved, multiply-adds before and after, what fell back and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LayerRow:
    """Of a layer of one ticket.

    Attributes:
        layer: its name.
        form: how it is executed.
        asked: share of its weights that the round's unstructured mask keeps.
        achieved: share that the ticket executes (an unstructured one: keeps).
        flops_before: multiply-adds of one sample, dense.
        flops_after: likewise, as executed; an unstructured layer runs whole.
        fell_back: whether a layer that was to be structured runs dense.
        why: it did, or what else is particular about it.
    """

    layer: str
    form: str
    asked: float
    achieved: float
    flops_before: int
    flops_after: int
    fell_back: bool
    why: str


def layer_rows(card: Mapping[str, Any]) -> list[LayerRow]:
    """Rows of a ticket's card as it stands beside the ticket; what cannot be read of it is left out."""
    layers = card.get("layers")
    structured = card.get("structure") not in ("dense", "unstructured")
    if not isinstance(layers, Mapping):
        return []
    prunable, left = set(card.get("prunable") or ()), set(card.get("left_dense") or ())
    rows = []
    for name, report in layers.items():
        try:
            dense, size = report["form"] == "dense", report["size"]
            rows.append(LayerRow(
                name, report["form"], report["asked"] / size,
                (report["kept"] if report["form"] == "unstructured" else report["executed"]) / size,
                size * report["positions"], report["executed"] * report["positions"],
                structured and name in prunable and (dense or name in left),
                report["note"] or ("computed dense: faster so at this batch size" if name in left else ""),
            ))  # fmt: skip
        except (KeyError, TypeError, ZeroDivisionError):
            continue
    return rows
