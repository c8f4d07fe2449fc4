"""Extreme ticket sparsity of each kind of ticket in a sweep, by the paper's definition and by the interval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lt_lightning.results.aggregate import Row, short_setting
from lt_lightning.results.ticket_kind import TicketKind
from lt_lightning.results.verdict import Candidate, Rule, Verdict, extreme
from lt_lightning.storage.layout import DENSE, UNSTRUCTURED

Key = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class ExtremeRow:
    """The sparsest winning tickets of one kind; None where none wins, or where there is no verdict.

    Attributes:
        data: name of the data set.
        model: name of the network.
        setting: what else tells the sweep's jobs apart, besides the seed.
        structure: structure of the tickets.
        origin: data set whose search found the masks; empty where it is the searches' own.
        structured: whether sparsity counts what is executed; that of unstructured tickets, which run whole, counts
            what they keep.
        seeds: number of seeds that the tickets were trained with.
        rounds: rounds that were trained with all these seeds, as `1 2 4`.
        others: rounds that were trained with fewer of them. They do not count: bisection goes on to a round with
            those seeds alone that did well, or badly, before.
        margin: margin of the rule (see `Rule`).
        confidence: confidence of the rule.
        sparsity_by_mean: share of the prunable weights that the sparsest ticket leaves out that wins by the mean.
        round_by_mean: its round.
        sparsity_shown: share that the sparsest ticket leaves out that is shown to win (see `Extreme`).
        round_shown: its round.
    """

    data: str
    model: str
    setting: str
    structure: str
    origin: str
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

    @property
    def kind(self) -> TicketKind:
        """Kind of the tickets."""
        return TicketKind(self.structure, "", self.origin)


def extremes(rows: Sequence[Row], rule: Rule) -> list[ExtremeRow]:
    """Return a row for each kind of ticket of each data set, network and setting, in the order of the rows."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        if row.structure != DENSE and not row.control:
            groups.setdefault((row.data, row.model, row.setting, row.structure, row.origin), []).append(row)
    return [_extreme_row(key, group, rule) for key, group in groups.items()]


def _extreme_row(key: Key, rows: Sequence[Row], rule: Rule) -> ExtremeRow:
    seeds = max(row.seeds for row in rows)
    complete = [row for row in rows if row.seeds == seeds]
    sparsest = extreme(
        [Candidate(row.round, row.sparsity, Verdict(row.lower, row.wins_by_mean, row.wins)) for row in complete]
    )
    structured = key[3] != UNSTRUCTURED and any(row.sparsity > 0 for row in rows)
    return ExtremeRow(
        *key, structured, seeds, _rounds(complete), _rounds([row for row in rows if row not in complete]),
        rule.margin, rule.confidence,
        *(None, None) if sparsest.by_mean is None else (sparsest.by_mean.sparsity, sparsest.by_mean.round),
        *(None, None) if sparsest.shown is None else (sparsest.shown.sparsity, sparsest.shown.round),
    )  # fmt: skip


def verdict_lines(rows: Sequence[ExtremeRow]) -> Iterator[str]:
    """Yield what people read of the extreme tickets: a heading, and a line for each kind of ticket."""
    if not rows:
        return
    if all(row.seeds < 2 for row in rows):
        yield "One seed: no verdict."
        return
    rule = Rule(rows[0].margin, rows[0].confidence)
    yield f"Extreme ticket sparsity, by the mean (the paper's) and as shown ({rule}):"
    verdicts = named_verdicts(rows)
    width = max(len(name) for name, _ in verdicts)
    for name, text in verdicts:
        yield f"  {name:{width}}  {text}"


def named_verdicts(rows: Sequence[ExtremeRow]) -> list[tuple[str, str]]:
    """Return pairs of the tickets' name and the verdict on them, for people."""
    return [(_name(row, rows), _verdict_text(row)) for row in rows]


def _verdict_text(row: ExtremeRow) -> str:
    if row.seeds < 2:
        return "one seed: no verdict"
    if not row.structured and row.structure != UNSTRUCTURED:
        return "no structure that is executed: runs whole"
    by_mean = _sparsity(row.sparsity_by_mean, row.round_by_mean)
    shown = _sparsity(row.sparsity_shown, row.round_shown)
    runs_whole = "" if row.structured else "; kept weights counted, runs whole"
    text = f"by the mean {by_mean}, shown {shown} ({row.seeds} seeds{runs_whole})"
    if not row.others:
        return text
    return f"{text}; trained with fewer seeds, not counted: round {row.others.replace(' ', ', ')}"


def _rounds(rows: Sequence[Row]) -> str:
    return " ".join(str(row.round) for row in rows)


def _sparsity(sparsity: float | None, number: int | None) -> str:
    return "none" if sparsity is None else f"{sparsity:.1%} (round {number})"


def _name(row: ExtremeRow, rows: Sequence[ExtremeRow]) -> str:
    """Return the tickets' name, with data, network and setting as far as the rows differ in them."""
    parts = [row.data] * (len({each.data for each in rows}) > 1) + [row.model] * (len({r.model for r in rows}) > 1)
    parts += [short_setting(row.setting)] * bool(row.setting)
    return ", ".join([*parts, str(row.kind)])
