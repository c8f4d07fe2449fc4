"""Figures: described once as data, and drawn as SVG, within the page and as files beside it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from lt_lightning.storage.files import replacing

XY = tuple[float, float]

# The colours of structures on a light and on a dark page, most of them near to Okabe and Ito's. All have a contrast of
# 3 at least on a light page and of 4.5 on a dark one, and the colour-blind tell them apart.
LIGHT: Final = ("#000000", "#d55e00", "#0072b2", "#00a071", "#cc79a7", "#d87a48", "#3394ff", "#a0512d", "#332288")
DARK: Final = ("#eeeeee", "#ec7339", "#4d83fe", "#20eb8a", "#dc81a7", "#fcd349", "#add2fe", "#9c7c5d", "#8f84cc")
OTHERS: Final[Mapping[str, tuple[str, str]]] = {
    "ground": ("#ffffff", "#14171b"), "text": ("#1a1a1a", "#e6e6e6"), "quiet": ("#595959", "#a6adb5"),
    "grid": ("#dddddd", "#343a42"), "panel": ("#f4f5f6", "#20252b"), "accent": ("#0062a3", "#7cc0f4"),
}  # fmt: skip
COLOURS: Final = tuple(f"var(--c{number})" for number in range(len(LIGHT)))
TEXT, QUIET = "var(--text)", "var(--quiet)"
INTERVALS: Final = "95 % intervals"


def custom_properties(dark: bool = False) -> dict[str, str]:
    """Return the values of the colours of a page by their names in CSS."""
    numbered = {f"c{number}": colour for number, colour in enumerate(DARK if dark else LIGHT)}
    return numbered | {name: pair[dark] for name, pair in OTHERS.items()}


@dataclass(frozen=True)
class Axis:
    """A horizontal axis.

    Attributes:
        title: what stands below the axis.
        ticks: places of ticks on a logarithmic axis that falls from left to right; a linear axis has none.
        whole: whether only whole numbers have ticks.
    """

    title: str
    ticks: tuple[float, ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class Curve:
    """Points that belong together, as marks, as a line, or both.

    Attributes:
        name: name in the legend, where a click leaves the curve out.
        points: places of the points.
        colour: colour of line and marks.
        dash: lengths of the dashes and gaps of the line, `none` for a solid line; without it there is no line.
        symbol: name of the symbol of the marks; without it there are no marks.
        hollow: whether marks are hollow.
        width: width of the line in pixels; without it, of the outline of hollow marks.
        size: size of the marks in pixels.
        steps: whether the line goes up or down first and then across.
        interval: lower and upper ends of a band around the points.
        texts: what is said of each point when it is pointed at.
        labels: what stands beside each point.
        also: further entries of the legend that the curve belongs to, `round 3` say.
        shift: pixels that marks stand right of their place, so that those of equal places can be told apart.
        opacity: opacity of the line.
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
    interval: tuple[XY, ...] = ()
    texts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    shift: float = 0.0
    opacity: float = 1.0


@dataclass(frozen=True)
class Level:
    """A horizontal line across the figure, and a band around it, if its ends differ.

    Attributes:
        name: name in the legend.
        value: height of the line.
        low: lower end of the band.
        high: upper end of the band.
    """

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Figure:
    """Curves over one axis.

    Attributes:
        title: what the figure shows.
        x: horizontal axis.
        y: title of the vertical axis.
        curves: the curves, the last one on top.
        level: level that they are compared with.
        off: entries of the legend whose curves are not shown at first.
    """

    title: str
    x: Axis
    y: str
    curves: tuple[Curve, ...]
    level: Level | None = None
    off: frozenset[str] = frozenset()


# How a figure is drawn.

