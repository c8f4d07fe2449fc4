"""What each figure shows: results over density, savings and published figures, and trainings; and how kinds look."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from matplotlib import colormaps
from matplotlib.colors import to_hex

from lt_lightning.report.figures import COLOURS, GREY, XY, Axis, Curve, Figure, Level
from lt_lightning.results.aggregate import ExtremeRow, Row
from lt_lightning.results.job_record import TicketKind
from lt_lightning.results.published_figures import Comparison
from lt_lightning.results.records import is_wide
from lt_lightning.results.verdict import half_width
from lt_lightning.storage.layout import DENSE, UNSTRUCTURED

# How kinds of tickets look.

SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "pentagon", "hexagon")
CONTROL_SYMBOLS = ("", "x", "cross", "star-diamond")  # the first control has its structure's symbol, hollow
CONTROL_DASHES = ("dash", "dot", "dashdot", "longdash")


@dataclass(frozen=True)
class Look:
    """How one kind of ticket looks.

    Attributes:
        colour: colour of its line and marks.
        symbol: symbol of its marks in plotly's words.
        dash: dash of its line in plotly's words.
        hollow: whether its marks are hollow.
    """

    colour: str
    symbol: str
    dash: str
    hollow: bool


def looks_of(kinds: Sequence[TicketKind]) -> dict[TicketKind, Look]:
    """Return the look of each kind: the colour tells its structure, the symbol and the dash its control."""
    structures = list(dict.fromkeys(replace(kind, control="") for kind in kinds))
    controls = sorted({kind.control for kind in kinds if kind.control})
    looks = {}
    for kind in kinds:
        index = structures.index(replace(kind, control=""))
        # Where colours begin again, symbols are one further: no two structures have both in common.
        symbol, dash = SYMBOLS[(index + index // len(COLOURS)) % len(SYMBOLS)], "solid"
        if kind.control:
            number = controls.index(kind.control)
            symbol = CONTROL_SYMBOLS[number % len(CONTROL_SYMBOLS)] or symbol
            dash = CONTROL_DASHES[number % len(CONTROL_DASHES)]
        looks[kind] = Look(COLOURS[index % len(COLOURS)], symbol, dash, bool(kind.control))
    return looks


def ramp(count: int) -> list[str]:
    """Return colours whose order can be seen, from dark to light (viridis without its palest).

    >>> ramp(2)
    ['#440154', '#5ec962']
    """
    return [to_hex(colormaps["viridis"](0.75 * index / max(1, count - 1))) for index in range(count)]


def dense_row(rows: Sequence[Row]) -> Row | None:
    """Return the row of the dense network; None if it is not finished."""
    return next((row for row in rows if row.structure == DENSE), None)


def kinds_of(rows: Sequence[Row]) -> list[TicketKind]:
    """Return kinds in the order that figures show them: tickets, the unstructured first; then controls."""
    kinds = sorted({row.kind for row in rows if row.structure != DENSE})
    return sorted(kinds, key=lambda kind: (bool(kind.control), kind.structure != UNSTRUCTURED))


# Accuracy over density.

RINGS: tuple[tuple[str, float, str, Callable[[ExtremeRow], int | None]], ...] = (
    ("circle", 20.0, "extreme ticket by the mean", lambda row: row.round_by_mean),
    ("star", 19.0, "extreme ticket, shown by the interval", lambda row: row.round_shown),
)


def density_figure(title: str, rows: Sequence[Row], sparsest: Sequence[ExtremeRow]) -> Figure:
    """Describe accuracy over density: intervals as bars, the dense network as a level, extreme tickets in rings.

    Args:
        title: what the rows are of.
        rows: rows of one data set, network and setting.
        sparsest: extreme tickets among them.
    """
    looks = looks_of(kinds_of(rows))
    of_kinds = [sorted(_of_kind(rows, kind), key=lambda row: (-row.density, row.round)) for kind in looks]
    places = [[100 * row.density for row in each] for each in of_kinds]
    ticks = _ticks([100.0, *(places[0] if places else ())])
    if any(max(_arms(row)) > 0 for each in of_kinds for row in each):
        places = beside_each_other(places)
    curves = [_density_curve(look, each, xs) for look, each, xs in zip(looks.values(), of_kinds, places, strict=True)]
    drawn = [pair for each, xs in zip(of_kinds, places, strict=True) for pair in zip(each, xs, strict=True)]
    for symbol, size, name, round_of in RINGS:
        marked = {(each.kind, round_of(each)) for each in sparsest}
        if extreme := [(row, x) for row, x in drawn if (row.kind, row.round) in marked]:
            points = tuple((x, 100 * row.accuracy) for row, x in extreme)
            texts = tuple(f"{row.kind}, round {row.round}" for row, _ in extreme)
            curves.append(Curve(name, points, "#000000", symbol=symbol, hollow=True, size=size, texts=texts))
    axis = Axis("density in %", "share of the prunable weights executed (unstructured: kept)", ticks)
    return Figure(title, axis, "test accuracy in %", tuple(curves), _dense_level(dense_row(rows)))


def _density_curve(look: Look, rows: Sequence[Row], xs: Sequence[float]) -> Curve:
    bars = tuple(map(_arms, rows))
    return Curve(
        str(rows[0].kind), tuple((x, 100 * row.accuracy) for x, row in zip(xs, rows, strict=True)), look.colour,
        look.dash, look.symbol, look.hollow, width=1.3 if look.hollow else 2.0,
        bars=bars if any(map(any, bars)) else (), texts=tuple(map(_density_text, rows)),
    )  # fmt: skip


def beside_each_other(densities: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return where the points of each curve are drawn, so that the bars of one round stand beside each other.

    The points of the first curve stand where they are, those of the others left and right of them in turn. The bars of
    a round take less than half of the way to the next one, as densities go in logarithms.

    >>> [[round(x, 1) for x in xs] for xs in beside_each_other([[50.0], [50.0], [50.0]])]
    [[50.0], [51.3], [48.8]]
    """
    steps = [math.log(left / right) for left, right in pairwise(densities[0])] if densities else []
    step = min(0.4 * min(steps, default=1.0) / max(1, len(densities)), 0.025)
    sides = [-(index // 2) if index % 2 == 0 else (index + 1) // 2 for index in range(len(densities))]
    return [[x * math.exp(step * side) for x in xs] for side, xs in zip(sides, densities, strict=True)]


def _dense_level(dense: Row | None) -> Level | None:
    if dense is None:
        return None
    up, down = _arms(dense)
    mean = 100 * dense.accuracy
    return Level("dense network", "dense, interval", mean, mean - down, mean + up)


def _arms(row: Row) -> XY:
    """Return the lengths of an interval's bars, up and down, as far as an accuracy can reach."""
    half = 100 * (half_width(row.accuracy_sd, row.seeds) or 0.0)
    return min(half, 100 - 100 * row.accuracy), min(half, 100 * row.accuracy)


def _density_text(row: Row) -> str:
    half = half_width(row.accuracy_sd, row.seeds)
    interval = "" if half is None else f" ± {100 * half:.2f}"
    return (
        f"{row.kind}, round {row.round}<br>density {row.density:.2%}<br>"
        f"accuracy {100 * row.accuracy:.2f}{interval} %, n={row.seeds}"
    )


# Accuracy over what is saved.


def time_saved(row: Row) -> float:
    """Return the share of the dense network's time of inference that is saved; NaN if it was not measured."""
    return 1 - row.time_ratio_inference


def training_time_saved(row: Row) -> float:
    """Return the share of the time of a training step that is saved; NaN if it was not measured."""
    return 1 - row.time_ratio_training


def is_uncertain(row: Row, saved: Callable[[Row], float]) -> bool:
    """Whether what a row saves is a time that was measured with a wide spread."""
    if saved is time_saved:
        return is_wide(row.time_spread_inference)
    return saved is training_time_saved and is_wide(row.time_spread_training)


def flops_saved(row: Row) -> float:
    """Return the share of the dense network's multiply-adds that are not executed."""
    return 1 - row.flops_ratio


def trade_figure(title: str, rows: Sequence[Row], saved: Callable[[Row], float], label: str) -> Figure:
    """Describe accuracy over savings, with the Pareto front of the tickets and the dense network.

    Args:
        title: what the rows are of.
        rows: rows of one data set, network and setting.
        saved: share that a row saves; what it gives as NaN is left out.
        label: title of the axis.
    """
    measured = [row for row in rows if row.structure != DENSE and not math.isnan(saved(row))]
    dense = dense_row(rows)
    # The dense network saves nothing by definition. Controls are no tickets, and stand on no front; nor does what was
    # measured while the machine was busy.
    candidates = [] if dense is None else [(0.0, dense)]
    candidates += [(100 * saved(row), row) for row in measured if not row.control and not is_uncertain(row, saved)]
    front = [candidates[index] for index in pareto([(x, row.accuracy) for x, row in candidates])]
    curves = [Curve(
        "Pareto front", tuple((x, 100 * row.accuracy) for x, row in front), GREY, "dot", steps=True,
        labels=tuple(_density_label(row) for _, row in front),
    )]  # fmt: skip
    if dense is not None:
        curves.append(_savings_curve("dense network", [dense], lambda _: 0.0, Look(GREY, "hexagram", "", False)))
    for kind, look in looks_of(kinds_of(rows)).items():
        if mine := _of_kind(measured, kind):
            curves.append(_savings_curve(str(kind), mine, saved, look))
    if uncertain := [row for row in measured if is_uncertain(row, saved)]:
        points = tuple((100 * saved(row), 100 * row.accuracy) for row in uncertain)
        curves.append(Curve("~ uncertain time", points, GREY, labels=("~",) * len(points)))
    return Figure(title, Axis(label), "test accuracy in %", tuple(curves))


def pareto(points: Sequence[XY]) -> list[int]:
    """Return the indices of the points that no other beats in both coordinates, by ascending x.

    Of equal points the first counts.

    >>> pareto([(0.0, 0.9), (0.5, 0.8), (0.4, 0.7), (0.6, 0.8)])
    [0, 3]
    """
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], i))
    front: list[int] = []
    best = -math.inf
    for index in order:
        if points[index][1] > best:
            front.append(index)
            best = points[index][1]
    return front[::-1]


