from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lt_lightning.report.curves import Curve, Point
from lt_lightning.report.pngs import draw_density
from lt_lightning.report.styles import COLOURS, style_of


@pytest.mark.parametrize("kinds", [1, 12, 23])
def test_nothing_is_cut_off_however_many_kinds_there_are(tmp_path: Path, kinds: int) -> None:
    curves = [
        Curve((f"regroup_channels_of_group_size_{number}", ""), (Point(0.5, 0.9, 0.02, 2, 1),))
        for number in range(kinds)
    ]
    path = tmp_path / "a.png"
    draw_density(path, "a title", curves, None)
    pixels = np.asarray(Image.open(path).convert("L"))
    for edge in (pixels[:2], pixels[-2:], pixels[:, :2].T, pixels[:, -2:].T):
        assert (edge == 255).all()
    assert (pixels < 255).mean() > 0.01
    assert pixels.shape[0] > 4.2 * 150  # the legend adds to the height


def test_no_two_structures_look_the_same() -> None:
    structures = [f"s{number}" for number in range(3 * len(COLOURS))]
    looks = {(style.colour, style.symbol) for name in structures for style in [style_of((name, ""), structures)]}
    assert len(looks) == len(structures)