WIDE, NARROW = (880, 400), (430, 320)  # pixels of a figure without its legend
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 14, 46  # margins round the place of the curves
PAD = 16  # pixels between the outermost points and the frame
LETTER = 6.6  # width of a letter in pixels, on average
LINE = 20  # height of a line of the legend
# Corners, the turn of the first one from the top, and the share of the radius at which corners between them lie.
SYMBOLS: Final[Mapping[str, tuple[int, float, float | None]]] = {
    "square": (4, 45, None), "triangle-up": (3, 0, None), "diamond": (4, 0, None), "triangle-down": (3, 180, None),
    "pentagon": (5, 0, None), "hexagon": (6, 0, None), "x": (4, 45, 0.35), "cross": (4, 0, 0.35),
    "star-diamond": (4, 0, 0.6), "star": (5, 0, 0.45), "hexagram": (6, 0, 0.58),
}  # fmt: skip


def svg(figure: Figure, size: tuple[int, int] = WIDE) -> str:
    """Return the SVG of a figure, with colours by the names of `custom_properties`.

    Args:
        figure: figure to draw.
        size: width in pixels, and height without the legend.
    """
    width, height = size
    legend, lines = _legend(figure, width)
    inner = (width - LEFT - RIGHT, height - TOP - BOTTOM)
    xs, ys = _scales(figure, inner)
    parts = [*_y_ticks(figure, ys, inner), *_x_ticks(figure, xs, inner)]
    parts.append(f'<svg width="{inner[0]}" height="{inner[1]}">')  # which cuts off what leaves the frame
    parts += _level(figure, ys, inner[0])
    parts += [part for curve in figure.curves if curve.interval for part in _band(curve, xs, ys, figure.off)]
    parts += [part for curve in figure.curves for part in _curve(curve, xs, ys, figure.off, inner[0])]
    parts.append("</svg>")
    whole = height + LINE * lines + 8
    label = escape(": ".join(filter(None, (figure.title, f"{figure.y} over {figure.x.title}"))))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {whole}" width="{width}" height="{whole}" '
        f'role="group" aria-label="{label}" font-family="system-ui, DejaVu Sans, sans-serif" font-size="12" '
        f'fill="{TEXT}">\n<g transform="translate({LEFT} {TOP})">{"".join(parts)}</g>\n'
        f'<g transform="translate(0 {height})">{legend}</g>\n</svg>'
    )


def write_svg(path: Path, figure: Figure) -> None:
    """Write a figure as a file of its own, in the colours of a light page, without what is not shown at first."""
    shown = tuple(curve for curve in figure.curves if not {curve.name, *curve.also} & figure.off)
    drawn = svg(Figure(figure.title, figure.x, figure.y, shown, figure.level))
    properties = custom_properties()
    text = re.sub(r"var\(--(\w+)\)", lambda match: properties[match[1]], drawn)
    with replacing(path) as partial:
        partial.write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n', encoding="utf-8")


