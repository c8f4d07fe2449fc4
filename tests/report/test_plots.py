"""Figures as data: intervals, fronts and looks, against hand calculation and brute force."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_lightning.report.figures import COLOURS, DARK, LIGHT, OTHERS, QUIET, Curve, Figure
from lt_lightning.report.plots import (
    LONGEST,
    RINGS,
    SHIFT,
    density_figure,
    flops_saved,
    kinds_of,
    learning_figure,
    looks_of,
    pareto,
    published_figure,
    settings_figure,
    stability_figure,
    time_saved,
    trade_figure,
)
from lt_lightning.results.aggregate import Row, aggregate, extremes
from lt_lightning.results.job_record import TicketKind
from lt_lightning.results.published_figures import Comparison, PublishedFigure, Quantity
from lt_lightning.results.records import Result
from lt_lightning.results.verdict import STANDARD, half_width

RESULT = Result(
    data="d", model="m", seed=0, round=1, structure="refill", target_density=0.5, density=0.5, accuracy=0.9,
    dense_accuracy=0.9, params_ratio=0.5, flops_ratio=0.25, train_seconds=1.0, val_accuracy=0.9, best_epoch=1,
    retained_magnitude=1.0, time_ratio_inference=0.75, time_ratio_training=1.0, search="s", place="a", executed=0.5,
)  # fmt: skip
DENSE = replace(RESULT, round=0, structure="dense", density=1.0, executed=1.0, place="0")


REFILL = TicketKind("refill")


def rows_of(*results: Result) -> list[Row]:
    """Rows of results, each of which gets a place of its own."""
    return aggregate(("", replace(result, place=str(number))) for number, result in enumerate(results))


def density(rows: list[Row]) -> Figure:
    return density_figure("", rows, extremes(rows, STANDARD), looks_of(kinds_of(rows)))


def trade(rows: list[Row], saved: Callable[[Row], float]) -> dict[str, Curve]:
    return curves_of(trade_figure("", rows, saved, "", looks_of(kinds_of(rows))))


def curves_of(figure: Figure) -> dict[str, Curve]:
    return {curve.name: curve for curve in figure.curves}


def test_interval_of_three_seeds_is_students() -> None:
    # t(0.975, 2) = 4.302653, and the deviation of 1, 2, 3 is 1.
    assert half_width(1.0, 3) == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert half_width(None, 1) is None


def test_a_curve_runs_from_dense_to_sparse_with_means_and_intervals() -> None:
    (curve,) = density(rows_of(*(
        replace(RESULT, seed=seed, round=number, density=0.8**number, accuracy=accuracy)
        for number, pair in ((2, (0.7, 0.8)), (1, (0.8, 0.8)))
        for seed, accuracy in enumerate(pair)
    ))).curves  # fmt: skip
    assert [x for x, _ in curve.points] == pytest.approx([80, 64])
    assert [y for _, y in curve.points] == pytest.approx([80, 75])
    # The deviation of 0.7 and 0.8 is 0.1 / sqrt(2); t(0.975, 1) = 12.7062. Bands end where accuracy does.
    assert curve.interval[0] == pytest.approx((80, 80))
    assert curve.interval[1] == pytest.approx((75 - 12.7062 * 5, 100), rel=1e-4)
    assert curve.texts[1].endswith("accuracy 75.00 ± 63.53 %, n=2")


def test_one_seed_has_no_interval() -> None:
    (curve, *_) = density(rows_of(RESULT)).curves
    assert curve.interval == ()
    assert curve.texts == ("refill, round 1: density 50.00%, accuracy 90.00 %, n=1",)


def test_rings_mark_the_extreme_tickets_and_no_controls() -> None:
    rows = rows_of(*(
        replace(RESULT, seed=seed, control=control, accuracy=0.9 + 0.05 * seed)
        for seed in range(2)
        for control in ("", "reinit")
    ))  # fmt: skip
    curves = curves_of(density(rows))
    assert list(curves) == ["refill", "refill (reinit control)", "sparsest by the mean"]
    ring = curves["sparsest by the mean"]
    assert ring.points == (curves["refill"].points[0],)
    assert (ring.also, ring.shift) == (("refill",), curves["refill"].shift)  # hidden with what it rings, and around it
    # Differences of 0.5 and 0.6 points, whose interval ends at 0.55 - 6.31 * 0.05, also show that the ticket holds.
    better = rows_of(*(replace(RESULT, seed=seed, accuracy=0.905 + seed / 1000) for seed in range(2)))
    assert list(curves_of(density(better))) == ["refill", *(name for _, _, name, _ in RINGS)]


def test_controls_are_off_at_first() -> None:
    rows = rows_of(DENSE, RESULT, replace(RESULT, control="reinit"))
    off = frozenset({"refill (reinit control)"})
    assert density(rows).off == off
    assert trade_figure("", rows, flops_saved, "", looks_of(kinds_of(rows))).off == off


def test_marks_of_equal_densities_stand_beside_each_other_at_their_true_density() -> None:
    kinds = ("unstructured", "refill", "regroup")
    figure = density(rows_of(*(replace(RESULT, structure=kind) for kind in kinds)))
    curves = [curves_of(figure)[kind] for kind in kinds]
    assert sorted(curve.shift for curve in curves) == [-SHIFT, 0, SHIFT]
    assert curves[0].shift == 0
    assert [curve.points for curve in curves] == [((50, 90),)] * 3
    apart = density(rows_of(RESULT, replace(RESULT, structure="regroup", density=0.4)))
    assert {curve.shift for curve in apart.curves} == {0}


def test_ticks_stand_apart() -> None:
    rows = rows_of(*(replace(RESULT, round=n, density=d) for n, d in enumerate((0.5, 0.49, 0.2), 1)))
    assert density(rows).x.ticks == pytest.approx((100, 50, 20))


def test_the_level_is_the_dense_network_with_its_interval() -> None:
    level = density(rows_of(*(replace(DENSE, seed=seed, accuracy=0.5 + seed / 100) for seed in range(2)))).level
    assert level is not None
    half = 100 * (half_width(math.sqrt(2) / 200, 2) or 0)
    assert (level.value, level.low, level.high) == pytest.approx((50.5, 50.5 - half, 50.5 + half))
    level = density(rows_of(DENSE)).level
    assert level is not None
    assert level.low == level.value == level.high
    assert density(rows_of(RESULT)).level is None


def test_settings_differ_in_symbols_and_dashes_and_have_no_bands_at_first() -> None:
    slow, fast = rows_of(RESULT, replace(RESULT, structure="regroup")), rows_of(replace(RESULT, density=0.4))
    look = looks_of([REFILL])[REFILL]
    figure = settings_figure("digits", REFILL, {"slow": slow, "fast": fast}, look)
    assert [curve.name for curve in figure.curves] == ["slow", "fast"]
    assert [curve.points for curve in figure.curves] == [((50, 90),), ((40, 90),)]
    assert {curve.colour for curve in figure.curves} == {look.colour}
    assert len({(curve.symbol, curve.dash) for curve in figure.curves}) == 2
    assert figure.off == {"95 % intervals"}
    assert figure.x.ticks == (100, 50, 40)


def test_savings_leave_out_what_was_not_measured_and_the_dense_network_saves_nothing() -> None:
    rows = rows_of(DENSE, RESULT, replace(RESULT, structure="regroup", time_ratio_inference=math.nan))
    curves = trade(rows, time_saved)
    assert list(curves) == ["Pareto front", "dense network", "refill"]
    assert curves["refill"].points[0] == pytest.approx((25, 90))
    assert curves["dense network"].points[0] == pytest.approx((0, 90))
    assert list(trade(rows, flops_saved))[2:] == ["refill", "regroup"]


def test_controls_have_curves_of_their_own_and_no_place_on_the_front() -> None:
    rows = rows_of(
        DENSE, RESULT, replace(RESULT, control="shuffle", accuracy=1.0),
        replace(RESULT, structure="unstructured", control="reinit"),
    )  # fmt: skip
    kinds = kinds_of(rows)
    assert kinds == [REFILL, TicketKind("unstructured", "reinit"), TicketKind("refill", "shuffle")]
    front = trade(rows, flops_saved)["Pareto front"]
    assert front.points[0] == pytest.approx((75, 90))
    assert front.labels == ("50 %",)
    looks = looks_of(kinds)
    ticket, shuffled = looks[REFILL], looks[TicketKind("refill", "shuffle")]
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


def test_published_figures_stand_beside_ours() -> None:
    def compared(quantity: Quantity, ticket: str, theirs: float | None, value: float) -> Comparison:
        return Comparison(PublishedFigure(quantity, ticket, theirs, value), None if theirs is None else 21.0, 90.0, 3)

    looks = looks_of([REFILL])
    comparisons = [
        compared("accuracy", "refill", 20.0, 91.0), compared("accuracy", "refill", 22.0, 92.0),
        compared("accuracy", "regroup|plus", 50.0, 93.0), compared("flops", "refill", 20.0, 30.0),
        compared("extreme_sparsity", "refill", None, 60.0),
    ]  # fmt: skip
    figure = published_figure("", comparisons, "accuracy", "", looks)
    assert figure is not None
    curves = curves_of(figure)
    assert {name: curve.points for name, curve in curves.items()} == {
        "refill, published": ((20, 91), (22, 92)), "refill, ours": ((21, 90),),
        "regroup|plus, published": ((50, 93),), "regroup|plus, ours": ((21, 90),),
    }  # fmt: skip
    published, ours = curves["refill, published"], curves["refill, ours"]
    assert published.colour == ours.colour == looks[REFILL].colour != curves["regroup|plus, ours"].colour
    assert (published.hollow, ours.hollow) == (True, False)
    assert published_figure("", comparisons, "extreme_sparsity", "", looks) is None


def test_of_trainings_the_last_round_is_shown_at_first() -> None:
    dense, shuffled = TicketKind("dense"), TicketKind("refill", "shuffle")
    points = ((1.0, 0.5), (2.0, 0.7))
    trainings = {(dense, 0): points, (REFILL, 1): points, (REFILL, 2): points, (shuffled, 2): points}
    figure = learning_figure(trainings, "", looks_of([REFILL, shuffled]))
    assert [(curve.name, curve.also) for curve in figure.curves] == [
        ("dense", ("round 0",)), ("refill", ("round 1",)), ("refill", ("round 2",)),
        ("refill (shuffle control)", ("round 2",)),
    ]  # fmt: skip
    assert {curve.points for curve in figure.curves} == {points}
    assert figure.off == {"round 1", "refill (shuffle control)"}
    assert figure.curves[0].colour == QUIET
    assert figure.curves[1].opacity < figure.curves[2].opacity == 1
    assert figure.x.whole


def test_long_trainings_are_thinned_out_up_to_their_last_epoch_and_values_must_be_finite() -> None:
    points = [(float(epoch), 1 / epoch) for epoch in range(1, 1001)]
    (curve,) = learning_figure({(REFILL, 1): points}, "", {}).curves
    assert len(curve.points) <= LONGEST + 1
    assert (curve.points[0], curve.points[-1]) == (points[0], points[-1])
    assert set(curve.points) <= set(points)
    diverged = {(REFILL, 1): [(1.0, 2.0), (2.0, math.inf), (3.0, math.nan)], (REFILL, 2): [(1.0, math.nan)]}
    assert [each.points for each in learning_figure(diverged, "", {}).curves] == [((1.0, 2.0),)]


def test_errors_between_two_trainings_are_at_equal_distances() -> None:
    (curve, alone) = stability_figure("", {"dense": [0.1, 0.3, 0.2], "one": [0.5]}).curves
    assert curve.points == ((0, 10), (0.5, 30), (1, 20))
    assert alone.points == ((0, 50),)


def test_no_two_structures_look_the_same() -> None:
    looks = looks_of([TicketKind(f"s{number}") for number in range(3 * len(COLOURS))])
    assert len({(look.colour, look.symbol) for look in looks.values()}) == 3 * len(COLOURS)


def test_a_ticket_from_another_search_looks_other_than_the_job_s_own() -> None:
    own, other = looks_of([REFILL, TicketKind("refill", origin="cifar10")]).values()
    assert (own.colour, own.hollow) != (other.colour, other.hollow) == (other.colour, False)


# Machado, Oliveira and Fernandes (2009), table 1, severity 1.0: what the colour-blind see of linear RGB.
SEEN = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
}
TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
WHITE = (0.95047, 1.0, 1.08883)


def linear(*colours: str) -> np.ndarray:
    """Linear RGB of colours as #rrggbb."""
    values = np.array([[int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)] for colour in colours])
    return np.asarray(np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4))


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("kind", SEEN)
def test_the_colour_blind_tell_colours_apart(kind: str, colours: tuple[str, ...]) -> None:
    """Distances in CIELAB; 2 is what can just be seen side by side."""
    seen = linear(*colours) @ np.array(SEEN[kind]).T
    cube = np.cbrt(np.clip(seen, 1e-9, 1) @ np.array(TO_XYZ).T / WHITE)
    lab = np.stack([116 * cube[:, 1] - 16, 500 * (cube[:, 0] - cube[:, 1]), 200 * (cube[:, 1] - cube[:, 2])], 1)
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 100 * np.eye(len(lab))
    assert apart.min() > 12


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_colours_stand_out_from_the_page(dark: bool) -> None:
    """Contrasts by WCAG 2.1, which asks for 3 of graphics and for 4.5 of text; thin lines on a dark page need that."""

    def contrast(one: str, other: str) -> float:
        low, high = sorted(float(luminance) for luminance in linear(one, other) @ np.array(TO_XYZ[1]))
        return (high + 0.05) / (low + 0.05)

    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    ground, panel = OTHERS["ground"][dark], OTHERS["panel"][dark]
    assert min(contrast(colour, ground) for colour in (DARK if dark else LIGHT)) >= (4.5 if dark else 3)
    texts = [OTHERS[name][dark] for name in ("text", "quiet", "accent")]
    assert min(contrast(text, behind) for text in texts for behind in (ground, panel)) >= 4.5
