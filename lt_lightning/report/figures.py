"""Figures: described once as data, and drawn twice, as plotly's JSON for the page and by matplotlib as a PNG."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.figure
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from lt_lightning.storage.files import replacing

XY = tuple[float, float]
# Okabe and Ito's, distinguishable for the colour-blind, the darkest first, without their yellow, which is too pale for
# lines; then two more that are as far from these and from each other.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#A0522D", "#332288")
GREY = "#666666"


@dataclass(frozen=True)
class Axis:
    """A horizontal axis.

    Attributes:
        title: what stands below the axis.
        note: explanation that a picture which stands alone adds to the title.
        ticks: places of ticks on a logarithmic axis that falls from left to right; a linear axis has none.
        whole: whether only whole numbers have ticks.
    """

    title: str
    note: str = ""
    ticks: tuple[float, ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class Curve:
    """Points that belong together, as marks, as a line, or both.

    Attributes:
        name: name in the legend.
        points: places of the points.
        colour: colour of line and marks.
        dash: dash of the line in plotly's words; without it there is no line.
        symbol: symbol of the marks in plotly's words; without it there are no marks.
        hollow: whether marks are hollow.
        width: width of the line in pixels; without it, of the outline of hollow marks.
        size: size of the marks in pixels.
        steps: whether the line goes up or down first and then across.
        bars: lengths of the error bars of each point, up and down.
        texts: what is said of each point when it is pointed at.
        labels: what stands beside each point.
    """

    name: str
    points: tuple[XY, ...]
    colour: str
    dash: str = ""
    symbol: str = ""
    hollow: bool = False
    width: float = 2.0
    size: float = 8.0
    steps: bool = False
    bars: tuple[XY, ...] = ()
    texts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Level:
    """A horizontal line across the figure, and a band around it, if its ends differ.

    Attributes:
        name: name of the line in the legend.
        band: name of the band in the legend.
        value: height of the line.
        low: lower end of the band.
        high: upper end of the band.
    """

    name: str
    band: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Figure:
    """Curves over one axis.

    Attributes:
        title: title of a picture that stands alone.
        x: horizontal axis.
        y: title of the vertical axis.
        curves: the curves, the last one on top.
        level: level that they are compared with.
    """

    title: str
    x: Axis
    y: str
    curves: tuple[Curve, ...]
    level: Level | None = None


@dataclass(frozen=True)
class BarChart:
    """Horizontal bars that are stacked of parts.

    Attributes:
        x: title of the axis.
        bars: lengths of the parts by their names, by the name of the bar.
        unit: unit of the lengths.
    """

    x: str
    bars: Mapping[str, Mapping[str, float]]
    unit: str


@dataclass(frozen=True)
class Picture:
    """The mask of one layer as a picture; rows are filters, columns the weights of a filter.

    Attributes:
        title: what the mask is of.
        source: PNG as a data URI.
        rows: number of rows of the picture.
        columns: number of columns of the picture.
        every: how many rows and columns of the mask one of the picture stands for.
    """

    title: str
    source: str
    rows: int
    columns: int
    every: int = 1


# For the page: plotly's JSON.

PATTERNS = ("", "/", ".", "x")  # of bars, where colours begin again


def plotly_json(figure: Figure | BarChart | Picture) -> dict[str, Any]:
    """Return a figure as plotly takes it."""
    match figure:
        case Figure():
            traces = [*_level_traces(figure), *map(_curve_trace, figure.curves)]
            return {"data": traces, "layout": _layout(_x_axis(figure.x), figure.y)}
        case BarChart():
            return _bar_json(figure)
        case Picture():
            return _picture_json(figure)


def _level_traces(figure: Figure) -> list[dict[str, Any]]:
    """Return the level as far as points are drawn; of density, from the dense network on."""
    if (level := figure.level) is None:
        return []
    xs = [x for curve in figure.curves for x, _ in curve.points]
    ends = [max([*xs, *figure.x.ticks], default=1.0), min(xs, default=0.5)]
    line = {
        "x": ends, "y": [level.value] * 2, "mode": "lines", "name": level.name, "line": {"color": GREY, "dash": "dash"},
    }  # fmt: skip
    band = {
        "x": ends + ends[::-1], "y": [level.high] * 2 + [level.low] * 2, "fill": "toself", "mode": "lines",
        "name": level.band, "line": {"width": 0}, "fillcolor": "rgba(102,102,102,0.18)", "hoverinfo": "skip",
    }  # fmt: skip
    return [band, line] if level.high > level.low else [line]


def _curve_trace(curve: Curve) -> dict[str, Any]:
    parts = {"lines": curve.dash, "markers": curve.symbol, "text": curve.labels}
    trace: dict[str, Any] = {
        "x": [x for x, _ in curve.points], "y": [y for _, y in curve.points], "name": curve.name,
        "mode": "+".join(part for part, there in parts.items() if there),
    }  # fmt: skip
    if curve.dash:
        shape = "vh" if curve.steps else "linear"
        trace["line"] = {"color": curve.colour, "dash": curve.dash, "width": curve.width, "shape": shape}
    if curve.symbol:
        symbol = f"{curve.symbol}-open" if curve.hollow else curve.symbol
        outline = {"line": {"width": curve.width}} if curve.hollow and not curve.dash else {}
        trace["marker"] = {"color": curve.colour, "symbol": symbol, "size": curve.size, **outline}
    if curve.bars:
        ups, downs = map(list, zip(*curve.bars, strict=True))
        arms = {"type": "data", "symmetric": False, "array": ups, "arrayminus": downs}
        trace["error_y"] = {**arms, "color": curve.colour, "thickness": 1.2}
    if curve.texts:
        trace |= {"text": list(curve.texts), "hovertemplate": "%{text}<extra></extra>"}
    if curve.labels:
        labels = {"text": list(curve.labels), "textposition": "top right", "cliponaxis": False}
        trace |= {**labels, "hoverinfo": "skip"}
    return trace


def _bar_json(chart: BarChart) -> dict[str, Any]:
    parts = dict.fromkeys(part for bar in chart.bars.values() for part in bar)
    traces = [
        {
            "type": "bar", "orientation": "h", "name": part,
            "x": [bar.get(part, 0.0) for bar in chart.bars.values()], "y": [_in_two_lines(name) for name in chart.bars],
            "marker": {"color": COLOURS[i % len(COLOURS)], "line": {"color": "#ffffff", "width": 1},
                       "pattern": {"shape": PATTERNS[i // len(COLOURS) % len(PATTERNS)]}},
            "hovertemplate": f"{part}: %{{x:.1f}} {chart.unit}<extra></extra>",
        }
        for i, part in enumerate(parts)
    ]  # fmt: skip
    layout = _layout({"title": {"text": chart.x}}, "")
    layout |= {"barmode": "stack", "height": 190 + 44 * len(chart.bars)}
    layout["legend"] |= {"traceorder": "normal"}
    layout["yaxis"] |= {"autorange": "reversed"}
    return {"data": traces, "layout": layout}


def _in_two_lines(name: str) -> str:
    """Break a long name at its last hyphen, so that it leaves room for the figure on a narrow page."""
    start, hyphen, end = name.rpartition("-")
    return f"{start}-<br>{end}" if hyphen else name


def _picture_json(picture: Picture) -> dict[str, Any]:
    share = f" (1 of {picture.every} rows and columns)" if picture.every > 1 else ""
    trace = {
        "type": "image", "source": picture.source, "zsmooth": False,
        "hovertemplate": "row %{y}, column %{x}<extra></extra>",
    }  # fmt: skip
    layout = {
        "title": {"text": picture.title + share, "font": {"size": 14}, "x": 0, "xref": "paper"},
        "margin": {"l": 50, "r": 12, "t": 36, "b": 44}, "dragmode": "zoom",
        "height": min(460, 110 + 560 * picture.rows // picture.columns),
        "xaxis": {"title": {"text": "weight of a filter"}, "range": [-0.5, picture.columns - 0.5]},
        "yaxis": {"title": {"text": "filter"}, "range": [picture.rows - 0.5, -0.5]},
        "plot_bgcolor": "#ffffff", "font": {"color": "#1a1a1a"},
    }  # fmt: skip
    return {"data": [trace], "layout": layout}


def _x_axis(axis: Axis) -> dict[str, Any]:
    values: dict[str, Any] = {"title": {"text": axis.title}}
    if axis.ticks:
        ticks = {"tickvals": list(axis.ticks), "ticktext": [f"{tick:.3g}" for tick in axis.ticks]}
        return {**values, "type": "log", "autorange": "reversed", **ticks}
    return values | ({"dtick": 1} if axis.whole else {"zeroline": True})


def _layout(xaxis: dict[str, Any], y: str) -> dict[str, Any]:
    return {
        "xaxis": {**xaxis, "gridcolor": "#dddddd", "automargin": True, "ticklabelstandoff": 5},
        "yaxis": {"title": {"text": y}, "gridcolor": "#dddddd", "automargin": True},
        "legend": {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0},
        "margin": {"l": 60, "r": 16, "t": 30, "b": 60}, "plot_bgcolor": "#ffffff", "height": 470,
        "font": {"color": "#1a1a1a"}, "showlegend": True,
    }  # fmt: skip


# For papers and slides: a PNG.

HEIGHT = 4.2  # inches, without the legend
POINTS = 0.62  # points of a mark for each of its pixels on the page
MARKERS = {
    "circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "triangle-down": "v", "pentagon": "p",
    "hexagon": "h", "x": "X", "cross": "P", "star-diamond": "d", "star": "*", "hexagram": "*", "": "",
}  # fmt: skip
LINES: dict[str, Any] = {
    "solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3)), "": "none",
}  # fmt: skip


def write_png(path: Path, figure: Figure) -> None:
    """Draw a figure that stands alone."""
    drawing = matplotlib.figure.Figure(figsize=(7.5, HEIGHT), layout="constrained")
    FigureCanvasAgg(drawing)  # which can tell how large its parts are
    axes = drawing.subplots()
    if (level := figure.level) is not None:
        axes.axhline(level.value, color=GREY, linestyle="--", linewidth=1, label=level.name)
        if level.high > level.low:
            axes.axhspan(level.low, level.high, color=GREY, alpha=0.18, linewidth=0, label=level.band)
    for curve in figure.curves:
        _draw_curve(axes, curve)
    if figure.x.ticks:
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_xticks(figure.x.ticks, [f"{tick:.3g}" for tick in figure.x.ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    elif figure.x.whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(figure.title)
    axes.set_xlabel(": ".join(filter(None, (figure.x.title, figure.x.note))))
    axes.set_ylabel(figure.y)
    axes.grid(alpha=0.3)
    _add_legend(drawing)
    with replacing(path) as partial:
        drawing.savefig(partial, dpi=150, format="png")


def _draw_curve(axes: Axes, curve: Curve) -> None:
    xs, ys = zip(*curve.points, strict=True)
    ups, downs = zip(*curve.bars, strict=True) if curve.bars else ((), ())
    axes.errorbar(
        xs, ys, yerr=(downs, ups) if curve.bars else None, label=curve.name, color=curve.colour,
        linestyle=LINES[curve.dash], linewidth=0.8 * curve.width, drawstyle="steps-pre" if curve.steps else "default",
        marker=MARKERS[curve.symbol], markersize=POINTS * curve.size, capsize=2, elinewidth=0.8,
        markerfacecolor="none" if curve.hollow else curve.colour, zorder=2 if curve.dash else 3,
    )  # fmt: skip
    for label, point in zip(curve.labels, curve.points, strict=bool(curve.labels)):
        axes.annotate(label, point, (4, 4), textcoords="offset points", fontsize="x-small")


def _add_legend(drawing: matplotlib.figure.Figure) -> None:
    """Add a legend below the axes, in as many columns as fit, and make the figure higher by it."""
    for columns in (3, 2, 1):
        legend = drawing.legend(loc="outside lower center", ncols=columns, fontsize="small")
        extent = legend.get_window_extent()
        if extent.width <= drawing.bbox.width or columns == 1:
            break
        legend.remove()
    for handle in legend.findobj(Line2D):
        assert isinstance(handle, Line2D)
        handle.set_markersize(min(handle.get_markersize(), 8))
    drawing.set_figheight(HEIGHT + extent.height / drawing.dpi)
