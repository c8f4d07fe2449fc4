"""Times that were measured on a busy machine are marked wherever they stand, and stand on no front."""

from __future__ import annotations

import math
from dataclasses import replace

from lt_lightning.report.figures import svg
from lt_lightning.report.plots import flops_saved, kinds_of, looks_of, time_saved, trade_figure, training_time_saved
from lt_lightning.results.aggregate import Row, aggregate
from lt_lightning.results.records import Result
from lt_lightning.results.tables import HEADINGS, row_cells
from tests.toys import DENSE

REFILL = replace(
    DENSE, round=1, structure="refill", accuracy=0.97, density=0.5, flops_ratio=0.5, time_ratio_inference=0.6,
    time_ratio_training=0.7, time_spread_inference=0.02, time_spread_training=0.02, time_samples=7, place="a",
)  # fmt: skip
WIDE = replace(REFILL, round=2, time_ratio_inference=0.16, time_spread_inference=0.9, density=0.25, place="b")


def rows_of(*results: Result) -> list[Row]:
    return aggregate([("", result) for result in (DENSE, *results)])


def test_a_wide_time_is_marked_and_stands_on_no_front() -> None:
    rows = rows_of(REFILL, WIDE)
    looks = looks_of(kinds_of(rows))
    figure = trade_figure("", rows, time_saved, "", looks)
    front, *curves = figure.curves
    assert [round(x) for x, _ in front.points] == [0, 40]
    assert [[round(x) for x, _ in each.points] for each in curves if each.labels] == [[84]]
    assert svg(figure).count(">~</text>") == 1
    for saved in (training_time_saved, flops_saved):  # in which it is as certain as others
        _, *others = trade_figure("", rows, saved, "", looks).curves
        assert not any(each.labels for each in others)
    cells = [dict(zip(HEADINGS, row_cells(row), strict=True)) for row in rows]
    assert [(line["infer"], line["train"]) for line in cells[1:]] == [("0.600", "0.700"), ("~0.160", "0.700")]


def test_wide_times_of_some_seeds_do_not_count_beside_others() -> None:
    seeds = [replace(REFILL, seed=seed, place=str(seed)) for seed in range(3)]
    burst = replace(seeds[0], time_ratio_inference=7.8, time_spread_inference=1.5)
    row = rows_of(burst, *seeds[1:])[1]
    assert (row.time_ratio_inference, row.time_spread_inference, row.seeds) == (0.6, 0.02, 3)
    (_, alone) = rows_of(burst)
    assert (alone.time_ratio_inference, alone.time_spread_inference) == (7.8, 1.5)
    unmeasured = rows_of(replace(REFILL, time_ratio_inference=math.nan, time_spread_inference=math.nan))[1]
    assert math.isnan(unmeasured.time_ratio_inference)
    assert math.isnan(unmeasured.time_spread_inference)
