"""Results over seeds: mean, standard deviation, number and verdict for each ticket of a sweep."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev

from rich.box import SIMPLE_HEAD
from rich.table import Table

from lt_lightning.results.records import Result
from lt_lightning.results.ticket_kind import TicketKind
from lt_lightning.results.verdict import STANDARD, Rule, Verdict, verdict
from lt_lightning.ticket_names import DENSE, UNSTRUCTURED

Key = tuple[str, str, str, int, str, str, str]


@dataclass(frozen=True)
class Row:
    """One kind of ticket over seeds; means, and sample standard deviations (None with one seed).

    Attributes:
        data: name of the data set.
        model: name of the network.
        setting: what else tells the sweep's jobs apart, besides the seed: `pruning.rate=0.2`.
        round: of the ticket.
        structure: likewise.
        control: of the ticket that it is; empty for the ticket itself.
        origin: data set whose search found the masks; empty where it is the searches' own.
        seeds: number of them.
        density: that the ticket executes (an unstructured one: keeps).
        executed: share of the prunable weights that take part when the plan is executed.
        accuracy: on the test set.
        accuracy_sd: of it.
        difference: of accuracy to the dense network of the same seed.
        difference_sd: of it.
        params_ratio: as in `Result`.
        flops_ratio: likewise.
        time_ratio_inference: likewise.
        time_ratio_training: likewise.
        lower: end of the one-sided interval of `difference`; see `Verdict`.
        wins_by_mean: the paper's rule; likewise.
        wins: the verdict by the interval; likewise.
    """

    data: str
    model: str
    setting: str
    round: int
    structure: str
    control: str
    origin: str
    seeds: int
    density: float
    executed: float
    accuracy: float
    accuracy_sd: float | None
    difference: float
    difference_sd: float | None
    params_ratio: float
    flops_ratio: float
    time_ratio_inference: float
    time_ratio_training: float
    lower: float | None
    wins_by_mean: bool | None
    wins: bool | None

    @property
    def kind(self) -> TicketKind:
        """The kind of the tickets."""
        return TicketKind(self.structure, self.control, self.origin)

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that counts as left out: not executed, or, if unstructured, not kept."""
        return 1 - (self.density if self.structure == UNSTRUCTURED else self.executed)


def aggregate(results: Iterable[tuple[str, Result]], rule: Rule = STANDARD) -> list[Row]:
    """Rows of results that are told apart by setting, data, model, round, structure and control.

    Args:
        results: with the setting of the job that they belong to; one that jobs of the same setting share may come
            more than once.
        rule: what counts as winning.
    """
    groups: dict[Key, dict[str, Result]] = {}
    for setting, result in results:
        key = (result.data, result.model, setting, result.round, result.structure, result.control, result.origin)
        groups.setdefault(key, {})[result.place] = result
    return [_row(key, list(groups[key].values()), rule) for key in sorted(groups)]


def _row(key: Key, results: Sequence[Result], rule: Rule) -> Row:
    def mean(value: Callable[[Result], float]) -> float:
        return fmean(map(value, results))

    def deviation(value: Callable[[Result], float]) -> float | None:
        return stdev(map(value, results)) if len(results) > 1 else None

    def difference(result: Result) -> float:
        return result.accuracy - result.dense_accuracy

    told = verdict(_by_seed(results, difference), rule) if key[4] != DENSE else Verdict(None, None, None)
    return Row(
        *key,
        seeds=len({result.seed for result in results}),
        density=mean(lambda result: result.density),
        executed=mean(lambda result: result.executed),
        accuracy=mean(lambda result: result.accuracy),
        accuracy_sd=deviation(lambda result: result.accuracy),
        difference=mean(difference),
        difference_sd=deviation(difference),
        params_ratio=mean(lambda result: result.params_ratio),
        flops_ratio=mean(lambda result: result.flops_ratio),
        time_ratio_inference=mean(lambda result: result.time_ratio_inference),
        time_ratio_training=mean(lambda result: result.time_ratio_training),
        **asdict(told),
    )


def _by_seed(results: Sequence[Result], value: Callable[[Result], float]) -> list[float]:
    """A mean for each seed: what a seed yielded twice is no replicate."""
    seeds = dict.fromkeys(result.seed for result in results)
    return [fmean(value(result) for result in results if result.seed == seed) for seed in seeds]


def settings_of(
    jobs: Sequence[Mapping[str, str]], apart: Sequence[str] = ("seed", "data", "model", "structure", "transfer.from")
) -> list[str]:
    """What tells jobs apart besides the seed, and besides what has a column of its own.

    Args:
        jobs: overrides of each.
        apart: keys that are left out.

    >>> settings_of([{"seed": "0", "pruning.rate": "0.2", "a": "1"}, {"seed": "1", "pruning.rate": "0.5", "a": "1"}])
    ['pruning.rate=0.2', 'pruning.rate=0.5']
    """
    keys = dict.fromkeys(key for job in jobs for key in job if key not in apart)
    varying = [key for key in keys if len({job.get(key) for job in jobs}) > 1]
    return [", ".join(f"{key}={job[key]}" for key in varying if key in job) for job in jobs]


def aggregate_table(rows: Sequence[Row], rule: Rule = STANDARD) -> Table:
    """For people: accuracies in per cent, differences in points, mean and standard deviation; and the verdict."""
    data, models = (sorted(set(names)) for names in ((row.data for row in rows), (row.model for row in rows)))
    caption = _caption(rule) if any(row.seeds > 1 for row in rows) else "One seed: no verdict."
    title = ", ".join(data + models * (len(models) == 1))
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    settings = any(row.setting for row in rows)
    for heading, shown in {
        "data": len(data) > 1, "model": len(models) > 1, "setting": settings, "round": True, "ticket": True,
        "density": True, "accuracy": True, "vs dense": True, "lower": True, "n": True,
    }.items():  # fmt: skip
        if shown:
            left = heading in ("data", "model", "setting", "ticket")
            table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        last = after is None or (row.data, row.model, row.setting) != (after.data, after.model, after.setting)
        cells = [row.data] * (len(data) > 1) + [row.model] * (len(models) > 1) + [short(row.setting)] * settings
        cells += [str(row.round), name_of(row), f"{row.density:.1%}", _percent(row.accuracy, row.accuracy_sd)]
        cells += ["" if row.round == 0 else _percent(row.difference, row.difference_sd, "+")]
        cells += [_lower(row), str(row.seeds)]
        table.add_row(*cells, end_section=last)
    return table


def short(setting: str) -> str:
    """Without the groups that keys are in: `rate=0.2`."""
    return re.sub(r"(\w+\.)+(?=\w+=)", "", setting)


def name_of(ticket: Row | Result) -> str:
    """Of a ticket, or of a control under its ticket."""
    return f"  {ticket.control}" if ticket.control else str(ticket.kind)


def _lower(row: Row) -> str:
    return "" if row.lower is None else f"{100 * row.lower:+.2f} {'✓' if row.wins else '✗'}"


def _caption(rule: Rule) -> str:
    return (
        f"Lower: lower end of the one-sided {100 * rule.confidence:g} % interval of the difference over n paired "
        f"seeds; ✓: above the margin of {-100 * rule.margin:g} points, ✗: not shown. By the paper's rule a ticket wins "
        "whose mean difference is not negative."
    )


def _percent(mean: float, deviation: float | None, sign: str = "") -> str:
    told = f"{100 * mean:{sign}.2f}"
    return told if deviation is None else f"{told} ±{100 * deviation:.2f}"
