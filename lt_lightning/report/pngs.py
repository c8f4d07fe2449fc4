"""The main figures as PNGs, for papers and slides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from PIL import Image, ImageDraw, ImageFont

from lt_lightning.files import replacing
from lt_lightning.report.comparisons import Series
from lt_lightning.report.contents import named
from lt_lightning.report.curves import (
    Curve,
    arms,
    beside_each_other,
    dense_row,
    density_curves,
    extreme_points,
    front_of,
    half_width,
    kinds_of,
    structures_of,
)
from lt_lightning.report.figures import GREY, density_of, style_of
from lt_lightning.report.mask_pictures import MEANING, PALETTE, Picture
from lt_lightning.results.aggregate import Row, aggregate
from lt_lightning.results.records import Result

HEIGHT = 4.2  # inches, without the legend
LARGE = 13  # points of a mark around another
MASKS_WIDTH = 1100  # pixels of a mask, where it is not larger


def draw_results(path: Path, title: str, results: Sequence[Result]) -> None:
    """Accuracy over density of one job."""
    rows = aggregate(("", result) for result in results)
    draw_density(path, title, density_curves(rows, {}), dense_row(rows))


def draw_density(path: Path, title: str, curves: Sequence[Curve], dense: Row | None) -> None:
    """Accuracy over density: intervals as bars, the dense network as a band, extremes ringed, controls hollow."""
    figure, axes = _new()
    if dense is not None:
        half = 100 * (half_width(dense.accuracy_sd, dense.seeds) or 0.0)
        axes.axhline(100 * dense.accuracy, color=GREY, linestyle="--", linewidth=1, label="dense network")
        if half:
            low, high = max(0.0, 100 * dense.accuracy - half), min(100.0, 100 * dense.accuracy + half)
            axes.axhspan(low, high, color=GREY, alpha=0.18, linewidth=0, label="dense, interval")
    structures = structures_of([curve.kind for curve in curves])
    places = beside_each_other(curves)
    for curve, xs in zip(curves, places, strict=True):
        style = style_of(curve.kind, structures)
        axes.errorbar(
            [100 * x for x in xs], [100 * point.y for point in curve.points],
            yerr=np.array([arms(point)[::-1] for point in curve.points]).T * 100, color=style.colour,
            linestyle=style.line, marker=style.marker,
            markersize=5, markerfacecolor="none" if style.hollow else style.colour, capsize=2,
            linewidth=1 if style.hollow else 1.6, elinewidth=0.8, label=named(*curve.kind),
        )  # fmt: skip
    for what, marker, label in (
        ("by_mean", "o", "extreme ticket by the mean"),
        ("shown", "*", "extreme ticket, shown by the interval"),
    ):
        if marked := extreme_points(curves, places, what):
            axes.plot(
                [100 * x for _, _, x in marked], [100 * point.y for _, point, _ in marked], linestyle="none",
                marker=marker, markersize=LARGE, markerfacecolor="none", markeredgecolor="black", label=label, zorder=5,
            )  # fmt: skip
    _log_axis(axes, [100.0, *(100 * point.x for point in (curves[0].points if curves else ()))])
    what = "density in %: share of the prunable weights executed (unstructured: kept)"
    _finish(figure, axes, path, title, what, "test accuracy in %")


def draw_trade(path: Path, title: str, points: Sequence[tuple[float, Row]], dense: Row | None, saved: str) -> None:
    """Accuracy over what is saved, with the Pareto front of the tickets."""
    figure, axes = _new()
    front = front_of(points, dense)
    corners = [(100 * x, 100 * row.accuracy) for x, row in front]
    axes.plot(*zip(*corners, strict=True), color=GREY, linestyle=":", drawstyle="steps-pre", label="Pareto front")
    for corner, (_, row) in zip(corners, front, strict=True):
        axes.annotate(density_of(row), corner, (4, 4), textcoords="offset points", fontsize="x-small")
    if dense is not None:
        axes.scatter([0.0], [100 * dense.accuracy], label="dense network", color=GREY, marker="*", s=60)
    kinds = kinds_of([row for _, row in points])
    for kind in kinds:
        style = style_of(kind, structures_of(kinds))
        mine = [(x, row) for x, row in points if (row.structure, row.control) == kind]
        axes.scatter(
            [100 * x for x, _ in mine], [100 * row.accuracy for _, row in mine], label=named(*kind),
            edgecolors=style.colour, facecolors="none" if style.hollow else style.colour, marker=style.marker,
        )  # fmt: skip
    _finish(figure, axes, path, title, saved, "test accuracy in %")


def draw_published(path: Path, title: str, series: Sequence[Series], quantity: str, structures: Sequence[str]) -> None:
    """What was published (hollow, on broken lines) and ours (filled), both over what remains as the paper counts."""
    figure, axes = _new()
    tickets = list(dict.fromkeys([*structures, *(each.ticket for each in series)]))
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


def draw_masks(path: Path, title: str, pictures: Sequence[Picture]) -> None:
    """A layer's mask by the search and after every structure, below each other; rows are filters."""
    times = min(max(1, MASKS_WIDTH // pictures[0].columns), 8)
    font, line = ImageFont.load_default(18), 30
    blocks = [(f"{each.title}: {each.rows} filters x {each.columns} weights", each.image()) for each in pictures]
    width = max(times * pictures[0].columns, *(int(font.getlength(text)) for text in (title, *(b[0] for b in blocks))))
    height = line * (len(blocks) + 2 + len(MEANING)) + sum((times * each.rows + line // 2) for each in pictures)
    canvas = Image.new("RGB", (width + 2 * line, height + line), "white")
    drawing = ImageDraw.Draw(canvas)
    drawing.text((line, line // 2), title, "black", font)
    y = 2 * line
    for text, image in blocks:
        drawing.text((line, y), text, "black", font)
        drawn = image.convert("RGB").resize((times * image.width, times * image.height), Image.Resampling.NEAREST)
        canvas.paste(drawn, (line, y + line))
        drawing.rectangle((line - 1, y + line - 1, line + drawn.width, y + line + drawn.height), outline=GREY)
        y += line + drawn.height + line // 2
    for colour, meaning in zip(PALETTE, MEANING, strict=True):
        drawing.rectangle((line, y + 4, line + 16, y + 20), colour, GREY)
        drawing.text((line + 26, y), meaning, "black", font)
        y += line
    with replacing(path) as partial:
        canvas.save(partial, "PNG")


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
    for handle in legend.legend_handles:
        if isinstance(handle, Line2D):
            handle.set_markersize(min(handle.get_markersize(), 0.6 * LARGE))
    figure.set_figheight(HEIGHT + extent.height / figure.dpi)
