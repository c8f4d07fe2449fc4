"""The main figures as PNGs, for papers and slides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lt_lightning.files import replacing
from lt_lightning.report.curves import Curve, arms, half_width, pareto, structures_of
from lt_lightning.study.aggregate import Row
from lt_lightning.study.plots import COLOURS, MARKERS


def draw_density(path: Path, title: str, curves: Sequence[Curve], dense: Row | None) -> None:
    """Accuracy over density, intervals as bars, the dense network as a band, extreme tickets ringed."""
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes: Axes = figure.subplots()
    if dense is not None:
        half = 100 * (half_width(dense.accuracy_sd, dense.seeds) or 0.0)
        axes.axhline(100 * dense.accuracy, color="grey", linestyle="--", linewidth=1, label="dense network")
        if half:
            low, high = max(0.0, 100 * dense.accuracy - half), min(100.0, 100 * dense.accuracy + half)
            axes.axhspan(low, high, color="grey", alpha=0.18, linewidth=0)
    for index, curve in enumerate(curves):
        axes.errorbar(
            [100 * point.x for point in curve.points], [100 * point.y for point in curve.points],
            yerr=np.array([arms(point)[::-1] for point in curve.points]).T * 100, color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)], markersize=5, capsize=2, elinewidth=1, label=curve.name,
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
    axes.set_xscale("log")
    axes.invert_xaxis()
    ticks = sorted({100.0, *(100 * point.x for point in (curves[0].points if curves else ()))})
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    _finish(figure, axes, path, title, "density in %")


def draw_trade(path: Path, title: str, points: Sequence[tuple[float, Row]], dense: Row | None, saved: str) -> None:
    """Accuracy over what is saved, with the Pareto front."""
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes: Axes = figure.subplots()
    everything = ([(0.0, dense)] if dense is not None else []) + list(points)
    front = [everything[i] for i in pareto([(x, row.accuracy) for x, row in everything])]
    axes.plot(
        [100 * x for x, _ in front], [100 * row.accuracy for _, row in front], color="grey", linestyle=":",
        label="Pareto front",
    )  # fmt: skip
    if dense is not None:
        axes.scatter([0.0], [100 * dense.accuracy], label="dense network", color="grey", marker="h")
    for index, name in enumerate(structures_of([row for _, row in points])):
        mine = [(x, row) for x, row in points if row.structure == name]
        axes.scatter(
            [100 * x for x, _ in mine], [100 * row.accuracy for _, row in mine], label=name,
            color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)],
        )  # fmt: skip
    _finish(figure, axes, path, title, saved)


def _finish(figure: Figure, axes: Axes, path: Path, title: str, xlabel: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel("test accuracy in %")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
