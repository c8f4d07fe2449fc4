"""What each figure shows: results over density, savings and published figures, and trainings; and how kinds look."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

from lt_lightning.report.figures import COLOURS, INTERVALS, QUIET, TEXT, XY, Axis, Curve, Figure, Level
from lt_lightning.results.aggregate import ExtremeRow, Row
from lt_lightning.results.job_record import TicketKind
from lt_lightning.results.published_figures import Comparison
from lt_lightning.results.records import is_wide
from lt_lightning.results.verdict import half_width
from lt_lightning.storage.layout import DENSE, UNSTRUCTURED

# How kinds of tickets look.

SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "pentagon", "hexagon")
CONTROL_SYMBOLS = ("", "x", "cross", "star-diamond")  # the first control has its structure's symbol, hollow
CONTROL_DASHES = ("6 4", "2 3", "8 3 2 3", "12 4")


@dataclass(frozen=True)
class Look:
    """How one kind of ticket looks.

    Attributes:
        colour: colour of its line and marks.
        symbol: symbol of its marks.
        dash: dashes of its line; see `Curve`.
        hollow: whether its marks are hollow.
    """

    colour: str
    symbol: str
    dash: str
    hollow: bool


Looks = Mapping[TicketKind, Look]


def looks_of(kinds: Sequence[TicketKind]) -> Looks:
    """Return the look of each kind: the colour tells its structure, the symbol and the dash its control."""
    structures = list(dict.fromkeys(replace(kind, control="") for kind in kinds))
    controls = sorted({kind.control for kind in kinds if kind.control})
    looks = {}
    for kind in kinds:
        index = structures.index(replace(kind, control=""))
        # Where colours begin again, symbols are one further: no two structures have both in common.
        symbol, dash = SYMBOLS[(index + index // len(COLOURS)) % len(SYMBOLS)], "none"
        if kind.control:
            number = controls.index(kind.control)
            symbol = CONTROL_SYMBOLS[number % len(CONTROL_SYMBOLS)] or symbol
            dash = CONTROL_DASHES[number % len(CONTROL_DASHES)]
        looks[kind] = Look(COLOURS[index % len(COLOURS)], symbol, dash, bool(kind.control))
    return looks


def dense_row(rows: Sequence[Row]) -> Row | None:
    """Return the row of the dense network; None if it is not finished."""
    return next((row for row in rows if row.structure == DENSE), None)


def kinds_of(rows: Sequence[Row]) -> list[TicketKind]:
    """Return kinds in the order that figures show them: tickets, the unstructured first; then controls."""
    kinds = sorted({row.kind for row in rows if row.structure != DENSE})
    return sorted(kinds, key=lambda kind: (bool(kind.control), kind.structure != UNSTRUCTURED))


# Accuracy over density.

RINGS: tuple[tuple[str, float, str, Callable[[ExtremeRow], int | None]], ...] = (
    ("circle", 18.0, "sparsest by the mean", lambda row: row.round_by_mean),
    ("star", 22.0, "sparsest that is shown to hold", lambda row: row.round_shown),
)
SHIFT = 5.0  # pixels between the marks of two kinds whose tickets are equally dense


def density_figure(title: str, rows: Sequence[Row], sparsest: Sequence[ExtremeRow], looks: Looks) -> Figure:
    """Describe accuracy over density: intervals as bands, the dense network as a level, extreme tickets in rings.

    Args:
        title: what the rows are of.
        rows: rows of one data set, network and setting.
        sparsest: extreme tickets among them.
        looks: looks of all kinds.
    """
    kinds = kinds_of(rows)
    of_kinds = [sorted(_of_kind(rows, kind), key=lambda row: (-row.density, row.round)) for kind in kinds]
    shifts = _shifts(of_kinds)
    curves = [
        _density_curve(str(kind), looks[kind], each, shift)
        for kind, each, shift in zip(kinds, of_kinds, shifts, strict=True)
    ]
    for symbol, size, name, round_of in RINGS:
        for shift, each in zip(shifts, of_kinds, strict=True):
            marked = {(row.kind, round_of(row)) for row in sparsest}
            if extreme := [row for row in each if (row.kind, row.round) in marked]:
                points = tuple((100 * row.density, 100 * row.accuracy) for row in extreme)
                texts = tuple(map(_density_text, extreme))
                ring = Curve(name, points, TEXT, symbol=symbol, hollow=True, size=size, texts=texts, shift=shift)
                curves.append(replace(ring, also=(str(extreme[0].kind),), width=1.5))
    axis = Axis("density: % of the weights executed", _density_ticks(rows))
    off = {str(kind) for kind in kinds if kind.control}
    return Figure(title, axis, "test accuracy in %", tuple(curves), _dense_level(dense_row(rows)), frozenset(off))


def _density_ticks(rows: Sequence[Row]) -> tuple[float, ...]:
    return _ticks([100.0, *(100 * row.density for row in rows if not row.control)])


def _density_curve(name: str, look: Look, rows: Sequence[Row], shift: float = 0.0) -> Curve:
    ends = tuple(map(_ends, rows))
    return Curve(
        name, tuple((100 * row.density, 100 * row.accuracy) for row in rows), look.colour, look.dash, look.symbol,
        look.hollow, width=1.3 if look.hollow else 2.0, interval=ends if any(low < high for low, high in ends) else (),
        texts=tuple(map(_density_text, rows)), shift=shift,
    )  # fmt: skip


def _shifts(of_kinds: Sequence[Sequence[Row]]) -> list[float]:
    """Return how many pixels the marks of each kind stand beside their place: none where no two would coincide.

    The first kind stays where it is, the others go left and right in turn.
    """
    places = [{round(math.log(row.density), 2) for row in rows} for rows in of_kinds]
    if sum(map(len, places)) == len(set().union(*places)):
        return [0.0] * len(of_kinds)
    return [SHIFT * ((index + 1) // 2) * (-1) ** (index + 1) for index in range(len(of_kinds))]


def settings_figure(title: str, kind: TicketKind, rows: Mapping[str, Sequence[Row]], look: Look) -> Figure:
    """Describe accuracy over density of one kind of ticket in several settings.

    Args:
        title: what the rows are of.
        kind: kind of the tickets.
        rows: rows of the kind and of the dense network, by setting.
        look: look of the kind; settings differ in symbols, dashes and strength.
    """
    curves = []
    symbols, dashes = cycle(SYMBOLS), cycle(("none", *CONTROL_DASHES))
    for number, (setting, each) in enumerate(rows.items()):
        drawn = sorted(_of_kind(each, kind), key=lambda row: (-row.density, row.round))
        mine = Look(look.colour, next(symbols), next(dashes), hollow=number % 2 == 1)
        curves.append(replace(_density_curve(setting, mine, drawn), opacity=1 - 0.5 * number / len(rows)))
    axis = Axis("density in %", _density_ticks([row for each in rows.values() for row in _of_kind(each, kind)]))
    return Figure(f"{title}: {kind}", axis, "test accuracy in %", tuple(curves), off=frozenset({INTERVALS}))


def _dense_level(dense: Row | None) -> Level | None:
    return None if dense is None else Level("dense network", 100 * dense.accuracy, *_ends(dense))


def _ends(row: Row) -> XY:
    """Return the ends of the interval of an accuracy in per cent, as far as an accuracy can reach."""
    half = half_width(row.accuracy_sd, row.seeds) or 0.0
    return 100 * max(row.accuracy - half, 0.0), 100 * min(row.accuracy + half, 1.0)


def _density_text(row: Row) -> str:
    half = half_width(row.accuracy_sd, row.seeds)
    interval = "" if half is None else f" ± {100 * half:.2f}"
    return (
        f"{row.kind}, round {row.round}: density {row.density:.2%}, accuracy {100 * row.accuracy:.2f}{interval} %, "
        f"n={row.seeds}"
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


def trade_figure(title: str, rows: Sequence[Row], saved: Callable[[Row], float], label: str, looks: Looks) -> Figure:
    """Describe accuracy over savings, with the Pareto front of the tickets and the dense network.

    Args:
        title: what the rows are of.
        rows: rows of one data set, network and setting.
        saved: share that a row saves; what it gives as NaN is left out.
        label: title of the axis.
        looks: looks of all kinds.
    """
    measured = [row for row in rows if row.structure != DENSE and not math.isnan(saved(row))]
    dense = dense_row(rows)
    # The dense network saves nothing by definition. Controls are no tickets, and stand on no front; nor does what was
    # measured while the machine was busy.
    candidates = [] if dense is None else [(0.0, dense)]
    candidates += [(100 * saved(row), row) for row in measured if not row.control and not is_uncertain(row, saved)]
    front = [candidates[index] for index in pareto([(x, row.accuracy) for x, row in candidates])]
    curves = [Curve(
        "Pareto front", tuple((x, 100 * row.accuracy) for x, row in front), QUIET, "2 3", steps=True,
        labels=tuple(_density_label(row) for _, row in front),
    )]  # fmt: skip
    if dense is not None:
        curves.append(_savings_curve("dense network", [dense], lambda _: 0.0, Look(QUIET, "hexagram", "", False)))
    for kind in kinds_of(rows):
        if mine := _of_kind(measured, kind):
            curves.append(_savings_curve(str(kind), mine, saved, looks[kind]))
    if uncertain := [row for row in measured if is_uncertain(row, saved)]:
        points = tuple((100 * saved(row), 100 * row.accuracy) for row in uncertain)
        curves.append(Curve("~ uncertain time", points, QUIET, labels=("~",) * len(points)))
    off = frozenset(str(kind) for kind in kinds_of(rows) if kind.control)
    return Figure(title, Axis(label), "test accuracy in %", tuple(curves), off=off)


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
        f"{row.kind}, round {row.round}: saved {saved(row):.1%}, accuracy {row.accuracy:.2%}, n={row.seeds}"
        for row in rows
    )
    points = tuple((100 * saved(row), 100 * row.accuracy) for row in rows)
    return Curve(name, points, look.colour, "", look.symbol, look.hollow, width=1, size=10, texts=tuple(texts))


def _density_label(row: Row) -> str:
    return f"{100 * row.density:.{0 if row.density >= 0.1 else 1}f} %"


# Published figures beside ours.


def published_figure(
    title: str, comparisons: Sequence[Comparison], quantity: str, label: str, looks: Looks
) -> Figure | None:
    """Describe what was published (hollow, on broken lines) and ours (filled), over what remains as the paper counts.

    Args:
        title: what the rows are of.
        comparisons: published figures and ours.
        quantity: quantity that is shown.
        label: title of the vertical axis.
        looks: looks of our tickets; those of others follow after them.

    Returns:
        the figure; None if no published figure of the quantity says what remains.
    """
    shown = [each for each in comparisons if each.figure.quantity == quantity and each.figure.remaining is not None]
    tickets = [TicketKind(each.figure.ticket) for each in shown]
    looks = looks_of(list(dict.fromkeys([*looks, *tickets])))
    curves = []
    for kind in dict.fromkeys(tickets):
        mine = [each for each in shown if each.figure.ticket == kind.structure]
        theirs = tuple((each.figure.remaining or 0.0, each.figure.value) for each in mine)
        ours = tuple(dict.fromkeys((each.remaining or 0.0, each.value) for each in mine))
        colour, symbol = looks[kind].colour, looks[kind].symbol
        curves.append(Curve(f"{kind}, published", theirs, colour, "6 4", symbol, hollow=True, size=9))
        curves.append(Curve(f"{kind}, ours", ours, colour, "none", symbol, size=9))
    axis = Axis("remaining in %, as the paper counts", ticks=_ticks(each.figure.remaining or 0.0 for each in shown))
    return Figure(title, axis, label, tuple(curves)) if curves else None


# Trainings.

Training = tuple[TicketKind, int]
"""A kind of ticket and its round."""

LONGEST = 120  # points of a curve; of a longer one every so many-th is drawn, and the last


def learning_figure(trainings: Mapping[Training, Sequence[XY]], label: str, looks: Looks) -> Figure:
    """Describe learning curves of several tickets and rounds; those of the last round are shown at first.

    Args:
        trainings: pairs of epoch and value, by kind of ticket and round; values that are not finite are left out.
        label: title of the vertical axis.
        looks: looks of all kinds; others are grey.
    """
    finite = {name: [point for point in points if math.isfinite(point[1])] for name, points in trainings.items()}
    trainings = {name: points for name, points in finite.items() if points}
    rounds = sorted({number for _, number in trainings})
    last = max((epoch for points in trainings.values() for epoch, _ in points), default=1.0)
    curves = []
    for (kind, number), points in trainings.items():
        every = -(-len(points) // LONGEST)
        drawn = [*points[:-1:every], points[-1]]
        look = looks.get(kind, Look(QUIET, "circle", "8 3 2 3" if kind.structure == DENSE else "2 3", False))
        strength = 1.0 if len(rounds) < 2 else 0.45 + 0.55 * rounds.index(number) / (len(rounds) - 1)
        symbol = look.symbol if len(drawn) <= 30 else ""
        texts = tuple(f"{kind}, round {number}, epoch {epoch:g}: {value:.4g}" for epoch, value in drawn)
        curves.append(Curve(
            str(kind), tuple(drawn), look.colour, look.dash, symbol, look.hollow, width=1.5, size=5, opacity=strength,
            texts=texts if symbol else (), also=(f"round {number}",),
        ))  # fmt: skip
    off = {f"round {number}" for number in rounds[:-1] if number}
    off |= {str(kind) for kind, _ in trainings if kind.control}
    return Figure("", Axis("epoch of the training", whole=last <= 12), label, tuple(curves), off=frozenset(off))


def stability_figure(title: str, errors: Mapping[str, Sequence[float]]) -> Figure:
    """Describe the test error along the lines between the ends of two trainings.

    Args:
        title: what was measured.
        errors: test errors at equal distances, by the name of the line.
    """
    looks = zip(cycle(COLOURS), cycle(SYMBOLS), cycle(("none", *CONTROL_DASHES)), errors.items())
    curves = [
        Curve(name, tuple((index / max(1, len(each) - 1), 100 * error) for index, error in enumerate(each)), colour,
              dash, symbol, size=5)
        for colour, symbol, dash, (name, each) in looks
    ]  # fmt: skip
    return Figure(title, Axis("from one training's end (0) to the other's (1)"), "test error in %", tuple(curves))


def _of_kind(rows: Sequence[Row], kind: TicketKind) -> list[Row]:
    return [row for row in rows if row.kind == kind]


def _ticks(values: Iterable[float]) -> tuple[float, ...]:
    """Return the values, the largest first, as far as they stand apart."""
    ticks: list[float] = []
    for value in sorted(set(values), reverse=True):
        if not ticks or value < 0.85 * ticks[-1]:
            ticks.append(value)
    return tuple(ticks)
