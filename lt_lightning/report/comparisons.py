"""Published figures beside ours: which of them a group of results can be compared with, and as curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from lt_lightning.report.contents import Found, Group
from lt_lightning.results.published_figures import Comparison, Figure, compare, figures_of

SHOWN = {"accuracy": "test accuracy in %", "versus_dense": "accuracy less the dense network's, in points"}


@dataclass(frozen=True)
class Series:
    """One kind of ticket: pairs of what remains in per cent, as the paper counts, and the value.

    Attributes:
        ticket: kind of it.
        theirs: published.
        ours: beside them.
    """

    ticket: str
    theirs: tuple[tuple[float, float], ...]
    ours: tuple[tuple[float, float], ...]


def comparisons_of(found: Found, group: Group) -> list[Comparison]:
    """Ours beside the figures that any command of the group's data set and network named; wrong ones are left out."""
    configs = [search.config for search in found.searches] + [asked.config for asked in found.asked]
    configs = [config for config in configs if config.get("published") and _kind(config) == _kind_of(group)]
    structures: dict[str, Mapping[str, Any]] = {}
    for config in configs:
        structures |= config.get("structure") or {}
    figures: dict[Figure, None] = {}
    for config in configs:
        try:
            named = figures_of(OmegaConf.create({"published": config["published"]}))
        except (ValueError, TypeError, AttributeError):
            continue
        figures |= dict.fromkeys(named)
    return compare(figures, group.results, structures)


def series_of(comparisons: Sequence[Comparison], quantity: str) -> list[Series]:
    """Curves of a quantity, of those figures that tell what remains."""
    told = [each for each in comparisons if each.figure.quantity == quantity and each.figure.remaining is not None]
    tickets = dict.fromkeys(each.figure.ticket for each in told)
    return [
        Series(
            ticket,
            tuple((each.figure.remaining or 0.0, each.figure.value) for each in told if each.figure.ticket == ticket),
            tuple(dict.fromkeys((each.remaining or 0.0, each.value) for each in told if each.figure.ticket == ticket)),
        )
        for ticket in tickets
    ]


def _kind(config: Mapping[str, Any]) -> tuple[str, str]:
    labels = config.get("labels") or {}
    return str(labels.get("data")), str(labels.get("model"))


def _kind_of(group: Group) -> tuple[str, str]:
    return group.rows[0].data, group.rows[0].model
