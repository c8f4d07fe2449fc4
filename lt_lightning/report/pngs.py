"""The main figures as PNGs, for papers and slides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lt_lightning.files import replacing
from lt_lightning.report.curves import Curve, arms, front_of, half_width, kinds_of, structures_of
from lt_lightning.report.found import named
from lt_lightning.report.published import Series
from lt_lightning.report.styles import GREY, style_of
from lt_lightning.study.aggregate import Row

HEIGHT = 4.2  # inches, without the legend


def draw_density(path: Path, title: str, curves: Sequence[Curve], dense: Row | None) -> None:
    """Accuracy over density, intervals as bars, the dense network as a band, extreme tickets ringed, twins hollow."""
    figure, axes = _new()
    if dense is not None:
        half = 100 * (half_width(dense.accuracy_sd, dense.seeds) or 0.0)
        axes.axhline(100 * dense.accuracy, color=GREY, linestyle="--", linewidth=1, label="dense network")
        if half:
            low, high = max(0.0, 100 * dense.accuracy - half), min(100.0, 100 * dense.accuracy + half)
            axes.axhspan(low, high, color=GREY, alpha=0.18, linewidth=0)
    structures = structures_of([curve.kind for curve in curves])
    for curve in curves:
        style = style_of(curve.kind, structures)
        axes.errorbar(
            [100 * point.x for point in curve.points], [100 * point.y for point in curve.points],
            yerr=np.array([arms(point)[::-1] for point in curve.points]).T * 100, color=style.colour,
            linestyle=style.line, marker=style.marker,
            markersize=5, markerfacecolor="none" if style.hollow else style.colour, capsize=2,
            linewidth=1 if style.hollow else 1.6, elinewidth=0.8, label=named(*curve.kind),
        )  # fmt: skip
    for what, marker, label in (
        ("by_mean", "o", "extreme ticket by the mean"),
        ("shown", "*", "extreme ticket, shown"),
    ):
        marked = [point for curve in curves for point in curve.points if getattr(point, what)]
        if marked:
            axes.scatter(
                [100 * point.x for point in marked], [100 * point.y for point in marked], s=190, marker=marker,
                facecolors="none", edgecolors="black", label=label, zorder=5,
            )  # fmt: skip
    _log_axis(axes, [100.0, *(100 * point.x for point in (curves[0].points if curves else ()))])
    _finish(figure, axes, path, title, "density in %", "test accuracy in %")


def draw_trade(path: Path, title: str, points: Sequence[tuple[float, Row]], dense: Row | None, saved: str) -> None:
    """Accuracy over what is saved, with the Pareto front of the tickets."""
    figure, axes = _new()
    front = front_of(points, dense)
    axes.plot([100 * x for x, _ in front], [100 * y for _, y in front], color=GREY, linestyle=":", label="Pareto front")
    if dense is not None:
        axes.scatter([0.0], [100 * dense.accuracy], label="dense network", color=GREY, marker="*", s=60)
    kinds = kinds_of([row for _, row in points])
    for kind in kinds:
        style = style_of(kind, structures_of(kinds))
        mine = [(x, row) for x, row in points if (row.structure, row.twin) == kind]
        axes.scatter(
            [100 * x for x, _ in mine], [100 * row.accuracy for _, row in mine], label=named(*kind),
            edgecolors=style.colour, facecolors="none" if style.hollow else style.colour, marker=style.marker,
        )  # fmt: skip
    _finish(figure, axes, path, title, saved, "test accuracy in %")


def draw_published(path: Path, title: str, series: Sequence[Series], quantity: str) -> None:
    """What was published (hollow, on broken lines) and ours (filled), both over what remains as the paper counts."""
    figure, axes = _new()
    tickets = [each.ticket for each in series]
    for each in series:
        style = style_of((each.ticket, ""), tickets)
        for name, pairs, theirs in (("published", each.theirs, True), ("ours", each.ours, False)):
            axes.plot(
                [x for x, _ in pairs], [y for _, y in pairs], color=style.colour, marker=style.marker,
                linestyle="--" if theirs else "-", markerfacecolor="none" if theirs else style.colour,
                label=f"{each.ticket}, {name}",
            )  # fmt: skip
    _log_axis(axes, [x for each in series for x, _ in each.theirs])
    _finish(figure, axes, path, title, "remaining in %, as the paper counts", quantity)


def _new() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)  # which can tell how large its parts are
    return figure, figure.subplots()


def _log_axis(axes: Axes, values: Sequence[float]) -> None:
    """From dense to sparse, with ticks at these values as far as they stand apart."""
    ticks: list[float] = []
    for value in sorted(set(values), reverse=True):
        if not ticks or value < 0.93 * ticks[-1]:
            ticks.append(value)
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _finish(figure: Figure, axes: Axes, path: Path, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    _legend(figure, axes)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")


def _legend(figure: Figure, axes: Axes) -> None:
    """Below the axes, in as many columns as fit, on a figure that is higher by it."""
    for columns in (3, 2, 1):
        legend = figure.legend(loc="outside lower center", ncols=columns, fontsize="small")
        extent = legend.get_window_extent()
        if extent.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    figure.set_figheight(HEIGHT + extent.height / figure.dpi)
