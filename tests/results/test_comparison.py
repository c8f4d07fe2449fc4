"""Settings against a reference: by hand, and against scipy's paired tests."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from lt_lightning.results.accuracy_table import Measurement
from lt_lightning.results.comparison import SettingsComparison, compare_settings, print_settings
from lt_lightning.results.verdict import Rule, seeds_needed

DENSE = [0.90, 0.91, 0.92]


def of(setting: str, accuracies: Sequence[float], sparsity: float | None = None) -> list[Measurement]:
    return [Measurement(setting, str(seed), each, sparsity) for seed, each in enumerate(accuracies)]


def shifted(by: Sequence[float]) -> list[float]:
    return [each + difference for each, difference in zip(DENSE, by, strict=True)]


def outcomes(comparison: SettingsComparison) -> Mapping[str, str]:
    return {row.setting: row.outcome for row in comparison.rows}


def test_by_hand() -> None:
    """Student's quantile at 95 % is 2.920 for two degrees of freedom, that at 97.5 % is 4.303."""
    (row,) = compare_settings([*of("dense", DENSE), *of("a", shifted([0.002, -0.001, 0.001]))]).rows
    deviation = ((0.00133333**2 + 0.00166667**2 + 0.00033333**2) / 2) ** 0.5
    assert row.difference == pytest.approx(0.000666667)
    assert row.deviation == pytest.approx(deviation, rel=1e-4)
    assert row.lower == pytest.approx(0.000666667 - 2.91999 * deviation / 3**0.5, rel=1e-4)
    assert row.half_width == pytest.approx(4.30265 * deviation / 3**0.5, rel=1e-4)
    assert (row.seeds, row.outcome) == (3, "not worse")


def test_outcomes_are_those_of_paired_tests() -> None:
    """Each is a one-sided t test of scipy's, at 5 %."""
    random, rule = np.random.default_rng(0), Rule(margin=0.005)
    seen = set()
    for shift in (0.01, 0.0, -0.004, -0.012):
        for _ in range(10):
            dense = random.uniform(0.8, 0.9, 5)
            ticket = dense + random.normal(shift, 0.004, 5)
            (row,) = compare_settings([*of("dense", dense.tolist()), *of("a", ticket.tolist())], rule=rule).rows
            better = stats.ttest_rel(ticket, dense, alternative="greater").pvalue < 0.05
            not_worse = stats.ttest_rel(ticket + 0.005, dense, alternative="greater").pvalue < 0.05
            worse = stats.ttest_rel(ticket + 0.005, dense, alternative="less").pvalue < 0.05
            expected = "better" if better else "not worse" if not_worse else "worse" if worse else "open"
            assert row.outcome == expected
            seen.add(expected)
    assert seen == {"better", "not worse", "worse", "open"}


def test_seeds_needed_against_scipy_and_draws() -> None:
    rule = Rule(margin=0.005)
    for deviation in (0.001, 0.005, 0.02):
        seeds = seeds_needed(deviation, rule, 0.9)
        power = [stats.nct.sf(stats.t.ppf(0.95, n - 1), n - 1, 0.005 * n**0.5 / deviation) for n in range(2, 200)]
        assert seeds == 2 + next(index for index, each in enumerate(power) if each >= 0.9)
    draws = np.random.default_rng(0).normal(0, 0.005, (20_000, 8))
    lower = draws.mean(1) - stats.t.ppf(0.95, 7) * draws.std(1, ddof=1) / 8**0.5
    assert seeds_needed(0.005, rule) == 8
    assert (lower > -0.005).mean() == pytest.approx(0.815, abs=0.01)


def test_a_small_spread_needs_no_more_seeds_than_a_wider_one() -> None:
    """Also where scipy cannot tell how rarely so few seeds fail."""
    needed = [seeds_needed(deviation) for deviation in np.geomspace(1e-5, 2e-2, 2000)]
    assert needed == sorted(each for each in needed if each is not None)
    assert needed[0] == 2


def test_a_difference_or_a_wide_spread_may_be_too_much() -> None:
    assert seeds_needed(0.005, difference=-0.005) is None
    assert seeds_needed(1.0) is None
    assert seeds_needed(0.0) == 2
    assert seeds_needed(0.005, difference=0.005) == seeds_needed(0.0025)  # as many deviations from the margin
    with pytest.raises(ValueError, match=r"deviation=-1\.0"):
        seeds_needed(-1.0)
    with pytest.raises(ValueError, match=r"power=1\.0"):
        seeds_needed(0.1, power=1.0)