@dataclass(frozen=True)
class _Scale:
    """Takes values to pixels."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (map(math.log, (self.low, self.high, value))) if self.logarithmic else (
            self.low, self.high, value)  # fmt: skip
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)


def _scales(figure: Figure, inner: tuple[int, int]) -> tuple[_Scale, _Scale]:
    points = [point for curve in figure.curves for point in curve.points]
    xs = [x for x, _ in points] + list(figure.x.ticks)
    ys = [y for _, y in points]
    if (level := figure.level) is not None:
        ys += [level.value, *((level.low, level.high) if _is_near(level, ys) else ())]
    left, right = min(xs, default=0.0), max(xs, default=1.0)
    low, high = min(ys, default=0.0), max(ys, default=1.0)
    if math.isclose(low, high):
        low, high = low - 1, high + 1
    ends = (inner[0] - PAD, PAD) if figure.x.ticks else (PAD, inner[0] - PAD)
    return _Scale(left, right, *ends, bool(figure.x.ticks)), _Scale(low, high, inner[1] - PAD, PAD)


def _is_near(level: Level, ys: Sequence[float]) -> bool:
    """Whether a level's band is not so much wider than the curves that these would be squeezed flat by it."""
    spread = max([level.value, *ys]) - min([level.value, *ys])
    return level.high - level.low <= 2 * spread


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers between two values, as many as there may be at most.

    >>> nice_ticks(0.0, 1.0, 6), nice_ticks(88.7, 91.2, 4)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [89.0, 90.0, 91.0])
    """
    unit = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(unit * times for times in (1, 2, 5, 10, 20) if (high - low) / (unit * times) <= most - 0.99)
    return [
        round(index * step, 12) for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _y_ticks(figure: Figure, scale: _Scale, inner: tuple[int, int]) -> Iterator[str]:
    width, height = inner
    for tick in nice_ticks(scale.low, scale.high, max(3, height // 40)):
        y = scale(tick)
        yield f'<path d="M0 {y}H{width}" stroke="var(--grid)"/>'
        yield f'<text x="-6" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    yield f'<text transform="translate(-42 {height / 2}) rotate(-90)" text-anchor="middle">{escape(figure.y)}</text>'


def _x_ticks(figure: Figure, scale: _Scale, inner: tuple[int, int]) -> Iterator[str]:
    width, height = inner
    ticks: Sequence[float] = figure.x.ticks
    if not ticks:
        ticks = nice_ticks(scale.low, scale.high, max(3, width // 60)) if scale.high > scale.low else [scale.low]
        ticks = [tick for tick in ticks if not figure.x.whole or tick == round(tick)]
    last = -math.inf
    for tick in sorted(ticks, key=scale):
        if (x := scale(tick)) - last >= 36:
            yield f'<path d="M{x} 0V{height}" stroke="var(--grid)"/>'
            yield f'<text x="{x}" y="{height + 16}" text-anchor="middle">{tick:.3g}</text>'
            last = x
    yield f'<text x="{width / 2}" y="{height + 36}" text-anchor="middle">{escape(figure.x.title)}</text>'


def _level(figure: Figure, ys: _Scale, width: int) -> Iterator[str]:
    if (level := figure.level) is None:
        return
    yield _group([level.name], figure.off)
    if level.high > level.low:
        top, bottom = ys(level.high), ys(level.low)
        yield f'<rect y="{top}" width="{width}" height="{bottom - top:.1f}" fill="{QUIET}" fill-opacity="0.16"/>'
    yield f'<path d="M0 {ys(level.value)}H{width}" stroke="{QUIET}" stroke-width="1.5" stroke-dasharray="6 4"/></g>'


def _band(curve: Curve, xs: _Scale, ys: _Scale, off: frozenset[str]) -> Iterator[str]:
    places = [f"{xs(x) + curve.shift:.1f}" for x, _ in curve.points]
    upper = [f"{x} {ys(high)}" for x, (_, high) in zip(places, curve.interval, strict=True)]
    lower = [f"{x} {ys(low)}" for x, (low, _) in zip(places, curve.interval, strict=True)]
    yield _group([curve.name, *curve.also, INTERVALS], off)
    yield (
        f'<path d="M{"L".join([*upper, *lower[::-1]])}Z" fill="{curve.colour}" fill-opacity="0.12" '
        f'stroke="{curve.colour}" stroke-opacity="0.4"/></g>'
    )


def _curve(curve: Curve, xs: _Scale, ys: _Scale, off: frozenset[str], width: int) -> Iterator[str]:
    places = [(round(xs(x) + curve.shift, 1), ys(y)) for x, y in curve.points]
    yield _group([curve.name, *curve.also], off)
    if curve.dash and places:
        steps = [f"V{y}H{x}" if curve.steps else f"L{x} {y}" for x, y in places[1:]]
        dash = "" if curve.dash == "none" else f' stroke-dasharray="{curve.dash}"'
        yield (
            f'<path d="M{places[0][0]} {places[0][1]}{"".join(steps)}" fill="none" stroke="{curve.colour}" '
            f'stroke-width="{curve.width:g}" stroke-opacity="{curve.opacity:.2g}"{dash}/>'
        )
    texts = curve.texts or ("",) * len(places)
    for (x, y), text in zip(places, texts, strict=True):
        if curve.symbol:
            yield _mark(curve, x, y, text)
    for (x, y), label in zip(places, curve.labels, strict=bool(curve.labels)):
        side = ("end", -7) if x > width - 60 else ("start", 7)
        yield f'<text x="{x + side[1]:.1f}" y="{max(y - 6, 10):.1f}" text-anchor="{side[0]}">{escape(label)}</text>'
    yield "</g>"


def _group(keys: Sequence[str], off: frozenset[str]) -> str:
    hidden = ' style="display:none"' if off.intersection(keys) else ""
    return f'<g data-keys="{"&#10;".join(map(escape, keys))}"{hidden}>'


def _mark(curve: Curve, x: float, y: float, text: str = "") -> str:
    fill = f'fill="none" stroke="{curve.colour}" stroke-width="{min(curve.width, 2):g}"' if curve.hollow else (
        f'fill="{curve.colour}" fill-opacity="{curve.opacity:.2g}"')  # fmt: skip
    said = f' data-text="{escape(text)}"' if text else ""
    radius = curve.size / 2
    if curve.symbol not in SYMBOLS:
        return f'<circle cx="{x}" cy="{y}" r="{radius:g}" pointer-events="all" {fill}{said}/>'
    corners, turn, inside = SYMBOLS[curve.symbol]
    between = 1 if inside is None else 2
    places = []
    for index in range(corners * between):
        angle = math.radians(turn + 360 * index / (corners * between))
        length = 1.2 * radius * (inside or 1.0 if index % between else 1.0)
        places.append(f"{x + length * math.sin(angle):.1f},{y - length * math.cos(angle):.1f}")
    return f'<polygon points="{" ".join(places)}" pointer-events="all" {fill}{said}/>'


# The legend: its entries are buttons that leave curves out and show them again.


def legend_of(figure: Figure) -> dict[str, Curve | None]:
    """Return the entries of a figure's legend, with the curve that shows how each looks; None where none does."""
    entries: dict[str, Curve | None] = {}
    if figure.level is not None:
        entries[figure.level.name] = Curve("", (), QUIET, "6 4")
    for curve in figure.curves:
        entries.setdefault(curve.name, curve)
    others = [key for curve in figure.curves for key in curve.also]
    others += [INTERVALS] if any(curve.interval for curve in figure.curves) else []
    return entries | {key: None for key in others if key not in entries}


