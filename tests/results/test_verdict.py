"""Verdicts against hand calculation, scipy.stats and simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig
from scipy import stats

from lt_lightning.experiment.run.job import Job
from lt_lightning.results.aggregate import Row, aggregate, extremes, verdict_lines
from lt_lightning.results.records import Result
from lt_lightning.results.verdict import Candidate, Rule, Verdict, extreme, lower_limit, verdict_of
from tests.toys import DENSE

RULE = Rule(margin=0.005, confidence=0.95)
differences = st.lists(st.floats(-0.05, 0.05), min_size=2, max_size=9).filter(lambda values: np.std(values) > 1e-4)


def test_interval_is_that_of_a_hand_calculation() -> None:
    """Mean 0.002, deviation 0.002, t of two degrees of freedom at 0.95 from a printed table: 2.920."""
    limit = lower_limit([0.0, 0.002, 0.004], 0.95)
    assert limit == pytest.approx(0.002 - 2.920 * 0.002 / 3**0.5, abs=1e-6)


@given(differences, st.floats(0.6, 0.99))
def test_interval_and_decision_are_those_of_scipy(values: list[float], confidence: float) -> None:
    mean, error = np.mean(values), stats.sem(values)
    two_sided = stats.t.interval(2 * confidence - 1, len(values) - 1, mean, error)
    assert lower_limit(values, confidence) == pytest.approx(two_sided[0], abs=1e-9)
    p = float(stats.ttest_1samp(values, -RULE.margin, alternative="greater").pvalue)
    if abs(p - (1 - confidence)) > 1e-9:
        assert verdict_of(values, Rule(RULE.margin, confidence)).wins == (p < 1 - confidence)


def test_several_results_of_a_seed_count_once_in_every_number() -> None:
    """Seed 0 has three results that win by 2 points, seeds 1 and 2 one each that loses by 1."""
    gains = [(0, 0.02, "a"), (0, 0.02, "b"), (0, 0.02, "c"), (1, -0.01, "d"), (2, -0.01, "e")]
    results = [
        replace(DENSE, seed=seed, round=1, structure="refill", accuracy=0.9 + gain, dense_accuracy=0.9, place=place)
        for seed, gain, place in gains
    ]
    (row,) = aggregate([("", result) for result in results], RULE)
    assert (row.seeds, row.difference, row.accuracy) == pytest.approx((3, 0.0, 0.9))
    assert row.difference_sd == pytest.approx(np.std([0.02, -0.01, -0.01], ddof=1))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_interval_covers_and_false_positives_are_as_rare_as_promised(seeds: int) -> None:
    """Over 4000 repetitions; four standard errors are 1.4 points."""
    draws = np.random.default_rng(seeds).normal(-RULE.margin, 0.003, (4000, seeds))  # worse by just the margin
    verdicts = [verdict_of(list(row), RULE) for row in draws]
    wrong = np.mean([each.wins is True for each in verdicts])
    covered = np.mean([each.lower is not None and each.lower <= -RULE.margin for each in verdicts])
    assert wrong == pytest.approx(0.05, abs=0.014)
    assert covered == pytest.approx(0.95, abs=0.014)


def test_a_whole_sequence_of_rounds_is_as_rarely_wrong() -> None:
    """Six rounds worse by just the margin, each with seeds of its own: tested in order, one error in twenty sweeps."""
    rng = np.random.default_rng(0)
    named = 0
    for _ in range(2000):
        draws = rng.normal(-RULE.margin, 0.003, (6, 4))
        rounds = [Candidate(n, 0.1 * (n + 1), verdict_of(list(row), RULE)) for n, row in enumerate(draws)]
        named += extreme(rounds).shown is not None
    assert named / 2000 == pytest.approx(0.05, abs=0.02)


def test_the_papers_rule_compares_means() -> None:
    assert verdict_of([0.1, -0.1], RULE).wins_by_mean
    assert verdict_of(
        [float(np.float32(each)) - each for each in (0.9, 0.7)], RULE
    ).wins_by_mean  # zero but for rounding
    assert verdict_of([0.01, -0.0101], RULE).wins_by_mean is False


def test_there_is_no_verdict_without_seeds_to_tell() -> None:
    assert verdict_of([0.3], RULE) == Verdict(None, None, None)
    assert verdict_of([-0.003, -0.003], RULE) == Verdict(None, False, None)


@pytest.mark.parametrize(("key", "value"), [("margin", -0.1), ("margin", 1.0), ("confidence", 0.5), ("confidence", 1)])
def test_impossible_rules_are_refused(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{key}={value}: "):
        Rule(**{key: value})


def test_a_wrong_rule_is_refused_before_anything_is_run(composed: Callable[..., DictConfig]) -> None:
    with pytest.raises(ValueError, match=r"verdict\.margin='much'"):
        Job.of(composed("verdict.margin=much"))
    with pytest.raises(ValueError, match=r"confidence=1"):
        Job.of(composed("verdict.confidence=1"))


def of(number: int, sparsity: float, wins_by_mean: bool, wins: bool | None) -> Candidate:
    return Candidate(number, sparsity, Verdict(-0.004, wins_by_mean, wins))


def test_extremes_by_both_definitions() -> None:
    rounds = [of(3, 0.6, False, False), of(1, 0.2, True, True), of(2, 0.4, False, True), of(4, 0.7, True, True)]
    found = extreme(rounds)
    assert (found.by_mean, found.shown) == (rounds[3], rounds[2])  # round 4 lies behind one that does not win
    assert extreme(rounds[:1] + rounds[2:3]).by_mean is None
    assert extreme(rounds[:1]).shown is None
    assert extreme([of(1, 0.0, True, True)]) == extreme([])


# Of results

TICKET = replace(
    DENSE, round=1, structure="refill", target_density=0.5, density=0.5, accuracy=0.9, dense_accuracy=0.9,
    flops_ratio=0.5, place="s/r", executed=0.5,
)  # fmt: skip


def seeds_of(ticket: Result, *values: float) -> list[tuple[str, Result]]:
    """A result for each difference to the dense network, of a seed of its own."""
    return [
        ("", replace(ticket, seed=seed, accuracy=0.9 + value, place=f"{ticket.structure}/{ticket.round}/{seed}"))
        for seed, value in enumerate(values)
    ]


def test_rows_hold_the_verdict_over_their_seeds() -> None:
    values = (0.002, -0.001, 0.001)
    (row,) = aggregate(seeds_of(TICKET, *values), RULE)
    assert row.lower == pytest.approx(verdict_of(values).lower)
    assert (row.wins_by_mean, row.wins) == (True, True)
    (strict,) = aggregate(seeds_of(TICKET, *values), Rule(0.001, 0.95))
    assert strict.wins is False
    dense = replace(TICKET, structure="dense", round=0, density=1.0, executed=1.0)
    (row,) = aggregate(seeds_of(dense, 0.0, 0.0))
    assert (row.lower, row.wins_by_mean, row.wins) == (None, None, None)


def test_a_seed_that_is_there_twice_is_one_seed() -> None:
    found = seeds_of(TICKET, 0.001, 0.001)
    twice = [("", replace(result, seed=0, accuracy=0.9 + 0.001 * n)) for n, (_, result) in enumerate(found)]
    (row,) = aggregate(twice)
    assert (row.seeds, row.lower, row.wins) == (1, None, None)


def rows_of(*tickets: Result) -> list[Row]:
    good = (0.002, -0.001, 0.001)
    return aggregate([pair for ticket in tickets for pair in seeds_of(ticket, *good)], RULE)


def test_only_what_is_executed_counts_for_a_structure() -> None:
    unstructured = replace(TICKET, structure="unstructured", density=0.3, executed=1.0)
    fallen_back = replace(TICKET, structure="regroup", density=1.0, executed=1.0)
    not_executed = replace(TICKET, structure="nm", density=0.5, executed=1.0)
    deeper = replace(TICKET, round=2, density=0.25, executed=0.3)
    found = {
        row.structure: row for row in extremes(rows_of(unstructured, fallen_back, not_executed, TICKET, deeper), RULE)
    }
    assert found["refill"].structured
    assert found["refill"].sparsity_shown == pytest.approx(0.7)
    assert found["refill"].round_shown == 2
    assert not found["unstructured"].structured
    assert found["unstructured"].sparsity_by_mean == pytest.approx(0.7)
    for name in ("regroup", "nm"):
        assert not found[name].structured
        assert (found[name].sparsity_by_mean, found[name].sparsity_shown) == (None, None)
    lines = list(verdict_lines(list(found.values())))
    assert "margin 0.5 points" in lines[0]
    assert sum("runs whole" in line for line in lines) == 3
    assert any(line.split()[0] == "refill" and "shown 70.0% (round 2) (3 seeds)" in line for line in lines)


def test_one_seed_is_told_to_be_no_verdict() -> None:
    found = extremes(aggregate(seeds_of(TICKET, 0.01), RULE), RULE)
    assert list(verdict_lines(found)) == ["One seed: no verdict."]
    both = aggregate([*seeds_of(TICKET, 0.01), *seeds_of(replace(TICKET, structure="regroup"), 0.01, 0.02, 0.03)], RULE)
    told = list(verdict_lines(extremes(both, RULE)))
    assert told[1].endswith("one seed: no verdict")
    assert "3 seeds" in told[2]


def test_tickets_of_other_searches_have_extremes_of_their_own() -> None:
    elsewhere = replace(TICKET, origin="cifar10", executed=0.25)
    rows = aggregate(
        [
            *seeds_of(TICKET, 0.001, 0.002),
            *((setting, replace(r, place=f"{r.place}-x")) for setting, r in seeds_of(elsewhere, 0.001, 0.002)),
        ],
        RULE,
    )
    assert {str(row.kind): row.sparsity_by_mean for row in extremes(rows, RULE)} == {
        "refill": pytest.approx(0.5), "refill from cifar10": pytest.approx(0.75),
    }  # fmt: skip
