"""Plots of what a study found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from lt_lightning.files import replacing
from lt_lightning.study.results import Result

# Okabe and Ito's colours, distinguishable for the colour-blind; markers tell them apart in print.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def plot_accuracy(results: Sequence[Result], path: Path, title: str) -> None:
    """Accuracy over density, a line for each structure, the dense network as a level; a PNG.

    Raises:
        ValueError: if there is no dense result.
    """
    results = [result for result in results if not result.twin]
    dense = [result.accuracy for result in results if result.round == 0]
    if not dense:
        raise ValueError("a plot of accuracy over density needs the dense network's result")
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(dense[0], color="grey", linestyle="--", linewidth=1, label="dense network")
    for index, structure in enumerate(_structures(results)):
        points = sorted((r.density, r.accuracy) for r in results if r.structure == structure)
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=5, label=structure)
    _label(axes, title, sorted({result.density_asked for result in results if result.round > 0}))
    figure.legend(loc="outside lower center", ncols=4)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")


def _structures(results: Sequence[Result]) -> list[str]:
    names = sorted({result.structure for result in results if result.round > 0})
    return sorted(names, key=lambda name: name != "unstructured")


def _label(axes: Axes, title: str, densities: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xticks(densities, [f"{100 * density:.3g}" for density in densities])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("density in %: share of the prunable weights executed (unstructured: kept)")
    axes.set_ylabel("test accuracy")
    axes.set_title(title)
    axes.grid(alpha=0.3)
