"""Verdicts on accuracies of any origin: settings are paired with a reference by seed, and judged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Final, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lt_lightning.results.accuracy_table import Measurement, setting_text
from lt_lightning.results.verdict import (
    MOST_SEEDS,
    STANDARD,
    Candidate,
    Rule,
    Verdict,
    extreme,
    half_width,
    lower_limit,
    not_below,
    seeds_needed,
    verdict_of,
)
from lt_lightning.storage.near_names import did_you_mean

Outcome = Literal["better", "not worse", "worse", "open", "none"]
REFERENCE: Final = "dense"
WIDEST: Final = 120  # columns of what is shown
LISTED: Final = 8  # settings that an error names


@dataclass(frozen=True)
class Judged:
    """One setting at one sparsity against the reference; accuracies and differences are shares.

    Attributes:
        setting: name of the setting.
        sparsity: share of the weights that is left out; None where the table tells nothing.
        seeds: number of seeds that are paired with the reference.
        accuracy: mean accuracy over these seeds.
        difference: mean difference to the reference.
        deviation: standard deviation of the differences; None with one seed.
        half_width: half of the two-sided 95 % interval of the mean difference; None with one seed.
        lower: lower end of the one-sided interval; None where there is none (see `Verdict`).
        outcome: `better` if the interval is above zero, `not worse` if it is above minus the margin, `worse` if the
            interval to the other side is below minus the margin, `open` if more seeds are needed to tell, `none` if
            there is no interval.
        needed: number of seeds that show a setting to win which is as accurate as the reference and has this
            deviation; None if it is unknown, or too large (see `seeds_needed`).
    """

    setting: str
    sparsity: float | None
    seeds: int
    accuracy: float
    difference: float
    deviation: float | None
    half_width: float | None
    lower: float | None
    outcome: Outcome
    needed: int | None


@dataclass(frozen=True)
class Sparsest:
    """The extreme sparsities of one setting, as shares; None where no sparsity wins.

    Attributes:
        setting: name of the setting.
        by_mean: sparsest of those whose mean is not below the reference's.
        shown: sparsest before the first that does not win by the interval, from dense to sparse (see `Extreme`).
    """

    setting: str
    by_mean: float | None
    shown: float | None


@dataclass(frozen=True)
class SettingsComparison:
    """All that a table says.

    Attributes:
        reference: name of what the settings are compared with.
        rule: what counts as winning.
        power: probability that `Judged.needed` is made for.
        rows: a row for each setting and sparsity.
        extremes: a row for each setting that has sparsities.
        notes: what does not count or gives no verdict, and why.
    """

    reference: str
    rule: Rule
    power: float
    rows: Sequence[Judged]
    extremes: Sequence[Sparsest]
    notes: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """Return plain values, for `json`."""
        return {**asdict(self), "unit": "share", "two_sided_confidence": 0.95}


# Comparing


def compare_settings(
    measurements: Sequence[Measurement], reference: str | None = None, rule: Rule = STANDARD, power: float = 0.8
) -> SettingsComparison:
    """Compare every setting, at every sparsity, with the reference over the seeds that both have.

    Args:
        measurements: lines of a table.
        reference: name of the setting that is compared with; None takes `dense`, or, if no setting is called that, what
            has a sparsity of 0: each setting's own, or that of the only setting that has any.
        rule: what counts as winning.
        power: probability that the number of seeds needed is made for.

    Raises:
        ValueError: if there is no such reference, or nothing that could be compared with it.
    """
    groups: dict[tuple[str, float | None], dict[str, float]] = defaultdict(dict)
    for each in measurements:
        groups[each.setting, each.sparsity][each.seed] = each.accuracy
    against = _references(groups, reference)
    compared = [key for key in groups if key not in against.values()]
    if not compared:
        raise ValueError(
            f"reference={setting_text(*next(iter(against.values())))}: there is nothing else to be compared with it"
        )
    rows: list[Judged] = []
    notes: list[str] = []
    for setting, sparsity in sorted(compared, key=lambda key: (key[0], key[1] or 0.0)):
        accuracies, wanted = groups[setting, sparsity], groups[against[setting]]
        seeds = [seed for seed in accuracies if seed in wanted]
        name = setting_text(setting, sparsity)
        if not seeds:
            raise ValueError(
                f"{name}: has no seed in common with the reference; it has {_listed(accuracies)}, not {_listed(wanted)}"
            )
        pairs = [(accuracies[seed], wanted[seed]) for seed in seeds]
        rows.append(_judged(setting, sparsity, pairs, rule, power))
        notes += [*_unpaired(name, accuracies, wanted), *_without_interval(name, rows[-1])]
    extremes = [_sparsest(setting, group, notes) for setting, group in _with_sparsities(rows)]
    references = dict.fromkeys(against[setting] for setting, _ in compared)
    return SettingsComparison(", ".join(setting_text(*key) for key in references), rule, power, rows, extremes, notes)


def _references(
    groups: Mapping[tuple[str, float | None], object], reference: str | None
) -> dict[str, tuple[str, float | None]]:
    """Return what each setting is compared with."""
    settings = dict.fromkeys(setting for setting, _ in groups)
    name = REFERENCE if reference is None else reference
    if name in settings:
        keys = [key for key in groups if key[0] == name]
        if len(keys) > 1:
            there = ", ".join(f"{100 * (sparsity or 0):g} %" for _, sparsity in keys)
            raise ValueError(f"reference={name!r}: has several sparsities, {there}; a reference has one")
        return dict.fromkeys(settings, keys[0])
    dense = {key[0]: key for key in groups if key[1] == 0}
    if reference is not None or not dense:
        listed = f"{', '.join([*settings][:LISTED])}{', …' * (len(settings) > LISTED)}"
        raise ValueError(
            f"reference={name!r}: is none of the {len(settings)} settings; there is {listed}"
            f"{did_you_mean(name, settings)}"
        )
    if lacking := [setting for setting in settings if setting not in dense]:
        if len(dense) > 1:
            raise ValueError(
                f"{lacking[0]}: has no line of sparsity 0 to be compared with; --reference names a setting"
            )
        (only,) = dense.values()
        return dict.fromkeys(settings, only)
    return dense


def _judged(
    setting: str, sparsity: float | None, pairs: Sequence[tuple[float, float]], rule: Rule, power: float
) -> Judged:
    differences = [accuracy - other for accuracy, other in pairs]
    deviation = stdev(differences) if len(differences) > 1 else None
    judged = verdict_of(differences, rule)
    return Judged(
        setting=setting,
        sparsity=sparsity,
        seeds=len(differences),
        accuracy=fmean(accuracy for accuracy, _ in pairs),
        difference=fmean(differences),
        deviation=deviation,
        half_width=half_width(deviation, len(differences)),
        lower=judged.lower,
        outcome=_outcome(differences, judged.lower, rule),
        needed=None if judged.lower is None or deviation is None else seeds_needed(deviation, rule, power),
    )


def _outcome(differences: Sequence[float], lower: float | None, rule: Rule) -> Outcome:
    if lower is None:
        return "none"
    if lower > 0:
        return "better"
    if lower > -rule.margin:
        return "not worse"
    upper = lower_limit([-difference for difference in differences], rule.confidence)
    return "worse" if upper is not None and -upper < -rule.margin else "open"


def _with_sparsities(rows: Iterable[Judged]) -> Iterator[tuple[str, list[Judged]]]:
    groups: dict[str, list[Judged]] = defaultdict(list)
    for row in rows:
        if row.sparsity:
            groups[row.setting].append(row)
    yield from groups.items()


def _sparsest(setting: str, rows: Sequence[Judged], notes: list[str]) -> Sparsest:
    """Return the extreme sparsities of a setting, among those that have all its seeds."""
    seeds = max(row.seeds for row in rows)
    if fewer := [row for row in rows if row.seeds < seeds]:
        named = ", ".join(f"{100 * (row.sparsity or 0):g} %" for row in fewer)
        notes.append(f"{setting}: {named} has fewer than {seeds} seeds, and is left out of the extreme sparsity.")
    chosen = extreme([Candidate(0, row.sparsity or 0, _verdict_of(row)) for row in rows if row not in fewer])
    return Sparsest(setting, _sparsity_of(chosen.by_mean), _sparsity_of(chosen.shown))


def _sparsity_of(candidate: Candidate | None) -> float | None:
    return None if candidate is None else candidate.sparsity


def _verdict_of(row: Judged) -> Verdict:
    by_mean = not_below(row.difference) if row.seeds > 1 else None
    return Verdict(row.lower, by_mean, None if row.lower is None else row.outcome in ("better", "not worse"))


def _unpaired(name: str, accuracies: Mapping[str, float], wanted: Mapping[str, float]) -> Iterator[str]:
    """Yield what is to be said of the seeds of a setting and of its reference."""
    alone = [seed for seed in accuracies if seed not in wanted]
    if alone:
        yield f"{name}: {_listed(alone)} has no reference, and does not count."
    if lacking := [seed for seed in wanted if seed not in accuracies]:
        yield f"{name}: {_listed(lacking)} of the reference is missing here."


def _without_interval(name: str, row: Judged) -> Iterator[str]:
    if row.seeds == 1:
        yield f"{name}: one seed has no interval, and gives no verdict."
    elif row.lower is None:
        yield f"{name}: all seeds differ from the reference by the same, which gives no interval and no verdict."


def _listed(seeds: Iterable[str]) -> str:
    names = list(seeds)
    return f"seed{'s' * (len(names) > 1)} {', '.join(names)}"


# Showing


def print_settings(comparison: SettingsComparison, console: Console) -> None:
    """Print a table of all settings, the extreme sparsities and what does not count."""
    width, rule = min(WIDEST, console.width), comparison.rule

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, width=width)

    say(
        f"Against {comparison.reference}, by pairs of the same seed. Accuracy in %, differences in points with their "
        f"two-sided 95 % interval; {rule}.\n"
    )
    table = Table(box=None, pad_edge=False, header_style="")
    sparse = any(row.sparsity is not None for row in comparison.rows)
    table.add_column("setting", overflow="fold")
    for name in (*["sparsity"] * sparse, "seeds", "accuracy", "difference", "lower"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("needed", justify="right", no_wrap=True)
    for row in comparison.rows:
        interval = "" if row.half_width is None else f" ± {100 * row.half_width:.2f}"
        share = ["" if row.sparsity is None else f"{100 * row.sparsity:.4g} %"] * sparse
        needed = str(row.needed) if row.needed is not None else "" if row.lower is None else f"> {MOST_SEEDS}"
        lower = "" if row.lower is None else f"{100 * row.lower:+.2f}"
        difference = f"{100 * row.difference:+.2f}{interval}"
        numbers = (*share, str(row.seeds), f"{100 * row.accuracy:.2f}", difference, lower)
        table.add_row(Text(row.setting), *numbers, row.outcome, needed)
    console.print(table, width=width, highlight=False)
    if comparison.extremes:
        say("\nExtreme sparsity: by the mean, and shown (from dense to sparse, before the first that is not):")
        for each in comparison.extremes:
            by_mean, shown = (_percent(share) for share in (each.by_mean, each.shown))
            say(f"  {each.setting}: {by_mean}, {shown}")
    if comparison.notes:
        say("\nTo be noted:" + "".join(f"\n  {note}" for note in comparison.notes))
    say(
        f"\nneeded: seeds that show a setting as accurate as the reference to be no worse than the margin, with a "
        f"probability of {100 * comparison.power:g} %, if differences spread as they do here; the spread of few seeds "
        "is known badly. Settings are not corrected for one another: name the one that counts before you look."
    )


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.4g} %"
