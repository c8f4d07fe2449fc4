"""Draws the README's picture of a mask: what a search keeps of a layer, and what regroup makes of it.

python docs/masks.py RUNS/SEARCH/round_06/unstructured RUNS/SEARCH/round_06/regroup-HASH stages.2.0.conv1
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from lt_lightning.pruning.layers import weight_of
from lt_lightning.report.mask_pictures import PALETTE, classes, order_of
from lt_lightning.tickets.ticket import Ticket

FILE = Path(__file__).parent / "masks.png"
TITLES = (
    "1. Pruned by magnitude: {share:.0%} of the weights are left, anywhere (a row is a filter)",
    "2. Regroup: filters that use the same inputs form groups; a group keeps whole columns",
    "3. The same, rows and columns reordered: dense blocks that a processor multiplies as they are",
)


def draw(search: Path, structured: Path, layer: str) -> None:
    """Draw a layer of two tickets of one round, three times below each other."""
    before, after = Ticket.load(search / "ticket"), Ticket.load(structured / "ticket")
    name = weight_of(layer, before.masks)
    mask = before.masks[name]
    shown = classes(mask, after.masks[name])
    order = order_of(after.plan, layer, mask.shape)
    assert order is not None, f"{structured} has no blocks of {layer}"
    colours = np.array(PALETTE) / 255
    figure, axes = plt.subplots(3, 1, figsize=(9, 7.4), layout="constrained")
    panels = (classes(mask, mask), shown, shown[order[0]][:, order[1]])
    for axis, title, panel in zip(axes, TITLES, panels, strict=True):
        axis.imshow(panel.numpy(), cmap=ListedColormap(colours), vmin=0, vmax=3, interpolation="nearest", aspect="auto")
        axis.set_title(title.format(share=float(mask.float().mean())), fontsize=11, loc="left")
        axis.set(xticks=[], yticks=[])
    texts = ("kept by both", "refilled by regroup", "dropped by regroup")
    handles = [Patch(color=colour, label=text) for colour, text in zip(colours[1:], texts, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(FILE, dpi=110)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("search", type=Path, help="folder of a round's unstructured ticket")
    parser.add_argument("structured", type=Path, help="folder of its regrouped ticket")
    parser.add_argument("layer", help="name of a layer")
    options = parser.parse_args()
    draw(options.search, options.structured, options.layer)
