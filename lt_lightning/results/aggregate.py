"""Results over seeds: a row for each kind of ticket, with mean, deviation and verdict; extreme sparsities."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev

from lt_lightning.results.job_record import TicketKind
from lt_lightning.results.records import Result, is_wide
from lt_lightning.results.verdict import STANDARD, Candidate, Rule, Verdict, extreme, verdict_of
from lt_lightning.storage.layout import DENSE, UNSTRUCTURED

Key = tuple[str, str, str, int, str, str, str]


@dataclass(frozen=True)
class Row:
    """Means over seeds of one kind of ticket in one round, and sample standard deviations (None with one seed).

    Attributes:
        data: name of the data set.
        model: name of the network.
        setting: what else tells the sweep's jobs apart, besides the seed: `pruning.rate=0.2`.
        round: pruning round of the tickets.
        structure: structure of the tickets.
        control: name of the control that they are; empty for tickets themselves.
        origin: data set whose search found the masks; empty where it is the searches' own.
        seeds: number of seeds.
        density: share of the prunable weights that a ticket executes (an unstructured one: keeps).
        executed: share of the prunable weights that take part when the plan is executed.
        accuracy: accuracy on the test set.
        accuracy_sd: its standard deviation.
        difference: accuracy less that of the dense network of the same seed.
        difference_sd: its standard deviation.
        params_ratio: parameters to store, over the dense network's.
        flops_ratio: multiply-adds executed, over the dense network's.
        time_ratio_inference: time of inference over the dense network's, by the results whose spread is not wide if
            there are any; NaN if not measured.
        time_ratio_training: the same for a training step.
        lower: lower end of the one-sided interval of `difference`; see `Verdict`.
        wins_by_mean: verdict by the paper's rule; see `Verdict`.
        wins: verdict by the interval; see `Verdict`.
        time_spread_inference: largest spread of the results that `time_ratio_inference` is of; NaN if not known.
        time_spread_training: the same for a training step.
        total_epochs: number of epochs that a ticket and its ancestors were trained; 0 if not known.
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
    time_spread_inference: float = 0.0
    time_spread_training: float = 0.0
    total_epochs: float = 0.0

    @property
    def kind(self) -> TicketKind:
        """Kind of the tickets."""
        return TicketKind(self.structure, self.control, self.origin)

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that counts as left out: not executed, or, if unstructured, not kept."""
        return 1 - (self.density if self.structure == UNSTRUCTURED else self.executed)


def aggregate(results: Iterable[tuple[str, Result]], rule: Rule = STANDARD) -> list[Row]:
    """Return a row for each setting, data set, network, round and kind of ticket.

    Args:
        results: pairs of a job's setting and one of its results; a result that jobs of the same setting share may
            come more than once.
        rule: what counts as winning.
    """
    groups: dict[Key, dict[str, Result]] = {}
    for setting, result in results:
        key = (result.data, result.model, setting, result.round, result.structure, result.control, result.origin)
        groups.setdefault(key, {})[result.place] = result
    return [_row(key, list(groups[key].values()), rule) for key in sorted(groups)]


def _row(key: Key, results: Sequence[Result], rule: Rule) -> Row:
    def mean(value: Callable[[Result], float]) -> float:
        return fmean(_mean_of_each_seed(results, value))

    def deviation(value: Callable[[Result], float]) -> float | None:
        of_seeds = _mean_of_each_seed(results, value)
        return stdev(of_seeds) if len(of_seeds) > 1 else None

    def difference(result: Result) -> float:
        return result.accuracy - result.dense_accuracy

    inference, inference_spread = _mean_time([(r.time_ratio_inference, r.time_spread_inference) for r in results])
    training, training_spread = _mean_time([(r.time_ratio_training, r.time_spread_training) for r in results])
    is_dense = all(result.structure == DENSE for result in results)
    judged = Verdict(None, None, None) if is_dense else verdict_of(_mean_of_each_seed(results, difference), rule)
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
        time_ratio_inference=inference,
        time_ratio_training=training,
        time_spread_inference=inference_spread,
        time_spread_training=training_spread,
        total_epochs=mean(lambda result: result.total_epochs),
        **asdict(judged),
    )


def _mean_time(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the mean of ratios of times, given each with its spread, and the largest spread among them.

    Ratios whose spread is wide count only if there are no others.
    """
    counted = [pair for pair in pairs if not is_wide(pair[1])] or pairs
    spreads = [spread for _, spread in counted if not math.isnan(spread)]
    return fmean(ratio for ratio, _ in counted), max(spreads, default=math.nan)


