"""Figures as plotly's JSON, and how kinds of tickets look in every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import to_hex

from lt_lightning.experiment.config.options import CONTROLS
from lt_lightning.report.comparisons import Series
from lt_lightning.report.contents import name_of, named
from lt_lightning.report.curves import (
    Curve,
    Kind,
    Point,
    arms,
    beside_each_other,
    extreme_points,
    front_of,
    half_width,
    kinds_of,
    structures_of,
)
from lt_lightning.report.mask_pictures import Picture
from lt_lightning.results.aggregate import Row

# Okabe and Ito's, distinguishable for the colour-blind, the darkest first, without their yellow, which is too pale for
# lines; then two more that are as far from these and from each other.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#A0522D", "#332288")
SYMBOLS = (("circle", "o"), ("square", "s"), ("triangle-up", "^"), ("diamond", "D"), ("triangle-down", "v"),
           ("pentagon", "p"), ("hexagon", "h"))  # fmt: skip
# Of controls: reinit has its structure's symbol, hollow.
CONTROL_SYMBOLS = {"shuffle": ("x", "X"), "random": ("cross", "P"), "small_dense": ("star-diamond", "d")}
DASHES = (("dash", "--"), ("dot", ":"), ("dashdot", "-."), ("longdash", (0, (8, 3))))
GREY = "#666666"


@dataclass(frozen=True)
class Style:
    """Of one kind of ticket.

    Attributes:
        colour: of its line and marks.
        symbol: in plotly's words, `-open` if hollow.
        marker: in matplotlib's.
        dash: of the line in plotly's words.
        line: in matplotlib's.
        hollow: whether marks are.
    """

    colour: str
    symbol: str
    marker: str
    dash: str
    line: str | tuple[int, tuple[int, ...]]
    hollow: bool


def style_of(kind: Kind, structures: Sequence[str]) -> Style:
    """The look of a kind of ticket.

    Args:
        kind: in question.
        structures: all that the figure shows, in order.
    """
    structure, control = kind
    index = structures.index(structure)
    # Where colours begin again, symbols are one further: no two structures have both in common.
    symbol, marker = CONTROL_SYMBOLS.get(control, SYMBOLS[(index + index // len(COLOURS)) % len(SYMBOLS)])
    dash, line = DASHES[CONTROLS.index(control) % len(DASHES)] if control in CONTROLS else ("solid", "-")
    colour = COLOURS[index % len(COLOURS)]
    return Style(colour, f"{symbol}-open" if control else symbol, marker, dash, line, bool(control))


def ramp(count: int) -> list[str]:
    """So many colours in an order that is seen, from dark to light (viridis without its palest).

    >>> ramp(2)
    ['#440154', '#5ec962']
    """
    return [to_hex(colormaps["viridis"](0.75 * index / max(1, count - 1))) for index in range(count)]


# Figures as plotly's JSON, from the data that `curves` makes.

Figure = dict[str, Any]
MARKS = (
    ("by_mean", "circle-open", 17, "extreme ticket by the mean"),
    ("shown", "star-open", 19, "extreme ticket, shown by the interval"),
)
PATTERNS = ("", "/", ".", "x")


def density_figure(curves: Sequence[Curve], dense: Row | None) -> Figure:
    """Accuracy over density: intervals as bars, the dense network as a band, extremes ringed, controls hollow."""
    structures = structures_of([curve.kind for curve in curves])
    places = beside_each_other(curves)
    traces = _dense_traces(places, dense) if dense is not None else []
    traces += [_curve(curve, xs, structures) for curve, xs in zip(curves, places, strict=True)]
    for what, symbol, size, name in MARKS:
        if marked := extreme_points(curves, places, what):
            traces.append({
                "x": [100 * x for _, _, x in marked], "y": [100 * point.y for _, point, _ in marked],
                "mode": "markers", "name": name,
                "marker": {"symbol": symbol, "size": size, "color": "#000000", "line": {"width": 2}},
                "text": [f"{named(*kind)}, round {point.round}" for kind, point, _ in marked],
                "hovertemplate": "%{text}<extra></extra>",
            })  # fmt: skip
    points = [100 * point.x for point in (curves[0].points if curves else ())]
    return _figure(traces, _log_axis("density in %", [100.0, *points]), "test accuracy in %")


def trade_figure(points: Sequence[tuple[float, Row]], dense: Row | None, saved: str) -> Figure:
    """Accuracy over what is saved, a trace for each kind of ticket, and the front that no ticket beats in both.

    Args:
        points: share that is saved, and the ticket.
        dense: the dense network's row, which saves nothing.
        saved: label of the axis.
    """
    front = front_of(points, dense)
    traces: list[Figure] = [{
        "x": [100 * x for x, _ in front], "y": [100 * row.accuracy for _, row in front], "mode": "lines+text",
        "name": "Pareto front", "line": {"color": GREY, "dash": "dot", "width": 2, "shape": "vh"}, "hoverinfo": "skip",
        "text": [density_of(row) for _, row in front], "textposition": "top right", "cliponaxis": False,
    }]  # fmt: skip
    if dense is not None:
        traces.append(_scatter("dense network", [(0.0, dense)], GREY, "hexagram"))
    kinds = kinds_of([row for _, row in points])
    for kind in kinds:
        style = style_of(kind, structures_of(kinds))
        mine = [(x, row) for x, row in points if (row.structure, row.control) == kind]
        traces.append(_scatter(named(*kind), mine, style.colour, style.symbol))
    return _figure(traces, {"title": {"text": saved}, "zeroline": True}, "test accuracy in %")


def published_figure(series: Sequence[Series], quantity: str, structures: Sequence[str]) -> Figure:
    """What was published (hollow, on broken lines) and ours (filled), both over what remains as the paper counts.

    Args:
        series: of each kind of ticket.
        quantity: label of the axis.
        structures: of our tickets, whose colours are those of the other figures.
    """
    traces = []
    tickets = list(dict.fromkeys([*structures, *(each.ticket for each in series)]))
    for each in series:
        style = style_of((each.ticket, ""), tickets)
        for name, pairs, theirs in (("published", each.theirs, True), ("ours", each.ours, False)):
            traces.append({
                "x": [x for x, _ in pairs], "y": [y for _, y in pairs], "mode": "lines+markers",
                "name": f"{each.ticket}, {name}",
                "line": {"color": style.colour, "dash": "dash" if theirs else "solid"},
                "marker": {"symbol": style.symbol + "-open" * theirs, "size": 9},
            })  # fmt: skip
    remaining = [x for each in series for x, _ in each.theirs]
    return _figure(traces, _log_axis("remaining in %, as the paper counts", remaining), quantity)


def learning_figure(lines: Mapping[str, Sequence[tuple[float, float]]], quantity: str) -> Figure:
    """A line for each training, the darker the earlier: (epoch, value)."""
    traces = [
        {"x": [x for x, _ in points], "y": [y for _, y in points], "mode": "lines+markers", "name": name,
         "line": {"color": colour}, "marker": {"size": 4}}
        for colour, (name, points) in zip(ramp(len(lines)), lines.items(), strict=True)
    ]  # fmt: skip
    last = max((x for points in lines.values() for x, _ in points), default=1.0)
    axis = {"title": {"text": "epoch of the training"}} | ({"dtick": 1} if last <= 12 else {})
    return _figure(traces, axis, quantity)


def time_figure(parts: Mapping[str, Mapping[str, float]]) -> Figure:
    """Seconds of each part, stacked for each search.

    Args:
        parts: by search, seconds by part.
    """
    names = list(dict.fromkeys(name for each in parts.values() for name in each))
    searches = list(parts)
    traces = [
        {
            "type": "bar", "orientation": "h", "name": name,
            "x": [parts[search].get(name, 0.0) for search in searches], "y": [_broken(search) for search in searches],
            "marker": {"color": COLOURS[i % len(COLOURS)], "line": {"color": "#ffffff", "width": 1},
                       "pattern": {"shape": PATTERNS[i // len(COLOURS) % len(PATTERNS)]}},
            "hovertemplate": name + ": %{x:.1f} s<extra></extra>",
        }
        for i, name in enumerate(names)
    ]  # fmt: skip
    figure = _figure(traces, {"title": {"text": "seconds of training"}}, "")
    figure["layout"] |= {"barmode": "stack", "height": 190 + 44 * len(searches)}
    figure["layout"]["legend"] |= {"traceorder": "normal"}
    figure["layout"]["yaxis"] |= {"autorange": "reversed"}
    return figure


def stability_figure(lines: Mapping[str, Sequence[float]]) -> Figure:
    """Test error along the line between two trainings, for each line."""
    traces = [
        {"x": [index / max(1, len(errors) - 1) for index in range(len(errors))], "y": [100 * each for each in errors],
         "mode": "lines+markers", "name": name, "line": {"color": colour}, "marker": {"size": 5}}
        for colour, (name, errors) in zip(ramp(len(lines)), lines.items(), strict=True)
    ]  # fmt: skip
    return _figure(traces, {"title": {"text": "from one training's end (0) to the other's (1)"}}, "test error in %")


def mask_figure(picture: Picture) -> Figure:
    """A picture that can be zoomed; rows are filters, columns the weights of a filter."""
    share = f" (1 of {picture.every} rows and columns)" if picture.every > 1 else ""
    trace = {
        "type": "image",
        "source": picture.source,
        "zsmooth": False,
        "hovertemplate": "row %{y}, column %{x}<extra></extra>",
    }
    height = min(460, 110 + 560 * picture.rows // picture.columns)
    layout = {
        "title": {"text": picture.title + share, "font": {"size": 14}, "x": 0, "xref": "paper"},
        "margin": {"l": 50, "r": 12, "t": 36, "b": 44}, "height": height, "dragmode": "zoom",
        "xaxis": {"title": {"text": "weight of a filter"}, "range": [-0.5, picture.columns - 0.5]},
        "yaxis": {"title": {"text": "filter"}, "range": [picture.rows - 0.5, -0.5]},
        "plot_bgcolor": "#ffffff", "font": {"color": "#1a1a1a"},
    }  # fmt: skip
    return {"data": [trace], "layout": layout}


def _dense_traces(places: Sequence[Sequence[float]], dense: Row) -> list[Figure]:
    """The dense network's mean, and its interval as a band if there is one, as far as points are drawn."""
    xs = [100.0, 100 * min((x for xs in places for x in xs), default=0.5)]
    half = 100 * (half_width(dense.accuracy_sd, dense.seeds) or 0.0)
    mean = 100 * dense.accuracy
    band = {
        "x": xs + xs[::-1], "y": [min(100.0, mean + half)] * 2 + [max(0.0, mean - half)] * 2, "fill": "toself",
        "name": "dense, interval", "mode": "lines", "line": {"width": 0}, "fillcolor": "rgba(102,102,102,0.18)",
        "hoverinfo": "skip",
    }  # fmt: skip
    line = {"x": xs, "y": [mean] * 2, "mode": "lines", "name": "dense network", "line": {"color": GREY, "dash": "dash"}}
    return [band, line] if half else [line]