def test_extreme_sparsity_stops_at_the_first_that_is_not_shown() -> None:
    by = {0.2: [0.001, 0.0, 0.002], 0.5: [-0.003, -0.002, -0.004], 0.7: [-0.02, -0.01, -0.03], 0.9: [0.001, 0.0, 0.001]}
    lines = [each for sparsity, differences in by.items() for each in of("a", shifted(differences), sparsity)]
    comparison = compare_settings([*of("dense", DENSE, 0.0), *lines])
    assert [row.outcome for row in comparison.rows] == ["not worse", "not worse", "open", "not worse"]
    (extreme,) = comparison.extremes
    assert (extreme.by_mean, extreme.shown) == (0.9, 0.5)
    fewer = [line for line in lines if (line.sparsity, line.seed) != (0.5, "2")]
    comparison = compare_settings([*of("dense", DENSE), *fewer])
    assert comparison.extremes[0].shown == 0.2
    assert any("50 %" in note and "fewer than 3 seeds" in note for note in comparison.notes)


def test_the_reference_may_be_what_has_no_sparsity() -> None:
    own = [*of("a", DENSE, 0.0), *of("a", shifted([0, 0.001, 0.002]), 0.5), *of("b", shifted([0, 0, 0.001]), 0.5)]
    assert [(row.setting, row.seeds) for row in compare_settings(own).rows] == [("a", 3), ("b", 3)]
    both = [*own, *of("b", [0.5, 0.5, 0.5], 0.0)]
    assert {row.setting: row.difference > 0.3 for row in compare_settings(both).rows} == {"a": False, "b": True}
    with pytest.raises(ValueError, match="c: has no line of sparsity 0"):
        compare_settings([*both, *of("c", DENSE, 0.5)])


def test_seeds_that_are_missing_are_said() -> None:
    comparison = compare_settings(
        [*of("dense", DENSE), *of("a", [*DENSE[:2], 0.9, 0.8][1:]), Measurement("b", "0", 0.9)]
    )
    assert [row.seeds for row in comparison.rows] == [3, 1]
    assert outcomes(comparison)["b"] == "none"
    assert any(note.startswith("b: seeds 1, 2") for note in comparison.notes)
    alone = compare_settings([*of("dense", DENSE), *of("a", [*shifted([0.1, 0.0, 0.0]), 0.7])])
    assert alone.rows[0].seeds == 3
    assert any("seed 3 has no reference" in note for note in alone.notes)
    same = compare_settings([*of("dense", DENSE), *of("a", DENSE)])
    assert outcomes(same) == {"a": "none"}
    assert any("by the same" in note for note in same.notes)


@pytest.mark.parametrize(
    ("lines", "reference", "parts"),
    [
        (of("a", DENSE), None, ["reference='dense'", "a"]),
        (of("dens", DENSE), "dense", ["reference='dense'", "dens"]),
        (of("dense", DENSE), None, ["reference=dense", "nothing else"]),
        ([*of("a", DENSE, 0.1), *of("a", DENSE, 0.2)], "a", ["reference='a'", "10 %, 20 %"]),
        ([*of("dense", DENSE), Measurement("a", "7", 0.9)], None, ["a: has no seed", "seed 7", "seeds 0, 1, 2"]),
    ],
)
def test_what_cannot_be_compared(lines: list[Measurement], reference: str | None, parts: list[str]) -> None:
    with pytest.raises(ValueError, match=".*".join(map(re.escape, parts))):
        compare_settings(lines, reference)


def test_it_is_shown_in_80_columns_and_as_json() -> None:
    lines = [*of("dense", DENSE, 0.0), *of("a name that is as long as sentences are", shifted([0, 0.002, 0.001]), 0.5)]
    comparison = compare_settings(lines)
    print_settings(comparison, Console(file=(file := io.StringIO()), width=80))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert all(part in text for part in ("50 %", "+0.10 ± 0.25", "not worse", "margin 0.5 points"))
    values = json.loads(json.dumps(comparison.as_json(), allow_nan=False))
    assert values["rows"][0]["difference"] == pytest.approx(0.001)
    assert (values["rule"]["margin"], values["unit"]) == (0.005, "share")