def _savings_curve(name: str, rows: Sequence[Row], saved: Callable[[Row], float], look: Look) -> Curve:
    texts = (
        f"{row.kind}, round {row.round}<br>saved {saved(row):.1%}<br>accuracy {row.accuracy:.2%}, n={row.seeds}"
        for row in rows
    )
    points = tuple((100 * saved(row), 100 * row.accuracy) for row in rows)
    return Curve(name, points, look.colour, "", look.symbol, look.hollow, width=1, size=10, texts=tuple(texts))


def _density_label(row: Row) -> str:
    return f"{100 * row.density:.{0 if row.density >= 0.1 else 1}f} %"


# Published figures beside ours.


def published_figure(
    title: str, comparisons: Sequence[Comparison], quantity: str, label: str, rows: Sequence[Row]
) -> Figure | None:
    """Describe what was published (hollow, on broken lines) and ours (filled), over what remains as the paper counts.

    Args:
        title: what the rows are of.
        comparisons: published figures and ours.
        quantity: quantity that is shown.
        label: title of the vertical axis.
        rows: our tickets, whose colours are those of the other figures.

    Returns:
        the figure; None if no published figure of the quantity says what remains.
    """
    shown = [each for each in comparisons if each.figure.quantity == quantity and each.figure.remaining is not None]
    tickets = [TicketKind(each.figure.ticket) for each in shown]
    looks = looks_of(list(dict.fromkeys([*kinds_of(rows), *tickets])))
    curves = []
    for kind in dict.fromkeys(tickets):
        mine = [each for each in shown if each.figure.ticket == kind.structure]
        theirs = tuple((each.figure.remaining or 0.0, each.figure.value) for each in mine)
        ours = tuple(dict.fromkeys((each.remaining or 0.0, each.value) for each in mine))
        colour, symbol = looks[kind].colour, looks[kind].symbol
        curves.append(Curve(f"{kind}, published", theirs, colour, "dash", symbol, hollow=True, size=9))
        curves.append(Curve(f"{kind}, ours", ours, colour, "solid", symbol, size=9))
    axis = Axis("remaining in %, as the paper counts", ticks=_ticks(each.figure.remaining or 0.0 for each in shown))
    return Figure(title, axis, label, tuple(curves)) if curves else None


