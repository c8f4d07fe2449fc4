"""Figures as data: intervals, fronts and looks, against hand calculation and brute force."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from lt_lightning.report.figures import COLOURS, LINES, MARKERS, Curve, Figure, plotly_json
from lt_lightning.report.plots import (
    CONTROL_DASHES,
    CONTROL_SYMBOLS,
    SYMBOLS,
    density_figure,
    flops_saved,
    kinds_of,
    looks_of,
    pareto,
    time_saved,
    trade_figure,
)
from lt_lightning.results.aggregate import aggregate, extremes
from lt_lightning.results.job_record import TicketKind
from lt_lightning.results.records import Result
from lt_lightning.results.verdict import STANDARD, half_width

RESULT = Result(
    data="d", model="m", seed=0, round=1, structure="refill", target_density=0.5, density=0.5, accuracy=0.9,
    dense_accuracy=0.9, params_ratio=0.5, flops_ratio=0.25, train_seconds=1.0, val_accuracy=0.9, best_epoch=1,
    retained_magnitude=1.0, time_ratio_inference=0.75, time_ratio_training=1.0, search="s", place="a", executed=0.5,
)  # fmt: skip
DENSE = replace(RESULT, round=0, structure="dense", density=1.0, executed=1.0, place="0")


def curves_of(figure: Figure) -> dict[str, Curve]:
    return {line.name: line for line in figure.curves}


def test_interval_of_three_seeds_is_students() -> None:
    # t(0.975, 2) = 4.302653, and the deviation of 1, 2, 3 is 1.
    assert half_width(1.0, 3) == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert half_width(None, 1) is None


def test_a_line_runs_from_dense_to_sparse_with_means_and_intervals() -> None:
    results = [
        replace(RESULT, seed=seed, round=number, density=0.8**number, accuracy=accuracy, place=f"{number}{seed}")
        for number, pair in ((2, (0.7, 0.8)), (1, (0.8, 0.8)))
        for seed, accuracy in enumerate(pair)
    ]
    rows = aggregate(("", result) for result in results)
    (line,) = density_figure("", rows, extremes(rows, STANDARD)).curves
    assert [x for x, _ in line.points] == pytest.approx([80, 64])
    assert [y for _, y in line.points] == pytest.approx([80, 75])
    # The deviation of 0.7 and 0.8 is 0.1 / sqrt(2); t(0.975, 1) = 12.7062. Bars end where accuracy does.
    assert line.bars[0] == (0, 0)
    assert line.bars[1] == pytest.approx((25, 12.7062 * 5), rel=1e-4)
    assert line.texts[1].endswith("accuracy 75.00 ± 63.53 %, n=2")


def test_rings_mark_the_extreme_tickets_and_no_controls() -> None:
    results = [
        replace(RESULT, seed=seed, control=control, accuracy=0.9 + 0.05 * seed, place=f"{control}{seed}")
        for seed in range(2)
        for control in ("", "reinit")
    ]
    rows = aggregate(("", result) for result in results)
    lines = curves_of(density_figure("", rows, extremes(rows, STANDARD)))
    assert list(lines) == ["refill", "refill (reinit control)", "extreme ticket by the mean"]
    assert lines["extreme ticket by the mean"].points == (lines["refill"].points[0],)


def test_ticks_stand_apart() -> None:
    densities = (0.5, 0.49, 0.2)
    rows = aggregate(("", replace(RESULT, round=n, density=d, place=str(n))) for n, d in enumerate(densities, 1))
    assert density_figure("", rows, []).x.ticks == pytest.approx((100, 50, 20))


def test_the_level_is_the_dense_network_with_its_interval() -> None:
    rows = aggregate(("", replace(DENSE, seed=seed, accuracy=0.5 + seed / 100, place=str(seed))) for seed in range(2))
    level = density_figure("", rows, []).level
    assert level is not None
    half = 100 * (half_width(math.sqrt(2) / 200, 2) or 0)
    assert (level.value, level.low, level.high) == pytest.approx((50.5, 50.5 - half, 50.5 + half))
    (one,) = aggregate([("", DENSE)])
    assert [trace["name"] for trace in plotly_json(density_figure("", [one], []))["data"]] == ["dense network"]


def test_savings_leave_out_what_was_not_measured_and_the_dense_network_saves_nothing() -> None:
    rows = aggregate([
        ("", DENSE),
        ("", replace(RESULT, place="1")),
        ("", replace(RESULT, structure="regroup", time_ratio_inference=math.nan, place="2")),
    ])  # fmt: skip
    lines = curves_of(trade_figure("", rows, time_saved, ""))
    assert list(lines) == ["Pareto front", "dense network", "refill"]
    assert lines["refill"].points[0] == pytest.approx((25, 90))
    assert lines["dense network"].points[0] == pytest.approx((0, 90))
    assert list(curves_of(trade_figure("", rows, flops_saved, "")))[2:] == ["refill", "regroup"]


def test_controls_have_curves_of_their_own_and_no_place_on_the_front() -> None:
    rows = aggregate([
        ("", DENSE),
        ("", replace(RESULT, place="1")),
        ("", replace(RESULT, control="shuffle", accuracy=1.0, place="2")),
        ("", replace(RESULT, structure="unstructured", control="reinit", place="3")),
    ])  # fmt: skip
    kinds = kinds_of(rows)
    assert kinds == [TicketKind("refill"), TicketKind("unstructured", "reinit"), TicketKind("refill", "shuffle")]
    front = curves_of(trade_figure("", rows, flops_saved, ""))["Pareto front"]
    assert front.points[0] == pytest.approx((75, 90))
    assert front.labels == ("50 %",)
    looks = looks_of(kinds)
    ticket, shuffled = looks[TicketKind("refill")], looks[TicketKind("refill", "shuffle")]
    assert [look.hollow for look in looks.values()] == [False, True, True]
    assert ticket.colour == shuffled.colour != looks[TicketKind("unstructured", "reinit")].colour
    assert len({look.dash for look in looks.values()}) == len({look.symbol for look in looks.values()}) == 3


POINTS = st.lists(st.tuples(st.integers(0, 5).map(float), st.integers(0, 5).map(float)), max_size=12)


@given(POINTS)
def test_front_is_what_no_point_beats(points: list[tuple[float, float]]) -> None:
    def beaten(point: tuple[float, float]) -> bool:
        return any(other != point and other[0] >= point[0] and other[1] >= point[1] for other in points)

    front = [points[index] for index in pareto(points)]
    assert front == sorted({point for point in points if not beaten(point)})


def test_no_two_structures_look_the_same() -> None:
    looks = looks_of([TicketKind(f"s{number}") for number in range(3 * len(COLOURS))])
    assert len({(look.colour, look.symbol) for look in looks.values()}) == 3 * len(COLOURS)


def test_a_ticket_from_another_search_looks_other_than_the_job_s_own() -> None:
    own, other = looks_of([TicketKind("refill"), TicketKind("refill", origin="cifar10")]).values()
    assert (own.colour, own.hollow) != (other.colour, other.hollow) == (other.colour, False)


def test_pictures_have_a_marker_and_a_line_for_every_look() -> None:
    symbols = [*SYMBOLS, *filter(None, CONTROL_SYMBOLS)]
    assert len({MARKERS[symbol] for symbol in symbols}) == len(symbols)
    assert len({LINES[dash] for dash in ("solid", *CONTROL_DASHES)}) == 1 + len(CONTROL_DASHES)


# Machado, Oliveira and Fernandes (2009), table 1, severity 1.0: what the colour-blind see of linear RGB.
SEEN = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
}
TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
WHITE = (0.95047, 1.0, 1.08883)


@pytest.mark.parametrize("kind", SEEN)
def test_the_colour_blind_tell_colours_apart(kind: str) -> None:
    """Distances in CIELAB; 2 is what can just be seen side by side."""
    colours = np.array([to_rgb(colour) for colour in COLOURS])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    cube = np.cbrt(np.clip(linear @ np.array(SEEN[kind]).T, 1e-9, 1) @ np.array(TO_XYZ).T / WHITE)
    lab = np.stack([116 * cube[:, 1] - 16, 500 * (cube[:, 0] - cube[:, 1]), 200 * (cube[:, 1] - cube[:, 2])], 1)
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 100 * np.eye(len(lab))
    assert apart.min() > 12
