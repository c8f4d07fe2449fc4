"""What became of every layer: densities asked and achieved, multiply-adds and time before and after, what fell back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lt_lightning.ticket_names import DENSE, UNSTRUCTURED


@dataclass(frozen=True)
class LayerRow:
    """Of a layer of one ticket.

    Attributes:
        layer: its name.
        form: how it is executed.
        asked: share of its weights that the round's unstructured mask keeps.
        achieved: share that the ticket executes (an unstructured one: keeps).
        flops_before: multiply-adds of one sample, dense.
        flops_after: likewise, by the plan; an unstructured layer runs whole.
        seconds_before: of inference, in the dense network; None if not measured.
        seconds_after: likewise, in the network that executes the ticket.
        fell_back: whether a layer that was to be structured runs dense.
        why: it did, or what else is particular about it.
    """

    layer: str
    form: str
    asked: float
    achieved: float
    flops_before: int
    flops_after: int
    seconds_before: float | None
    seconds_after: float | None
    fell_back: bool
    why: str


def layer_rows(card: Mapping[str, Any], times: Mapping[str, Any]) -> list[LayerRow]:
    """Rows of a ticket's layers; what cannot be read is left out.

    Args:
        card: as it stands beside the ticket.
        times: of its layers; empty if they were not measured.
    """
    layers = card.get("layers")
    structured = card.get("structure") not in (DENSE, UNSTRUCTURED)
    if not isinstance(layers, Mapping):
        return []
    prunable, left = set(card.get("prunable") or ()), set(card.get("left_dense") or ())
    choice, seconds = (_mapping(times.get(key)) for key in ("choice", "seconds"))
    rows = []
    for name, report in layers.items():
        try:
            dense, size = report["form"] == "dense", report["size"]
            timed = _mapping(seconds.get(name))
            rows.append(LayerRow(
                name, report["form"], report["asked"] / size,
                (report["kept"] if report["form"] == "unstructured" else report["executed"]) / size,
                size * report["positions"], report["executed"] * report["positions"],
                _number(timed.get("dense")), _number(timed.get("ticket")),
                structured and name in prunable and (dense or name in left or choice.get(name) == "dense"),
                report["note"] or _left(name in left, choice.get(name) == "dense"),
            ))  # fmt: skip
        except (KeyError, TypeError, ZeroDivisionError):
            continue
    return rows


def _left(training: bool, inference: bool) -> str:
    """Where a layer of blocks runs dense since that was measured faster."""
    where = [what for what, left in (("training", training), ("inference", inference)) if left]
    return f"computed dense in {' and '.join(where)}: faster so at this batch size" if where else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
