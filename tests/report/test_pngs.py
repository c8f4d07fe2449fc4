from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from lt_lightning.report.curves import Curve, Point
from lt_lightning.report.figures import COLOURS, style_of
from lt_lightning.report.pngs import draw_density


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


# Machado, Oliveira and Fernandes (2009), table 1, severity 1.0: what the colour-blind see of linear RGB.
SEEN = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
}
TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
WHITE = (0.95047, 1.0, 1.08883)


@pytest.mark.parametrize("kind", SEEN)
def test_the_colour_blind_tell_colours_apart(kind: str) -> None:
    """Distances in CIELAB; 2 is what can just be seen side by side."""
    colours = np.array([to_rgb(colour) for colour in COLOURS])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    cube = np.cbrt(np.clip(linear @ np.array(SEEN[kind]).T, 1e-9, 1) @ np.array(TO_XYZ).T / WHITE)
    lab = np.stack([116 * cube[:, 1] - 16, 500 * (cube[:, 0] - cube[:, 1]), 200 * (cube[:, 1] - cube[:, 2])], 1)
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 100 * np.eye(len(lab))
    assert apart.min() > 12