# Trainings.


def learning_figure(trainings: Mapping[str, Sequence[XY]], label: str) -> Figure:
    """Describe learning curves, the lighter the later.

    Args:
        trainings: pairs of epoch and value, by the name of the training.
        label: title of the vertical axis.
    """
    last = max((epoch for points in trainings.values() for epoch, _ in points), default=1.0)
    return Figure("", Axis("epoch of the training", whole=last <= 12), label, _ramped(trainings, 4))


def stability_figure(title: str, errors: Mapping[str, Sequence[float]]) -> Figure:
    """Describe the test error along the lines between the ends of two trainings.

    Args:
        title: what was measured.
        errors: test errors at equal distances, by the name of the line.
    """
    points = {
        name: [(index / max(1, len(each) - 1), 100 * error) for index, error in enumerate(each)]
        for name, each in errors.items()
    }
    return Figure(title, Axis("from one training's end (0) to the other's (1)"), "test error in %", _ramped(points, 5))


def _ramped(trainings: Mapping[str, Sequence[XY]], size: float) -> tuple[Curve, ...]:
    return tuple(
        Curve(name, tuple(points), colour, "solid", "circle", size=size)
        for colour, (name, points) in zip(ramp(len(trainings)), trainings.items(), strict=True)
    )


def _of_kind(rows: Sequence[Row], kind: TicketKind) -> list[Row]:
    return [row for row in rows if row.kind == kind]


def _ticks(values: Iterable[float]) -> tuple[float, ...]:
    """Return the values, the largest first, as far as they stand apart."""
    ticks: list[float] = []
    for value in sorted(set(values), reverse=True):
        if not ticks or value < 0.85 * ticks[-1]:
            ticks.append(value)
    return tuple(ticks)
