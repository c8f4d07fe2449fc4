"""Verdicts: whether tickets are as accurate as their dense networks, over seeds, and how sparse they get."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

# Accuracies are computed in float32: a mean that is nearer to zero than this is zero.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Rule:
    """What counts as winning by the interval; the paper's rule has no options.

    Attributes:
        margin: difference of accuracy, in [0, 1), by which a ticket may be worse than its dense network and still win.
        confidence: confidence of the one-sided interval of the difference over paired seeds, in (0.5, 1).

    Raises:
        ValueError: if a value is out of range.
    """

    margin: float = 0.005
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin={self.margin!r}: must be a difference of accuracy in [0, 1), 0.005 say")
        if not 0.5 < self.confidence < 1:
            raise ValueError(f"confidence={self.confidence!r}: must be above 0.5 and below 1, 0.95 say")

    def __str__(self) -> str:
        return f"margin {100 * self.margin:g} points, one-sided {self.confidence:.5g} interval"


STANDARD = Rule()


@dataclass(frozen=True)
class Verdict:
    """Whether one kind of ticket wins over its seeds; None stands for no verdict.

    Attributes:
        lower: lower end of the one-sided interval of the mean difference. None with one seed, and where all seeds
            differ by exactly the same, since nothing tells then how much others would.
        wins_by_mean: whether the mean accuracy is at least the dense mean, which is the paper's rule. None with one
            seed.
        wins: whether the interval lies above minus the margin: the ticket is not worse by more than that.
    """

    lower: float | None
    wins_by_mean: bool | None
    wins: bool | None


def verdict_of(differences: Sequence[float], rule: Rule = STANDARD) -> Verdict:
    """Compare tickets with the dense networks of their seeds.

    The interval is Student's for paired differences, which takes them for independent and normal. It speaks of other
    seeds (initialisation, split, order) on the same test set, not of other images.

    Args:
        differences: accuracy of a ticket less that of the dense network, one value for each seed.
        rule: what counts as winning.

    >>> verdict_of([0.002, -0.001, 0.001], Rule(margin=0.005)).wins
    True
    >>> verdict_of([0.002])
    Verdict(lower=None, wins_by_mean=None, wins=None)
    """
    if len(differences) < 2:
        return Verdict(None, None, None)
    mean = fmean(differences)
    lower = lower_limit(differences, rule.confidence)
    return Verdict(lower, not_below(mean), None if lower is None else lower > -rule.margin)


def not_below(difference: float) -> bool:
    """Apply the paper's rule to a difference of accuracy to the dense network, up to the rounding of float32."""
    return difference >= -ROUNDING


def lower_limit(values: Sequence[float], confidence: float) -> float | None:
    """Return the lower end of Student's one-sided interval of the mean.

    Args:
        values: at least two values.
        confidence: confidence of the interval.

    Returns:
        the limit, or None if all values are the same.
    """
    spread = stdev(values)
    if spread <= ROUNDING:
        return None
    return fmean(values) - _quantile(len(values) - 1, confidence) * spread / math.sqrt(len(values))


def half_width(deviation: float | None, seeds: int, confidence: float = 0.95) -> float | None:
    """Return half of Student's two-sided interval of a mean; None with fewer than two values.

    >>> round(half_width(1.0, 2), 3)  # 12.706 / sqrt(2)
    8.985
    """
    if deviation is None or seeds < 2:
        return None
    return _quantile(seeds - 1, (1 + confidence) / 2) * deviation / math.sqrt(seeds)


MOST_SEEDS = 10_000


def seeds_needed(deviation: float, rule: Rule = STANDARD, power: float = 0.8, difference: float = 0.0) -> int | None:
    """Return how many paired seeds show that a ticket wins by the interval, with a given probability.

    The differences are taken for normal. Over n seeds, Student's statistic of the test follows a noncentral t
    distribution with n - 1 degrees of freedom and the noncentrality (difference + margin) sqrt(n) / deviation; the
    smallest n is returned at which it is above the quantile of `rule.confidence` with a probability of `power`.

    Args:
        deviation: standard deviation of the paired differences.
        rule: margin and confidence.
        power: probability of winning.
        difference: true mean difference that is assumed; 0 stands for a ticket that is as accurate.

    Returns:
        The number of seeds, at least 2; None if it is above 10000, or if no number is enough.

    Raises:
        ValueError: if `deviation` or `power` is out of range.

    >>> seeds_needed(0.005)  # a spread as large as the margin
    8
    """
    if not 0 <= deviation < math.inf:
        raise ValueError(f"deviation={deviation!r}: must be a number of at least 0")
    if not 0 < power < 1:
        raise ValueError(f"power={power!r}: must be in (0, 1), 0.8 say")
    if difference + rule.margin <= 0:
        return None
    if deviation <= ROUNDING:
        return 2
    from scipy.special import nctdtr  # slow to import, and not needed to look at a job

    def is_enough(seeds: int) -> bool:
        noncentrality = (difference + rule.margin) * math.sqrt(seeds) / deviation
        missed = float(nctdtr(seeds - 1, noncentrality, _quantile(seeds - 1, rule.confidence)))
        return not missed > 1 - power  # scipy gives NaN where it is too small to be told

    numbers = range(2, MOST_SEEDS + 1)
    place = bisect_left(numbers, True, key=is_enough)
    return numbers[place] if place < len(numbers) else None


def is_shown(differences: Sequence[float]) -> bool:
    """Return whether the two-sided 95 % interval of the mean difference does not contain zero.

    Args:
        differences: at least two values; if all are the same, they tell nothing of others, and nothing is shown.

    >>> is_shown([0.9, 1.0, 1.1]), is_shown([-0.1, 0.5, 1.1])
    (True, False)
    """
    spread = stdev(differences)
    half = half_width(spread, len(differences))
    return half is not None and spread > ROUNDING and abs(fmean(differences)) > half


def _quantile(degrees: int, probability: float) -> float:
    """Return a quantile of Student's distribution."""
    from scipy.special import stdtrit  # slow to import, and not needed to look at a job

    return float(stdtrit(degrees, probability))


@dataclass(frozen=True)
class Candidate:
    """A kind of ticket that may be the sparsest one that wins.

    Attributes:
        round: pruning round of the tickets.
        sparsity: share of the prunable weights that counts as left out.
        verdict: verdict on the tickets.
    """

    round: int
    sparsity: float
    verdict: Verdict


@dataclass(frozen=True)
class Extreme:
    """The sparsest winning tickets among those of one structure; None where there is none.

    Attributes:
        by_mean: sparsest ticket that wins by the paper's rule, whatever less sparse ones do.
        shown: sparsest ticket before the first that does not win by the interval, going from dense to sparse. Tested
            in that order, the chance that a ticket is named which is worse by more than the margin is at most
            1 - confidence for the whole sequence, however many rounds there are (Maurer, Hothorn and Lehmacher 1995).
    """

    by_mean: Candidate | None
    shown: Candidate | None


def extreme(candidates: Sequence[Candidate]) -> Extreme:
    """Find the extreme tickets by both definitions, among the candidates that leave out any weights."""
    ordered = sorted((each for each in candidates if each.sparsity > 0), key=lambda each: (each.sparsity, each.round))
    by_mean = [each for each in ordered if each.verdict.wins_by_mean]
    failed = next((index for index, each in enumerate(ordered) if not each.verdict.wins), len(ordered))
    shown = ordered[:failed]
    return Extreme(by_mean[-1] if by_mean else None, shown[-1] if shown else None)