def _legend(figure: Figure, width: int) -> tuple[str, int]:
    """Return the entries of the legend, and the number of their lines."""
    entries = legend_of(figure)
    lengths = [36 + LETTER * len(name) for name in entries]
    rows, x = 0, 0.0
    parts = []
    for (name, curve), length in zip(entries.items(), lengths, strict=True):
        if x and x + length > width - 8:
            rows, x = rows + 1, 0.0
        parts.append(_entry(name, curve, 8 + x, LINE * rows + 12, name not in figure.off))
        x += length + 8
    return "".join(parts), rows + bool(entries)


def _entry(name: str, curve: Curve | None, x: float, y: float, on: bool) -> str:
    look = ""
    if curve is None:
        look = f'<rect x="6" y="-5" width="10" height="10" fill="{QUIET}" fill-opacity="0.4" stroke="{QUIET}"/>'
    else:
        if curve.dash:
            dash = "" if curve.dash == "none" else f' stroke-dasharray="{curve.dash}"'
            look = f'<path d="M0 0H24" stroke="{curve.colour}" stroke-width="{curve.width:g}"{dash}/>'
        if curve.symbol:
            sample = Curve("", (), curve.colour, symbol=curve.symbol, hollow=curve.hollow, size=min(curve.size, 12))
            look += _mark(sample, 12, 0)
    return (
        f'<g class="key" role="button" tabindex="0" aria-pressed="{str(on).lower()}" data-key="{escape(name)}" '
        f'transform="translate({x:.1f} {y})"><rect x="-3" y="-9" width="{34 + LETTER * len(name):.1f}" height="18" '
        f'fill="none" pointer-events="all"/>{look}<text x="29" y="4">{escape(name)}</text></g>'
    )
