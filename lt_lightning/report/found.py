"""What is there to report: searches with their results, and how their tickets are named and grouped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lt_lightning.study.aggregate import Row, short
from lt_lightning.study.results import Result
from lt_lightning.study.status import State


@dataclass(frozen=True)
class Search:
    """What is there of one search and the tickets made from it.

    Attributes:
        folder: of the search.
        config: that it was begun with, as plain values; empty if it cannot be read.
        results: of all its finished tickets.
        states: of its tasks.
        rounds: facts of every round that is trained, from `rounds.json`.
        setting: what else tells it apart from searches of the same data and network, besides the seed.
    """

    folder: Path
    config: Mapping[str, Any]
    results: tuple[Result, ...]
    states: tuple[State, ...]
    rounds: tuple[Mapping[str, Any], ...]
    setting: str = ""

    @property
    def kind(self) -> tuple[str, str]:
        """Data set and network, by their labels."""
        labels = self.config.get("labels") or {}
        if labels:
            return str(labels.get("data", "?")), str(labels.get("model", "?"))
        return (self.results[0].data, self.results[0].model) if self.results else ("?", "?")

    @property
    def seed(self) -> int | None:
        """Of the search."""
        seed = self.config.get("seed", self.results[0].seed if self.results else None)
        return seed if isinstance(seed, int) else None

    def place_of(self, result: Result) -> Path:
        """Folder of a ticket."""
        return self.folder.parent / result.place

    def setting_of(self, result: Result) -> str:
        """That of the search; and of the ticket's options, where the same round has several of that name."""
        key = (result.round, result.structure, result.twin)
        alike = [each for each in self.results if (each.round, each.structure, each.twin) == key]
        name = Path(result.place).name
        return self.setting if len(alike) < 2 else ", ".join(filter(None, (self.setting, f"ticket={name}")))


@dataclass(frozen=True)
class Asked:
    """One job that asked for some of the work.

    Attributes:
        command: that began it, or the sweep that it is of, as on the command line.
        config: composed from it, not resolved.
    """

    command: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """What is under a folder.

    Attributes:
        path: that was asked for.
        root: that the searches stand under.
        searches: ordered by data set, network, setting and seed.
        asked: the jobs that asked for the work.
        missing: what is not there or cannot be read, one line each.
    """

    path: Path
    root: Path
    searches: tuple[Search, ...]
    asked: tuple[Asked, ...]
    missing: tuple[str, ...]

    @property
    def results(self) -> list[tuple[str, Result]]:
        """All results, each with the setting that it belongs to."""
        return [(search.setting_of(result), result) for search in self.searches for result in search.results]


@dataclass(frozen=True)
class Group:
    """What stands in one figure: a data set, a network and a setting.

    Attributes:
        rows: tickets over seeds.
        results: that they are made from.
    """

    rows: tuple[Row, ...]
    results: tuple[Result, ...]

    @property
    def title(self) -> str:
        """For people."""
        row = self.rows[0]
        return ", ".join(filter(None, (row.data, row.model, short(row.setting))))


def groups_of(found: Found, rows: Sequence[Row]) -> list[Group]:
    """Rows and results that belong together."""
    results = found.results
    return [
        Group(
            tuple(row for row in rows if (row.data, row.model, row.setting) == key),
            tuple(result for setting, result in results if (result.data, result.model, setting) == key),
        )
        for key in dict.fromkeys((row.data, row.model, row.setting) for row in rows)
    ]


def name_of(ticket: Row | Result) -> str:
    """Of a ticket; that of a twin says so.

    >>> name_of(Result(**{**dict.fromkeys(Result.__dataclass_fields__, 0), "structure": "refill", "twin": "reinit"}))
    'refill (reinit twin)'
    """
    return named(ticket.structure, ticket.twin)


def named(structure: str, twin: str) -> str:
    """Likewise, from its parts."""
    return f"{structure} ({twin} twin)" if twin else structure
