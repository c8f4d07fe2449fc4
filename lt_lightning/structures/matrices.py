"""Weights as matrices of filters x columns, and what structures of blocks make of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lt_lightning.pruning.layers import Layer
from lt_lightning.pruning.masks import kept
from lt_lightning.structures.apportion import apportion
from lt_lightning.structures.base import (
    Block,
    BlockPlan,
    Grain,
    LayerReport,
    Structured,
    Subject,
    held_magnitude,
)
from lt_lightning.structures.columns import Chosen, Labels, Values

LEAST = "keeps more than asked, the least it can"


@dataclass(frozen=True)
class Matrix:
    """A layer's weight as rows x columns; a column has `taps` weights in every row."""

    layer: Layer
    rows: int
    columns: int
    taps: int
    magnitude: Tensor
    survives: Tensor

    @classmethod
    def of(cls, layer: Layer, subject: Subject, grain: Grain) -> Matrix:
        """The matrix of a layer.

        Raises:
            ValueError: if a weight is not finite.
        """
        rows, columns = _shape(layer, grain)
        survives = subject.masks[layer.weight]
        magnitude = (subject.weights[layer.weight].detach() * survives).abs_().double()
        if not bool(magnitude.amax().isfinite()):
            raise ValueError(f"{layer.weight}: holds values that are not finite, so it cannot be regrouped")
        return cls(layer, rows, columns, layer.size // (rows * columns), magnitude, survives)

    @property
    def asked(self) -> int:
        """Weights that the unstructured mask keeps."""
        return int(self.survives.count_nonzero())

    def by_column(self, weights: Tensor) -> Values:
        """Sums over the weights of each column in each row: (rows x columns)."""
        parts = weights.double().reshape(self.rows, self.columns, self.taps)
        sums: Values = (parts.sum(dim=2) if self.taps > 1 else parts.squeeze(2)).numpy()
        return sums

    def mask(self, blocks: Sequence[Block]) -> Tensor:
        """The mask that keeps the blocks, in the weight's shape."""
        inside = torch.zeros(self.rows, self.columns, dtype=torch.bool)
        for block in blocks:
            inside[block.rows[:, None], block.columns] = True
        return inside.repeat_interleave(self.taps, dim=1).reshape(self.layer.shape)


def matrices_of(subject: Subject, grain: Grain) -> list[Matrix]:
    """Of the prunable layers that can be divided into blocks."""
    return [Matrix.of(layer, subject, grain) for layer in subject.prunable if _why_dense(layer, grain) is None]


def shared_out(subject: Subject, matrices: Sequence[Matrix], steps: Sequence[int]) -> list[int]:
    """How many steps every layer keeps, so that all keep as many weights as the unstructured masks; see `apportion`.

    Args:
        subject: whose masks are matched.
        matrices: of the layers that are divided; the others are kept whole.
        steps: weights of one step, by layer.
    """
    most = [matrix.layer.size // step for matrix, step in zip(matrices, steps, strict=True)]
    divided = {matrix.layer.weight for matrix in matrices}
    dense = sum(mask.numel() for name, mask in subject.masks.items() if name not in divided)
    return apportion([matrix.asked for matrix in matrices], steps, most, total=kept(subject.masks) - dense)


def assembled(subject: Subject, grain: Grain, found: Iterable[tuple[Matrix, tuple[list[Block], str]]]) -> Structured:
    """The ticket of these blocks.

    Args:
        subject: that was structured.
        grain: of the blocks' columns.
        found: blocks of each layer that was divided, and a note. One without blocks, or all of whose weights are in
            some, is executed dense.
    """
    masks = {name: torch.ones_like(mask) for name, mask in subject.masks.items()}
    reports = {layer.name: _dense(layer, subject, grain) for layer in subject.layers.values()}
    blocks: dict[str, Sequence[Block]] = {}
    for matrix, (of_layer, note) in found:
        layer = matrix.layer
        mask = matrix.mask(of_layer)
        count = int(mask.count_nonzero())
        whole = count in (0, layer.size)
        if not whole:
            masks[layer.weight] = mask
            blocks[layer.name] = of_layer
        weight, before = subject.weights[layer.weight], subject.masks[layer.weight]
        reports[layer.name] = LayerReport(
            size=layer.size,
            asked=matrix.asked,
            kept=layer.size if whole else count,
            executed=layer.size if whole else count,
            positions=layer.positions,
            form="dense" if whole else "blocks",
            held=1.0 if whole else held_magnitude(weight, before, mask),
            note=note,
        )
    return Structured(masks, reports, BlockPlan(grain, blocks) if blocks else None)


def group_count(rows: int, size: int) -> int:
    """The largest number of equal groups with at least `size` rows; one if the rows do not make two."""
    return max((number for number in range(1, rows // size + 1) if rows % number == 0), default=1)


def blocks_of(labels: Labels, chosen: Chosen) -> list[Block]:
    """A block for every group: its rows, and the columns chosen for it (groups x columns)."""
    return [
        Block(torch.from_numpy(np.flatnonzero(labels == group)), torch.from_numpy(np.flatnonzero(columns)))
        for group, columns in enumerate(chosen)
    ]


def _shape(layer: Layer, grain: Grain) -> tuple[int, int]:
    """Rows and columns of a layer's matrix."""
    rows, inputs = layer.shape[:2]
    return rows, inputs if grain == "input_channel" else layer.size // rows


def _why_dense(layer: Layer, grain: Grain) -> str | None:
    """Why a layer cannot be grouped; None if it can."""
    if layer.groups > 1:
        return "grouped convolution: its filters share no inputs"
    rows, columns = _shape(layer, grain)
    if min(rows, columns) < 2:
        return f"a matrix of {rows} x {columns} cannot be grouped"
    return None


def _dense(layer: Layer, subject: Subject, grain: Grain) -> LayerReport:
    """The report of a layer that is executed whole."""
    prunable = layer.weight in subject.masks
    return LayerReport(
        size=layer.size,
        asked=int(subject.masks[layer.weight].count_nonzero()) if prunable else layer.size,
        kept=layer.size,
        executed=layer.size,
        positions=layer.positions,
        form="dense",
        note=(_why_dense(layer, grain) or "") if prunable else "",
    )