def _curve(curve: Curve, xs: Sequence[float], structures: Sequence[str]) -> Figure:
    style = style_of(curve.kind, structures)
    ups, downs = zip(*((100 * up, 100 * down) for up, down in map(arms, curve.points)), strict=True)
    return {
        "x": [100 * x for x in xs], "y": [100 * point.y for point in curve.points],
        "mode": "lines+markers", "name": named(*curve.kind),
        "line": {"color": style.colour, "dash": style.dash, "width": 1.3 if style.hollow else 2},
        "marker": {"symbol": style.symbol, "size": 8},
        "error_y": {"type": "data", "symmetric": False, "array": list(ups), "arrayminus": list(downs),
                    "color": style.colour, "thickness": 1.2, "visible": any(ups) or any(downs)},
        "text": [_told(named(*curve.kind), point) for point in curve.points],
        "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def density_of(row: Row) -> str:
    """Beside a point: `26 %`."""
    return f"{100 * row.density:.{0 if row.density >= 0.1 else 1}f} %"


def _told(name: str, point: Point) -> str:
    half = "" if point.half is None else f" ± {100 * point.half:.2f}"
    return (
        f"{name}, round {point.round}<br>density {point.x:.2%}<br>accuracy {100 * point.y:.2f}{half} %, n={point.seeds}"
    )


def _scatter(name: str, points: Sequence[tuple[float, Row]], colour: str, symbol: str) -> Figure:
    text = [
        f"{name_of(row)}, round {row.round}<br>saved {x:.1%}<br>accuracy {row.accuracy:.2%}, n={row.seeds}"
        for x, row in points
    ]
    return {
        "x": [100 * x for x, _ in points], "y": [100 * row.accuracy for _, row in points],
        "mode": "markers", "name": name, "marker": {"symbol": symbol, "size": 10, "color": colour},
        "text": text, "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def _log_axis(title: str, values: Sequence[float]) -> Figure:
    """From dense to sparse, with ticks at these values as far as they stand apart."""
    shown: list[float] = []
    for value in sorted(set(values), reverse=True):
        if not shown or value < 0.85 * shown[-1]:
            shown.append(value)
    ticks = {"tickvals": shown, "ticktext": [f"{value:.3g}" for value in shown]}
    return {"type": "log", "autorange": "reversed", "title": {"text": title}, **ticks}


def _broken(name: str) -> str:
    """A long name in two lines, so that it leaves room for the figure on a narrow page."""
    start, dash, end = name.rpartition("-")
    return f"{start}-<br>{end}" if dash else name


def _figure(traces: Sequence[Figure], xaxis: Figure, ytitle: str) -> Figure:
    layout = {
        "xaxis": {**xaxis, "gridcolor": "#dddddd", "automargin": True, "ticklabelstandoff": 5},
        "yaxis": {"title": {"text": ytitle}, "gridcolor": "#dddddd", "automargin": True},
        "legend": {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0},
        "margin": {"l": 60, "r": 16, "t": 30, "b": 60}, "plot_bgcolor": "#ffffff", "height": 470,
        "font": {"color": "#1a1a1a"}, "showlegend": True,
    }  # fmt: skip
    return {"data": list(traces), "layout": layout}
