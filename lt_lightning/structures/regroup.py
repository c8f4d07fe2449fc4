"""Regroup: put a layer's filters in groups that share their inputs, each one dense block (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import gcd
from typing import ClassVar, Literal, get_args

import numpy as np
from torch import Tensor

from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.structures.base import Structure, StructureInput, StructureResult
from lt_lightning.structures.clustering import Method, cluster
from lt_lightning.structures.matrices import (
    LEAST,
    ColumnRule,
    Labels,
    Matrix,
    Values,
    assembled,
    blocks_of,
    column_sums,
    group_count,
    matrices_of,
    shared_out,
)
from lt_lightning.structures.plan import Block, BlockPlan, Granularity

Budget = Literal["match", "threshold"]
Match = Literal["executed", "flops"]
Groups = Literal["anew", "kept"]
Score = Literal["l1", "l2", "all", "taylor"]

GROUP_SIZE = 32


@dataclass(frozen=True)
class Regroup(Structure):
    """Puts filters that use the same columns in groups of equal size, and refills group x columns completely.

    Source: Chen et al., ICML 2022 (arXiv 2202.04736), section 3.3. A weight is seen as a matrix, rows = filters. A
    group of rows with the columns it keeps is a dense block: weights inside are refilled, weights outside pruned.
    A layer's groups have equal size: the smallest divisor of its number of filters that is at least `group_size`. A
    layer with fewer than twice `group_size` filters is one group.

    Two budgets:
        match: the ticket keeps as many weights as the unstructured masks do. Every layer keeps its share, in the
            columns in which most magnitude survives; over all layers the sum is never above that of the masks,
            and less than one column below it, where a column is `group size` weights for `kernel_position` and, for
            `input_channel`, one channel (with `round_to`, that many) in every group of a layer: filters x kernel
            weights. With `match="flops"` multiply-adds are shared out in place of weights, those of one sample that the
            masks' weights take part in. A layer keeps at least one column, however little of it survives. Layers that
            cannot be grouped keep all of their weights, and the others keep less for it, in proportion. With
            `kernel_position` the groups of a layer may differ in their number of columns, down to none; with
            `input_channel` they do not, so a grouped convolution computes them without padding.
        threshold: the paper's. A group keeps the columns of which at least `min_count` survives. The number of
            weights is what comes out of it. A layer without any block is executed dense, and reported so.

    A layer that nothing can compute in blocks stays dense, and its report says why: a grouped (depthwise) convolution,
    a 1-D or 3-D one, one that does not compute PyTorch's own function of a weight of its own, a layer of one row or
    one column.

    Attributes:
        granularity: what a column is: one input at one kernel position, or a whole input channel. Of a linear layer
            an input is both.
        group_size: least number of filters in a group, or one for each pattern of layer names: of those that match, the
            longest counts, and layers that none matches have 32. Kernels want multiples of 32.
        clustering: method that finds the groups; see `clustering.cluster`.
        score: of a column in a group, by which groups are found and columns chosen, for `match`: the sum over its
            surviving weights of their magnitudes (`l1`), squares (`l2`), or |weight x gradient|, the change of the loss
            to first order if the weight alone is removed (`taylor`; Molchanov et al. 2017, arXiv 1611.06440); or the
            sum of the magnitudes of all of its weights (`all`), pruned ones with the value that they are given with:
            after a training with masks that is zero, which makes it `l1`.
        groups: whether groups are found `anew`, or `kept` from the ticket that this one is grown from, where it has as
            many groups of the layer; for `match`.
        budget: number of weights that the ticket keeps; see above.
        match: what the ticket has as much of as the masks, for the budget `match`: `executed` weights, or `flops`.
        round_to: number of which a group's columns are a multiple, as far as it divides the layer's inputs and a
            fourth of them; for `match` with `input_channel`. CPUs compute channels by 16, GPUs by 8 at least: odd
            counts cost time that the weights do not show. 1 keeps closest to the masks.
        min_rows: least number of rows of a block, for `threshold`. 16 as in the official code.
        min_count: least share of a column, over the group's rows, that survives, for `threshold`. At 1/2 a block
            refills at most as many weights as it keeps.
        min_columns: least number of columns of a block, for `threshold`. Fewer than 8 do not fill a vector register.
        passes: how often blocks are searched among the weights outside the blocks so far, for `threshold`;
            None until there is none, as in the paper. 1 by default, as in the official code: with more, blocks
            share rows, and a layer whose blocks do runs whole, as no kernel adds up their results. `match` makes one.
        seed: seed of the clustering.

    Raises:
        ValueError: on construction, for a value out of range; on the call, for weights that are not finite.
    """

    granularity: Granularity = "kernel_position"
    group_size: int | dict[str, int] = GROUP_SIZE
    clustering: Method = "best"
    groups: Groups = "anew"
    score: Score = "l1"
    budget: Budget = "match"
    match: Match = "executed"
    round_to: int = 1
    min_rows: int = 16
    min_count: float = 0.5
    min_columns: int = 8
    passes: int | None = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("granularity", Granularity),
            ("clustering", Method),
            ("groups", Groups),
            ("score", Score),
            ("budget", Budget),
            ("match", Match),
        ):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(get_args(allowed))}")
        sizes = self.group_size.values() if isinstance(self.group_size, Mapping) else [self.group_size]
        if min(sizes, default=1) < 1:
            raise ValueError(f"group_size={self.group_size}: must be at least 1")
        for name in ("round_to", "min_rows", "min_columns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 < self.min_count <= 1:
            raise ValueError(f"min_count={self.min_count}: must be above 0 and at most 1")
        if self.passes is not None and self.passes < 1:
            raise ValueError(f"passes={self.passes}: must be at least 1, or None to go on until no block is found")
        if self.budget == "match" and self.passes != 1:
            raise ValueError(f"passes={self.passes}: budget='match' makes one pass; more need budget='threshold'")
        if self.match != "executed" and self.budget != "match":
            raise ValueError(f"match={self.match!r}: only for budget='match'; thresholds say what is kept")
        if self.groups != "anew" and self.budget != "match":
            raise ValueError(f"groups={self.groups!r}: only for budget='match'; thresholds find blocks by patterns")
        if self.score != "l1" and self.budget != "match":
            raise ValueError(f"score={self.score!r}: only for budget='match'; thresholds count weights")
        if self.round_to != 1 and (self.budget, self.granularity) != ("match", "input_channel"):
            raise ValueError(f"round_to={self.round_to}: only for budget='match' with granularity='input_channel'")

    needs_batches: ClassVar[bool] = False

    @property
    def needs_gradients(self) -> bool:
        """Whether columns are scored by the change of the loss."""
        return self.score == "taylor"

    def check(self, traced: TracedNetwork) -> None:
        """Look for the layers that patterns of `group_size` name.

        Raises:
            ValueError: if a pattern matches no layer.
        """
        for pattern in self.group_size if isinstance(self.group_size, Mapping) else ():
            if not any(fnmatchcase(name, pattern) for name in traced.layers):
                raise ValueError(
                    f"group_size={self.group_size}: {pattern!r} matches no layer of the network "
                    f"({', '.join(traced.layers)})"
                )

    def __call__(self, given: StructureInput) -> StructureResult:
        """Structure one round's mask."""
        # 1. See every weight as a matrix, rows = filters (section 3.3: vertices of a hypergraph), columns = inputs (its
        #    edges).
        matrices = matrices_of(given, self.granularity)
        # 2. Cluster each layer's rows into groups of equal size, and choose the columns of every group: for `match` as
        #    many as the budget has weights for, for `threshold` (the paper's) those that are dense enough.
        blocks = self._match(matrices, given) if self.budget == "match" else map(self._threshold, matrices)
        # 3. Refill group x columns completely, prune everything else, and plan a dense block for every group.
        return assembled(given, self.granularity, zip(matrices, blocks, strict=True))

    def _match(self, matrices: Sequence[Matrix], given: StructureInput) -> Iterator[tuple[list[Block], str]]:
        """Yield blocks and a note for every layer; together they keep as many weights as the masks."""
        in_each = self.granularity == "input_channel"
        # a. Share the budget out over the layers, in steps of the fewest columns that a layer can add.
        multiples = [self._multiple(matrix) for matrix in matrices]
        steps = [
            multiple * matrix.taps * (matrix.rows if in_each else self._length(matrix))
            for multiple, matrix in zip(multiples, matrices, strict=True)
        ]
        counts = shared_out(given, matrices, steps, "flops" if self.match == "flops" else "weights")

        for matrix, multiple, step, count in zip(matrices, multiples, steps, counts, strict=True):
            blocks, note = self._blocks(matrix, given, ColumnRule(multiple * count, in_each))
            yield blocks, "; ".join(filter(None, [note, LEAST if step > matrix.target else ""]))

    def _blocks(self, matrix: Matrix, given: StructureInput, rule: ColumnRule) -> tuple[list[Block], str]:
        """Return the blocks of a layer that keep as many columns as a rule allows, and a note."""
        # b. Cluster a layer's rows so that the columns that its share allows score highest.
        values = matrix.by_column(self._scores(matrix, given))
        labels, note = self._kept(matrix, given) or self._cluster(matrix, values, rule)
        # c. Keep those columns.
        return blocks_of(labels, rule(column_sums(values, labels))), note

    def in_blocks(self, given: StructureInput, shares: Mapping[str, float]) -> StructureResult:
        """Put layers in blocks that hold given shares of their weights, whatever the masks keep.

        Args:
            given: network and masks.
            shares: share of its weights that each layer keeps, in (0, 1), by name; the others stay dense.
        """
        matrices = [matrix for matrix in matrices_of(given, self.granularity) if matrix.layer.name in shares]
        blocks = [self._blocks(each, given, self._rule(each, shares[each.layer.name])) for each in matrices]
        return assembled(given, self.granularity, zip(matrices, blocks, strict=True))

    def retained(self, matrix: Matrix, given: StructureInput, shares: Sequence[float]) -> Values:
        """Return the share of its score that a layer retains in blocks of each share of its weights.

        The groups are found once, for a quarter of the weights.
        """
        values = matrix.by_column(self._scores(matrix, given))
        labels, _ = self._cluster(matrix, values, self._rule(matrix, 0.25))
        sums = column_sums(values, labels)
        if not (total := sums.sum()):
            return np.ones(len(shares))
        rules = [self._rule(matrix, share) for share in shares]
        return np.array([sums[rule(sums)].sum() / total for rule in rules])

    def _rule(self, matrix: Matrix, share: float) -> ColumnRule:
        """Return the rule by which a layer keeps a share of its weights."""
        multiple, in_each = self._multiple(matrix), self.granularity == "input_channel"
        columns = matrix.columns * (1 if in_each else self._groups(matrix))
        return ColumnRule(max(multiple * round(share * columns / multiple), multiple), in_each)

    def _scores(self, matrix: Matrix, given: StructureInput) -> Tensor:
        """Return the score of every weight of a layer, in the weight's shape.

        Raises:
            ValueError: if gradients are needed and missing, or a score is not finite.
        """
        name = matrix.layer.weight
        match self.score:
            case "l1":
                scores = matrix.magnitude
            case "l2":
                scores = matrix.magnitude.square()
            case "all":
                scores = given.weights[name].detach().double().abs()
            case "taylor":
                if given.gradients is None:
                    raise ValueError("score='taylor': needs gradients, and none were given")
                scores = matrix.magnitude * given.gradients[name].double().abs()
        if not bool(scores.isfinite().all()):
            raise ValueError(f"score={self.score!r}: {name} has scores that are not finite")
        return scores

    def _threshold(self, matrix: Matrix) -> tuple[list[Block], str]:
        """Return the blocks of a layer that are dense enough, and a note."""
        size = self._length(matrix)
        left = matrix.by_column(matrix.survives)
        free = np.ones(left.shape, dtype=np.bool_)
        blocks: list[Block] = []
        notes: dict[str, None] = {}
        done = 0
        while size >= self.min_rows and left.any() and (self.passes is None or done < self.passes):
            done += 1
            # a. Cluster the rows by the pattern of the weights that are left outside the blocks so far.
            pairs = max(round(float(left.sum()) / (size * matrix.taps)), 1)
            labels, note = self._cluster(matrix, left, ColumnRule(pairs))
            notes[note] = None
            # b. Keep the columns of a group that are dense enough and in no block yet, if they are enough columns.
            untouched = column_sums(free.astype(np.float64), labels) == size
            dense = column_sums(left, labels) >= self.min_count * size * matrix.taps
            chosen = dense & untouched
            chosen[chosen.sum(axis=1) < self.min_columns] = False
            if not chosen.any():
                break
            # c. Make them blocks, and go on with what is left.
            blocks += [block for block in blocks_of(labels, chosen) if len(block.columns)]
            free &= ~chosen[labels]
            left = left * free
        if not blocks:
            least = f"at least {self.min_rows} rows and {self.min_columns} columns"
            notes[f"no block of {least}: executed dense"] = None
        return blocks, "; ".join(filter(None, notes))

    def _multiple(self, matrix: Matrix) -> int:
        """Return the number of which a group's columns are a multiple: `round_to`, as far as it fits."""
        return gcd(self.round_to, matrix.columns, max(matrix.columns // 4, 1))

    def _length(self, matrix: Matrix) -> int:
        """Return the number of rows of a group."""
        return matrix.rows // self._groups(matrix)

    def _groups(self, matrix: Matrix) -> int:
        """Return the number of groups of a layer."""
        size = self.group_size
        if isinstance(size, Mapping):
            matching = [pattern for pattern in size if fnmatchcase(matrix.layer.name, pattern)]
            size = size[max(matching, key=lambda pattern: (len(pattern), pattern))] if matching else GROUP_SIZE
        return group_count(matrix.rows, size)

    def _kept(self, matrix: Matrix, given: StructureInput) -> tuple[Labels, str] | None:
        """Return the groups that the layer had in the ticket before, and no note; None where they do not stay."""
        plan = given.previous
        if self.groups != "kept" or not isinstance(plan, BlockPlan) or matrix.layer.name not in plan.blocks:
            return None
        labels = np.full(matrix.rows, -1)
        for group, block in enumerate(plan.blocks[matrix.layer.name]):
            labels[block.rows.numpy()] = group
        sizes = np.bincount(labels + 1, minlength=1 + self._groups(matrix))
        as_now = sizes[0] == 0 and bool((sizes[1:] == self._length(matrix)).all())
        return (labels, "") if as_now else None

    def _cluster(self, matrix: Matrix, values: Values, rule: ColumnRule) -> tuple[Labels, str]:
        clustering = cluster(values, self._groups(matrix), rule, self.clustering, self.seed)
        return clustering.labels, clustering.note
