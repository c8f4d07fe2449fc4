"""Figures as PNGs, by their pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lt_lightning.report.figures import COLOURS, Axis, Curve, Figure, Level, write_png

AXIS = Axis("density in %", ticks=(100.0, 50.0))


def _pixels(path: Path, figure: Figure) -> np.ndarray:
    write_png(path, figure)
    return np.asarray(Image.open(path).convert("L"))


@pytest.mark.parametrize("kinds", [1, 12, 23])
def test_nothing_is_cut_off_however_many_kinds_there_are(tmp_path: Path, kinds: int) -> None:
    lines = tuple(
        Curve(
            f"regroup_channels_of_group_size_{number}", ((50.0, 90.0),), COLOURS[0], "solid", "circle", bars=((2, 2),)
        )
        for number in range(kinds)
    )
    pixels = _pixels(tmp_path / "a.png", Figure("a title", AXIS, "accuracy", lines))
    for edge in (pixels[:2], pixels[-2:], pixels[:, :2].T, pixels[:, -2:].T):
        assert (edge == 255).all()
    assert (pixels < 255).mean() > 0.01
    assert pixels.shape[0] > 4.2 * 150  # the legend adds to the height


def test_every_property_of_a_figure_is_drawn(tmp_path: Path) -> None:
    line = Curve("ours", ((100.0, 80.0), (50.0, 90.0)), COLOURS[1], "solid", "circle")
    figure = Figure("", AXIS, "accuracy", (line,), Level("dense", "interval", 85.0, 85.0, 85.0))
    others = [
        replace(figure, level=Level("dense", "interval", 85.0, 84.0, 86.0)),
        replace(figure, title="a title"),
        replace(figure, x=replace(AXIS, note="explained")),
        replace(figure, curves=()),
        *(
            replace(figure, curves=(replace(line, **change),))
            for change in (
                {"dash": "dot"}, {"symbol": "x"}, {"hollow": True}, {"steps": True}, {"bars": ((1.0, 5.0), (2.0, 3.0))},
                {"labels": ("here", "there")}, {"size": 20.0}, {"width": 5.0}, {"colour": COLOURS[2]},
            )
        ),
    ]  # fmt: skip
    drawn = [_pixels(tmp_path / f"{index}.png", each).tobytes() for index, each in enumerate([figure, *others])]
    assert len(set(drawn)) == len(drawn)
