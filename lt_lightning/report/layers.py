"""What became of every layer, and what a search cost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lt_lightning.report.contents import Search, named
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
                name, report["form"], report["target"] / size,
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


# What a search cost: trainings as the paper counts them, seconds, and those over a dense training's.

DENSE_TRAINING, ROUNDS, WHOLE = "dense training (round 0)", "rounds of pruning", "together"


@dataclass(frozen=True)
class Cost:
    """Of one part of a search.

    Attributes:
        part: for people.
        trainings: number of them, as the paper counts: one a round, the dense one too, and one a ticket.
        seconds: wall time of all of them.
        in_dense: the same over that of the dense training; NaN if that is not known.
    """

    part: str
    trainings: int
    seconds: float
    in_dense: float


def costs_of(search: Search) -> list[Cost]:
    """Costs of the dense training, the rounds, each kind of ticket that was retrained alone, and all together.

    Fewer where the search is not finished; none without any training.
    """
    parts: dict[str, list[float]] = {}
    for facts in search.rounds:
        if (seconds := _seconds(facts)) is not None:
            parts.setdefault(ROUNDS if facts["round"] else DENSE_TRAINING, []).append(seconds)
    dense = next(iter(parts.get(DENSE_TRAINING, [])), math.nan)
    for control in (False, True):
        for result in search.results:
            if bool(result.control) == control and retrained_alone(result.place):
                parts.setdefault(named(result.structure, result.control), []).append(result.train_seconds)
    costs = [_cost(part, seconds, dense) for part, seconds in parts.items()]
    return [*costs, _cost(WHOLE, [each for seconds in parts.values() for each in seconds], dense)] if costs else []


def retrained_alone(place: str) -> bool:
    """Whether a ticket was trained outside of the search's rounds, by its folder.

    >>> retrained_alone("search/round_01/refill-0a1b2c3d"), retrained_alone("search/round_01/unstructured")
    (True, False)
    """
    return re.search(r"-[0-9a-f]{8}$", place) is not None


def _cost(part: str, seconds: list[float], dense: float) -> Cost:
    return Cost(part, len(seconds), sum(seconds), sum(seconds) / dense if dense > 0 else math.nan)


def _seconds(facts: Mapping[str, Any]) -> float | None:
    """Of a round, sparsifying included."""
    values = (facts.get("train_seconds"), facts.get("sparsify_seconds", 0.0))
    if not isinstance(facts.get("round"), int) or not all(isinstance(value, (int, float)) for value in values):
        return None
    return float(sum(values))
