"""Published figures: what is read of them, and which tickets of ours stand beside them."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from lt_lightning.results.published_figures import (
    Comparison,
    PublishedFigure,
    compare,
    counted_density,
    figures_of,
)
from lt_lightning.results.records import Result
from lt_lightning.results.tables import comparison_table, print_comparison
from tests.toys import DENSE

FILTERS = {"match": "filters", "extra": 0.0}
VGG = replace(DENSE, data="cifar100", model="vgg16_bn", accuracy=0.73, dense_accuracy=0.73)


def ticket(structure: str, number: int, density: float, accuracy: float, **others: Any) -> Result:
    place = f"s{others.get('seed', 0)}/{number}/{structure}"
    asked = others.pop("target_density", 0.8**number)
    return replace(
        VGG, structure=structure, round=number, target_density=asked, density=density, accuracy=accuracy, place=place,
        **others,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"speed": {"refill": [[1, 2]]}}, "published.speed"),
        ({"accuracy": [[1, 2]]}, "published.accuracy"),
        ({"accuracy": {"refill": [[80, 1, 2]]}}, "published.accuracy.refill"),
        ({"accuracy": {"refill": [[800, 1]]}}, "published.accuracy.refill"),
        ({"accuracy": {"refill": [["a", 1]]}}, "published.accuracy.refill"),
        ({"accuracy": {"refill": 7}}, "published.accuracy.refill"),
        ({"flops": {"refill": [[80, 1]]}}, "published.flops.dense"),
        ({"flops": {"refill": [[80, 1]], "dense": [[100, 0]]}}, "published.flops.dense"),
    ],
)
def test_what_is_no_figure_is_named(published: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        figures_of(published)


def test_refill_is_counted_as_the_paper_does() -> None:
    result = ticket("refill", 5, 0.12, 0.7, target_density=0.328)
    assert counted_density(result, None) == 0.12
    assert counted_density(result, {"match": "executed", "extra": 0.0}) == 0.12
    assert counted_density(result, FILTERS) == 0.328
    assert counted_density(replace(result, filters_density=0.34), FILTERS) == 0.34
    # The paper's Refill+ of the round with 32.8 % has 46.4 %.
    assert counted_density(result, {**FILTERS, "extra": 0.2}) == pytest.approx(0.464, abs=0.003)


def test_figures_stand_beside_the_nearest_ticket_of_their_kind() -> None:
    results = [
        VGG,
        ticket("refill", 1, 0.62, 0.70),
        ticket("refill", 2, 0.41, 0.60, flops_ratio=0.5),
        ticket("regroup", 1, 0.80, 0.74, time_ratio_inference=0.9),
        ticket("regroup", 2, 0.64, 0.74, time_ratio_inference=0.75),
    ]
    figures = [
        PublishedFigure("accuracy", "dense", 100, 73.43),
        PublishedFigure("accuracy", "refill", 80.2, 73.43),
        PublishedFigure("flops", "refill", 64.1, 40.0),
        PublishedFigure("accuracy", "refill", 51.3, 72.67),  # a whole round away
        PublishedFigure("accuracy", "regroup", 62.6, 73.94),
        PublishedFigure("versus_dense", "regroup", 62.6, 0.5),
        PublishedFigure("time_saved", "regroup", 64, 60.0),
        PublishedFigure("accuracy", "unstructured", 80, 70.0),  # we have none
    ]
    ours = compare(figures, results, {"refill": FILTERS, "regroup": {}})
    assert [each.figure for each in ours] == [figures[i] for i in (0, 1, 2, 4, 5, 6)]
    values = [(round(each.remaining or 0, 1), round(each.value, 2), round(each.difference, 2)) for each in ours]
    assert values == [
        (100, 73, -0.43), (80, 70, -3.43), (64, 50, 10), (64, 74, 0.06), (64, 1, 0.5), (64, 25, -35),
    ]  # fmt: skip


def test_controls_and_tickets_of_other_searches_are_not_taken_for_the_job_s_own() -> None:
    results = [ticket("regroup", 1, 0.8, 0.75), ticket("regroup", 1, 0.8, 0.70, control="reinit")]
    results[1] = replace(results[1], place="elsewhere")
    figures = [
        PublishedFigure("accuracy", "regroup", 80, 74.0),
        PublishedFigure("accuracy", "regroup reinit", 80, 73.0),
    ]
    results.append(ticket("regroup", 1, 0.8, 0.60, origin="cifar10"))
    ours = [each.value for each in compare(figures, results, {})]
    assert ours == [pytest.approx(75), pytest.approx(70)]


def test_seeds_are_averaged_and_times_that_were_not_measured_left_out() -> None:
    results = [
        ticket("regroup", 1, 0.8, accuracy, seed=seed, time_ratio_inference=math.nan)
        for seed, accuracy in enumerate([0.7, 0.8])
    ]
    figures = [PublishedFigure("accuracy", "regroup", 80, 74.0), PublishedFigure("time_saved", "regroup", 80, 50.0)]
    (ours,) = compare(figures, results, {"regroup": {}})
    assert ours.seeds == 2
    assert ours.value == pytest.approx(75)
    assert ours.remaining == pytest.approx(80)


def test_extreme_sparsity_is_that_of_the_sparsest_ticket_as_accurate_as_the_dense_network() -> None:
    results = [
        VGG,
        ticket("refill", 1, 0.6, 0.73),
        ticket("refill", 2, 0.4, 0.72),
        ticket("refill_plus", 2, 0.5, 0.74, time_ratio_inference=0.6),
        ticket("regroup", 1, 0.8, 0.72),
    ]
    figures = [
        PublishedFigure("extreme_sparsity", "refill|refill_plus", None, 40),
        PublishedFigure("extreme_sparsity", "regroup", None, 80),
        PublishedFigure("time_saved", "refill|refill_plus", None, 60),
        PublishedFigure("time_saved", "regroup", None, 60),
    ]
    best, none, saved = compare(figures, results, {})
    assert (best.remaining, best.value, best.difference) == (50, 50, 10)
    assert (none.remaining, none.value, none.difference) == (None, 0, -80)
    assert saved.value == pytest.approx(40)
    assert saved.difference == pytest.approx(-20)


def test_equal_accuracies_are_not_below_though_rounded_in_float32() -> None:
    tie = [ticket("regroup", 1, 0.5, 0.73 - 3e-8, seed=seed) for seed in range(3)]
    (ours,) = compare([PublishedFigure("extreme_sparsity", "regroup", None, 80)], tie, {})
    assert ours.value == pytest.approx(50)


def test_table_tells_theirs_ours_and_the_difference() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(
        comparison_table([Comparison(PublishedFigure("accuracy", "refill", 80.2, 73.43), 80.0, 72.4, 3)], "title")
    )
    text = console.file.getvalue()  # type: ignore[attr-defined]
    line = next(line for line in text.splitlines() if "refill" in line)
    assert line.split() == ["accuracy", "refill", "80.2", "73.43", "80.0", "72.40", "-1.03", "3"]


def test_nothing_is_printed_where_nothing_was_published() -> None:
    console = Console(file=io.StringIO())
    for published in (None, {"accuracy": {"unstructured": [[80, 70.0]]}}):
        print_comparison({"published": published, "structure": {}}, [VGG], "title", console)
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
