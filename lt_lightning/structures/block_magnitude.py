"""Block magnitude: a weight's magnitude, blended with that of the block that the weight could be part of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.criteria import Context, Criterion, Magnitude
from lt_lightning.pruning.masks import Masks, density
from lt_lightning.structures.base import StructureInput
from lt_lightning.structures.clustering import Method, cluster
from lt_lightning.structures.matrices import ColumnRule, Matrix, column_sums, group_count, matrices_of
from lt_lightning.structures.plan import Granularity


@dataclass(frozen=True)
class BlockMagnitude(Criterion):
    """The magnitude of a weight, blended more and more with that of its column in its group: masks that suit `Regroup`.

    Every time it scores, it clusters the filters of each layer anew, by what survives so far, as `Regroup` does. Of two
    weights of one magnitude, that one scores higher whose group uses its column more. The score is the geometric mean
    |w|^(1 - a) b^a: b is the mean magnitude that the filters of the group have in the column, pruned weights counted as
    zero, and a is `blend` x (1 - density), so structure has little say while the network is dense. Scores are scaled so
    that the mean over a layer's survivors is that of their magnitudes, and layers compare as they do by magnitude.
    Layers that no structure can divide into blocks are scored by magnitude.

    Attributes:
        granularity: what a column is; see `Regroup`.
        group_size: least number of filters in a group; see `Regroup`.
        blend: share that blocks would have in the scores at density 0, in [0, 1].
        clustering: method that finds the groups; see `clustering.cluster`.
        seed: seed of the clustering.

    Raises:
        ValueError: on construction, for a value out of range; on the call, for weights that are not finite.
    """

    granularity: Granularity = "kernel_position"
    group_size: int = 32
    blend: float = 0.7
    clustering: Method = "best"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("granularity", Granularity), ("clustering", Method)):
            if (value := getattr(self, name)) not in get_args(allowed):
                raise ValueError(f"{name}={value!r}: must be one of {', '.join(get_args(allowed))}")
        if self.group_size < 1:
            raise ValueError(f"group_size={self.group_size}: must be at least 1")
        if not 0 <= self.blend <= 1:
            raise ValueError(f"blend={self.blend}: must be a share in [0, 1]")

    def __call__(self, weights: Mapping[str, Tensor], masks: Masks, context: Context) -> dict[str, Tensor]:
        given = StructureInput(TracedNetwork(context.source, context.example), masks, weights)
        scores = Magnitude()(weights, masks)
        for matrix in matrices_of(given, self.granularity):
            left = matrix.target * context.density / density(masks)
            scores[matrix.layer.weight] = self._blended(matrix, left, self.blend * (1 - context.density))
        return scores

    def _blended(self, matrix: Matrix, left: float, share: float) -> Tensor:
        """Score the weights of a layer.

        Args:
            matrix: the layer.
            left: number of weights that the layer will keep, if all layers keep the same share of what they have.
            share: share of the block in the geometric mean.
        """
        groups = group_count(matrix.rows, self.group_size)
        column = matrix.rows // groups * matrix.taps  # weights of a column in a group
        in_each = self.granularity == "input_channel"
        count = max(round(left / (column * groups if in_each else column)), 1)
        values = matrix.by_column(matrix.magnitude)
        labels = cluster(values, groups, ColumnRule(count, in_each), self.clustering, self.seed).labels
        means = torch.from_numpy(column_sums(values, labels)[labels] / column)
        blocks = means.repeat_interleave(matrix.taps, dim=1).reshape(matrix.layer.shape)
        scores = matrix.magnitude ** (1 - share) * blocks**share
        return scores * (matrix.magnitude.sum() / scores.sum().clamp(min=torch.finfo(scores.dtype).tiny))
