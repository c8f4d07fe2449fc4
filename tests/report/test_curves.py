"""Curves, intervals and fronts against hand calculation and brute force."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_lightning.report.curves import (
    Point,
    arms,
    dense_row,
    density_curves,
    flops_saved,
    front_of,
    half_width,
    kinds_of,
    pareto,
    structures_of,
    time_saved,
    trade_points,
)
from lt_lightning.report.figures import style_of
from lt_lightning.results.aggregate import aggregate
from lt_lightning.results.records import Result

RESULT = Result(
    data="d", model="m", seed=0, round=1, structure="refill", target_density=0.5, density=0.5, accuracy=0.9,
    dense_accuracy=0.9, params_ratio=0.5, flops_ratio=0.25, train_seconds=1.0, val_accuracy=0.9, best_epoch=1,
    retained_magnitude=1.0, time_ratio_inference=0.75, time_ratio_training=1.0, search="s", place="a",
)  # fmt: skip


def test_interval_of_three_seeds_is_students() -> None:
    # t(0.975, 2) = 4.302653, and the deviation of 1, 2, 3 is 1.
    assert half_width(1.0, 3) == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert half_width(None, 1) is None


def test_bars_end_where_accuracy_does() -> None:
    assert arms(Point(0.5, 0.9, 0.3, 2, 1)) == pytest.approx((0.1, 0.3))
    assert arms(Point(0.5, 0.9, None, 1, 1)) == (0.0, 0.0)


def test_a_curve_runs_from_dense_to_sparse_with_means_intervals_and_marks() -> None:
    results = [
        replace(RESULT, seed=seed, round=number, density=0.8**number, accuracy=accuracy, place=f"{number}{seed}")
        for number, pair in ((2, (0.7, 0.8)), (1, (0.8, 0.8)))
        for seed, accuracy in enumerate(pair)
    ]
    (curve,) = density_curves(aggregate(("", result) for result in results), {"refill": (2, None)})
    assert [point.round for point in curve.points] == [1, 2]
    assert [point.x for point in curve.points] == pytest.approx([0.8, 0.64])
    assert [point.y for point in curve.points] == pytest.approx([0.8, 0.75])
    # deviation of 0.7, 0.8 is 0.1 / sqrt(2); t(0.975, 1) = 12.7062
    assert curve.points[1].half == pytest.approx(12.7062 * 0.05, rel=1e-4)
    assert [point.by_mean for point in curve.points] == [False, True]
    assert not any(point.shown for point in curve.points)


def test_savings_leave_out_what_was_not_measured_and_the_dense_network() -> None:
    rows = aggregate([
        ("", replace(RESULT, round=0, structure="dense", place="0")),
        ("", replace(RESULT, place="1")),
        ("", replace(RESULT, structure="regroup", time_ratio_inference=math.nan, place="2")),
    ])  # fmt: skip
    assert [x for x, _ in trade_points(rows, time_saved)] == [0.25]
    assert [x for x, _ in trade_points(rows, flops_saved)] == [0.75, 0.75]
    dense = dense_row(rows)
    assert dense is not None
    assert dense.round == 0
    assert kinds_of(rows) == [("refill", ""), ("regroup", "")]


def test_controls_have_curves_of_their_own_no_marks_and_no_place_on_the_front() -> None:
    rows = aggregate([
        ("", replace(RESULT, round=0, structure="dense", place="0")),
        ("", replace(RESULT, place="1")),
        ("", replace(RESULT, control="shuffle", accuracy=1.0, place="2")),
        ("", replace(RESULT, structure="unstructured", control="reinit", place="3")),
    ])  # fmt: skip
    kinds = kinds_of(rows)
    assert kinds == [("refill", ""), ("unstructured", "reinit"), ("refill", "shuffle")]
    assert structures_of(kinds) == ["refill", "unstructured"]
    curves = density_curves(rows, {"refill": (1, 1)})
    assert [any(point.by_mean for point in curve.points) for curve in curves] == [True, False, False]
    assert [(x, row.accuracy) for x, row in front_of(trade_points(rows, flops_saved), dense_row(rows))] == [(0.75, 0.9)]
    looks = [style_of(kind, structures_of(kinds)) for kind in kinds]
    assert [look.hollow for look in looks] == [False, True, True]
    assert looks[0].colour == looks[2].colour != looks[1].colour
    assert len({look.dash for look in looks}) == 3
    assert len({look.symbol for look in looks}) == len({look.marker for look in looks}) == 3


POINTS = st.lists(st.tuples(st.integers(0, 5).map(float), st.integers(0, 5).map(float)), max_size=12)


@given(POINTS)
def test_front_is_what_no_point_beats(points: list[tuple[float, float]]) -> None:
    def beaten(point: tuple[float, float]) -> bool:
        return any(other != point and other[0] >= point[0] and other[1] >= point[1] for other in points)

    front = [points[index] for index in pareto(points)]
    assert front == sorted({point for point in points if not beaten(point)})
