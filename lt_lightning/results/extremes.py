"""Extreme ticket sparsity of each structure in a sweep, by the paper's definition and by the interval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lt_lightning.results.aggregate import Row, short
from lt_lightning.results.verdict import Candidate, Rule, Verdict, extreme
from lt_lightning.ticket_names import DENSE, UNSTRUCTURED


@dataclass(frozen=True)
class ExtremeRow:
    """The sparsest winning tickets of one structure; None where none wins, or where there is no verdict.

    Attributes:
        data: name of the data set.
        model: name of the network.
        setting: what else tells the sweep's jobs apart, besides the seed.
        structure: of the tickets.
        structured: whether what counts is executed; unstructured tickets are counted by what they keep and run whole.
        seeds: that its tickets were trained with.
        rounds: that were trained with all these seeds, as `1 2 4`.
        others: with fewer of them. They do not count: bisection goes on to a round with those seeds alone that did
            well, or badly, before.
        margin: see `Rule`.
        confidence: likewise.
        sparsity_by_mean: share of the prunable weights that the sparsest ticket leaves out that wins by the mean.
        round_by_mean: its round.
        sparsity_shown: likewise of the sparsest ticket that is shown to win (see `Extreme`).
        round_shown: its round.
    """

    data: str
    model: str
    setting: str
    structure: str
    structured: bool
    seeds: int
    rounds: str
    others: str
    margin: float
    confidence: float
    sparsity_by_mean: float | None
    round_by_mean: int | None
    sparsity_shown: float | None
    round_shown: int | None


def extremes(rows: Sequence[Row], rule: Rule) -> list[ExtremeRow]:
    """One for each structure of each data set, network and setting, in the order of the rows."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        if row.structure != DENSE and not row.control:
            groups.setdefault((row.data, row.model, row.setting, row.structure), []).append(row)
    return [_extreme(key, group, rule) for key, group in groups.items()]


def _extreme(key: tuple[str, str, str, str], rows: Sequence[Row], rule: Rule) -> ExtremeRow:
    seeds = max(row.seeds for row in rows)
    whole = [row for row in rows if row.seeds == seeds]
    found = extreme(
        [Candidate(row.round, row.sparsity, Verdict(row.lower, row.wins_by_mean, row.wins)) for row in whole]
    )
    structured = key[3] != UNSTRUCTURED and any(row.sparsity > 0 for row in rows)
    return ExtremeRow(
        *key, structured, seeds, _rounds(whole), _rounds([row for row in rows if row not in whole]),
        rule.margin, rule.confidence,
        *(None, None) if found.by_mean is None else (found.by_mean.sparsity, found.by_mean.round),
        *(None, None) if found.shown is None else (found.shown.sparsity, found.shown.round),
    )  # fmt: skip


def verdict_lines(rows: Sequence[ExtremeRow]) -> Iterator[str]:
    """For people: what was found, a line for each structure."""
    if not rows:
        return
    if all(row.seeds < 2 for row in rows):
        yield "One seed: no verdict."
        return
    rule = Rule(rows[0].margin, rows[0].confidence)
    yield f"Extreme ticket sparsity, by the mean (the paper's) and as shown ({rule}):"
    verdicts = verdicts_of(rows)
    width = max(len(name) for name, _ in verdicts)
    for name, told in verdicts:
        yield f"  {name:{width}}  {told}"


def verdicts_of(rows: Sequence[ExtremeRow]) -> list[tuple[str, str]]:
    """For people: each structure, and what was found of it."""
    return [(_name(row, rows), _told(row)) for row in rows]


def _told(row: ExtremeRow) -> str:
    if row.seeds < 2:
        return "one seed: no verdict"
    if not row.structured and row.structure != UNSTRUCTURED:
        return "no structure that is executed: runs whole"
    by_mean = _sparsity(row.sparsity_by_mean, row.round_by_mean)
    shown = _sparsity(row.sparsity_shown, row.round_shown)
    whole = "" if row.structured else "; kept weights counted, runs whole"
    told = f"by the mean {by_mean}, shown {shown} ({row.seeds} seeds{whole})"
    return f"{told}; trained by fewer seeds, not counted: round {row.others.replace(' ', ', ')}" if row.others else told


def _rounds(rows: Sequence[Row]) -> str:
    return " ".join(str(row.round) for row in rows)


def _sparsity(sparsity: float | None, number: int | None) -> str:
    return "none" if sparsity is None else f"{sparsity:.1%} (round {number})"


def _name(row: ExtremeRow, rows: Sequence[ExtremeRow]) -> str:
    """What tells it apart from the others."""
    parts = [row.data] * (len({each.data for each in rows}) > 1) + [row.model] * (len({r.model for r in rows}) > 1)
    parts += [short(row.setting)] * bool(row.setting)
    return ", ".join([*parts, row.structure])
