"""The errors along lines, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lt_lightning.files import replacing
from lt_lightning.report.styles import COLOURS, SYMBOLS


def plot_lines(lines: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Test error from one training's end (0) to the other's (1), a curve for each line; a PNG.

    Args:
        lines: each with `network`, `rewind`, `errors` and `barrier`.
        path: of the file.
        title: above the axes.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, line in enumerate(lines):
        places = np.linspace(0, 1, len(line["errors"]))
        label = f"{line['network']}, {line['rewind']}: barrier {line['barrier']:.1%}"
        colour, (_, marker) = COLOURS[index % len(COLOURS)], SYMBOLS[index % len(SYMBOLS)]
        axes.plot(places, line["errors"], color=colour, marker=marker, markersize=4, label=label)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("place on the line between the two trained networks")
    axes.set_ylabel("test error")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