def _mean_of_each_seed(results: Sequence[Result], value: Callable[[Result], float]) -> list[float]:
    """Return one value for each seed, since two results of one seed are no replicates."""
    seeds: dict[int, list[float]] = {}
    for result in results:
        seeds.setdefault(result.seed, []).append(value(result))
    return list(map(fmean, seeds.values()))


def settings_of(
    jobs: Sequence[Mapping[str, str]], apart: Sequence[str] = ("seed", "data", "model", "structure", "transfer.from")
) -> list[str]:
    """Return what tells jobs apart besides the seed, and besides what has a column of its own.

    Args:
        jobs: overrides of each job, by key.
        apart: keys that are left out.

    >>> settings_of([{"seed": "0", "pruning.rate": "0.2", "a": "1"}, {"seed": "1", "pruning.rate": "0.5", "a": "1"}])
    ['pruning.rate=0.2', 'pruning.rate=0.5']
    """
    keys = dict.fromkeys(key for job in jobs for key in job if key not in apart)
    varying = [key for key in keys if len({job.get(key) for job in jobs}) > 1]
    return [", ".join(f"{key}={job[key]}" for key in varying if key in job) for job in jobs]


def short_setting(setting: str) -> str:
    """Return a setting without the groups of its keys.

    >>> short_setting("pruning.rate=0.2, classifier.optimizer.lr=0.1")
    'rate=0.2, lr=0.1'
    """
    return re.sub(r"(\w+\.)+(?=\w+=)", "", setting)


# Extreme ticket sparsity of each kind of ticket in a sweep, by the paper's definition and by the interval.

ExtremeKey = tuple[str, str, str, str, str]


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
    groups: dict[ExtremeKey, list[Row]] = {}
    for row in rows:
        if row.structure != DENSE and not row.control:
            groups.setdefault((row.data, row.model, row.setting, row.structure, row.origin), []).append(row)
    return [_extreme_row(key, group, rule) for key, group in groups.items()]


def _extreme_row(key: ExtremeKey, rows: Sequence[Row], rule: Rule) -> ExtremeRow:
    seeds = max(row.seeds for row in rows)
    complete = [row for row in rows if row.seeds == seeds]
    sparsest = extreme(
        [Candidate(row.round, row.sparsity, Verdict(row.lower, row.wins_by_mean, row.wins)) for row in complete]
    )
    structured = key[3] != UNSTRUCTURED and any(row.sparsity > 0 for row in rows)
    return ExtremeRow(
        *key, structured, seeds, _rounds(complete), _rounds([row for row in rows if row.seeds < seeds]),
        rule.margin, rule.confidence,
        *(None, None) if sparsest.by_mean is None else (sparsest.by_mean.sparsity, sparsest.by_mean.round),
        *(None, None) if sparsest.shown is None else (sparsest.shown.sparsity, sparsest.shown.round),
    )  # fmt: skip


DIFFERENT_RULES = (
    "The two rules differ where the interval over so few seeds is too wide for what the mean suggests, or where the "
    "mean is below the dense network's by less than the margin. What is shown was shown at every lower sparsity, too."
)
"""The clause that belongs beside verdicts in which one rule names a ticket and the other does not."""


def verdict_lines(rows: Sequence[ExtremeRow]) -> Iterator[str]:
    """Yield what people read of the extreme tickets: a heading, a line for each kind, and why the two rules differ."""
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
    if any(row.sparsity_by_mean != row.sparsity_shown for row in rows):
        yield DIFFERENT_RULES


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
