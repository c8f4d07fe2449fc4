"""Figures as plotly's JSON, from the data that `curves` makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lt_lightning.report.curves import Curve, Point, arms, half_width, pareto, structures_of
from lt_lightning.report.masks import Picture
from lt_lightning.study.aggregate import Row
from lt_lightning.study.plots import COLOURS

Figure = dict[str, Any]
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star")
DASHES = ("solid", "dash", "dot", "dashdot")
GREY = "#666666"


def density_figure(curves: Sequence[Curve], dense: Row | None) -> Figure:
    """Accuracy over density, intervals as bars, the dense network as a band, extreme tickets ringed."""
    traces: list[Figure] = []
    if dense is not None:
        xs = [100.0, 100 * min((point.x for curve in curves for point in curve.points), default=0.5)]
        half = 100 * (half_width(dense.accuracy_sd, dense.seeds) or 0.0)
        mean = 100 * dense.accuracy
        if half:
            band = {
                "x": xs + xs[::-1],
                "y": [min(100.0, mean + half)] * 2 + [max(0.0, mean - half)] * 2,
                "fill": "toself",
                "name": "dense, interval",
            }
            traces.append(
                {
                    **band,
                    "mode": "lines",
                    "line": {"width": 0},
                    "fillcolor": "rgba(102,102,102,0.18)",
                    "hoverinfo": "skip",
                }
            )
        traces.append(
            {
                "x": xs,
                "y": [mean] * 2,
                "mode": "lines",
                "name": "dense network",
                "line": {"color": GREY, "dash": "dash"},
            }
        )
    for index, curve in enumerate(curves):
        traces.append(_curve(curve, index))
    for what, symbol, size in (("by_mean", "circle-open", 17), ("shown", "star-open", 19)):
        marked = [(curve, point) for curve in curves for point in curve.points if getattr(point, what)]
        if marked:
            name = "extreme ticket by the mean" if what == "by_mean" else "extreme ticket, shown by the interval"
            traces.append(
                {
                    "x": [100 * point.x for _, point in marked],
                    "y": [100 * point.y for _, point in marked],
                    "mode": "markers",
                    "name": name,
                    "marker": {"symbol": symbol, "size": size, "color": "#000000", "line": {"width": 2}},
                    "text": [f"{curve.name}, round {point.round}" for curve, point in marked],
                    "hovertemplate": "%{text}<extra></extra>",
                }
            )
    axis = {"type": "log", "autorange": "reversed", "title": {"text": "density in %"}, **_ticks(curves)}
    return _figure(traces, axis, "test accuracy in %")


def trade_figure(points: Sequence[tuple[float, Row]], dense: Row | None, saved: str) -> Figure:
    """Accuracy over what is saved, a trace for each structure, and the front that nothing else beats in both.

    Args:
        points: share that is saved, and the ticket.
        dense: the dense network's row, which saves nothing.
        saved: label of the axis.
    """
    traces: list[Figure] = []
    everything = ([(0.0, dense)] if dense is not None else []) + list(points)
    front = pareto([(x, row.accuracy) for x, row in everything])
    traces.append(
        {
            "x": [100 * everything[i][0] for i in front],
            "y": [100 * everything[i][1].accuracy for i in front],
            "mode": "lines",
            "name": "Pareto front",
            "line": {"color": GREY, "dash": "dot", "width": 2},
            "hoverinfo": "skip",
        }
    )
    if dense is not None:
        traces.append(_scatter("dense network", [(0.0, dense)], GREY, "hexagram"))
    for index, name in enumerate(structures_of([row for _, row in points])):
        mine = [(x, row) for x, row in points if row.structure == name]
        traces.append(_scatter(name, mine, COLOURS[index % len(COLOURS)], SYMBOLS[index % len(SYMBOLS)]))
    return _figure(traces, {"title": {"text": saved}, "zeroline": True}, "test accuracy in %")


def learning_figure(lines: Mapping[str, Sequence[tuple[float, float]]], quantity: str) -> Figure:
    """A line for each training: (epoch, value)."""
    traces = [
        {
            "x": [x for x, _ in points], "y": [y for _, y in points], "mode": "lines", "name": name,
            "line": {"color": COLOURS[i % len(COLOURS)], "dash": DASHES[i // len(COLOURS) % len(DASHES)]},
        }
        for i, (name, points) in enumerate(lines.items())
    ]  # fmt: skip
    return _figure(traces, {"title": {"text": "epochs since the training's start"}}, quantity)


def time_figure(parts: Mapping[str, Mapping[str, float]]) -> Figure:
    """Seconds that each training took, stacked for each search.

    Args:
        parts: by search, seconds by training.
    """
    names = list(dict.fromkeys(name for each in parts.values() for name in each))
    searches = list(parts)
    traces = [
        {
            "type": "bar", "orientation": "h", "name": name,
            "x": [parts[search].get(name, 0.0) for search in searches], "y": searches,
            "marker": {"color": COLOURS[i % len(COLOURS)], "line": {"color": "#ffffff", "width": 1},
                       "pattern": {"shape": ("", "/", ".", "x")[i // len(COLOURS) % 4]}},
            "hovertemplate": name + ": %{x:.1f} s<extra></extra>",
        }
        for i, name in enumerate(names)
    ]  # fmt: skip
    figure = _figure(traces, {"title": {"text": "seconds of training"}}, "")
    figure["layout"] |= {"barmode": "stack", "height": 230 + 34 * len(searches) + 12 * len(names)}
    figure["layout"]["legend"] |= {"y": 0, "traceorder": "normal"}
    figure["layout"]["xaxis"] |= {"side": "top"}
    figure["layout"]["yaxis"] |= {"automargin": True, "autorange": "reversed"}
    return figure


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
        "plot_bgcolor": "#ffffff",
    }  # fmt: skip
    return {"data": [trace], "layout": layout}


def _curve(curve: Curve, index: int) -> Figure:
    colour = COLOURS[index % len(COLOURS)]
    ups, downs = zip(*((100 * up, 100 * down) for up, down in map(arms, curve.points)), strict=True)
    return {
        "x": [100 * point.x for point in curve.points], "y": [100 * point.y for point in curve.points],
        "mode": "lines+markers", "name": curve.name, "line": {"color": colour},
        "marker": {"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 8},
        "error_y": {"type": "data", "symmetric": False, "array": list(ups), "arrayminus": list(downs), "color": colour,
                    "thickness": 1.2, "visible": any(ups) or any(downs)},
        "text": [_told(curve.name, point) for point in curve.points], "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def _told(name: str, point: Point) -> str:
    half = "" if point.half is None else f" ± {100 * point.half:.2f}"
    return (
        f"{name}, round {point.round}<br>density {point.x:.2%}<br>accuracy {100 * point.y:.2f}{half} %, n={point.seeds}"
    )


def _scatter(name: str, points: Sequence[tuple[float, Row]], colour: str, symbol: str) -> Figure:
    text = [
        f"{name}, round {row.round}<br>saved {x:.1%}<br>accuracy {row.accuracy:.2%}, n={row.seeds}" for x, row in points
    ]
    return {
        "x": [100 * x for x, _ in points], "y": [100 * row.accuracy for _, row in points],
        "mode": "markers", "name": name, "marker": {"symbol": symbol, "size": 10, "color": colour},
        "text": text, "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def _ticks(curves: Sequence[Curve]) -> Figure:
    """At the unstructured curve's densities, as far as they stand apart; all of a log axis are its own to label."""
    wanted = sorted({100.0, *(100 * point.x for point in (curves[0].points if curves else ()))}, reverse=True)
    shown: list[float] = []
    for value in wanted:
        if not shown or value < 0.85 * shown[-1]:
            shown.append(value)
    return {"tickvals": shown, "ticktext": [f"{value:.3g}" for value in shown]}


def _figure(traces: Sequence[Figure], xaxis: Figure, ytitle: str) -> Figure:
    layout = {
        "xaxis": {**xaxis, "gridcolor": "#dddddd", "automargin": True},
        "yaxis": {"title": {"text": ytitle}, "gridcolor": "#dddddd", "automargin": True},
        "legend": {"orientation": "h", "yanchor": "top", "y": -0.2, "x": 0},
        "margin": {"l": 60, "r": 16, "t": 16, "b": 60}, "plot_bgcolor": "#ffffff", "height": 470,
    }  # fmt: skip
    return {"data": list(traces), "layout": layout}
