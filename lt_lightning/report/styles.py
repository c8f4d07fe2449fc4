"""How kinds of tickets look in every figure: a colour for a structure, and hollow marks on broken lines for twins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import colormaps
from matplotlib.colors import to_hex

from lt_lightning.report.curves import Kind
from lt_lightning.study.options import TWINS

# Okabe and Ito's, distinguishable for the colour-blind, the darkest first, without their yellow, which is too pale for
# lines; then two more that are as far from these and from each other.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#A0522D", "#332288")
SYMBOLS = (("circle", "o"), ("square", "s"), ("triangle-up", "^"), ("diamond", "D"), ("triangle-down", "v"),
           ("pentagon", "p"), ("hexagon", "h"))  # fmt: skip
# Of twins: reinit has its structure's symbol, hollow.
TWIN_SYMBOLS = {"shuffle": ("x", "X"), "random": ("cross", "P"), "small_dense": ("star-diamond", "d")}
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
    structure, twin = kind
    index = structures.index(structure)
    # Where colours begin again, symbols are one further: no two structures have both in common.
    symbol, marker = TWIN_SYMBOLS.get(twin, SYMBOLS[(index + index // len(COLOURS)) % len(SYMBOLS)])
    dash, line = DASHES[TWINS.index(twin) % len(DASHES)] if twin in TWINS else ("solid", "-")
    colour = COLOURS[index % len(COLOURS)]
    return Style(colour, f"{symbol}-open" if twin else symbol, marker, dash, line, bool(twin))


def ramp(count: int) -> list[str]:
    """So many colours in an order that is seen, from dark to light (viridis without its palest).

    >>> ramp(2)
    ['#440154', '#5ec962']
    """
    return [to_hex(colormaps["viridis"](0.75 * index / max(1, count - 1))) for index in range(count)]
