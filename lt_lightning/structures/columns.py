"""Which columns the groups of rows keep: the rule by which a clustering is judged.

A layer's weight is seen as a matrix of values (rows x columns). The sum of a column over the rows of a group is
what the pair (group, column) holds; a rule picks pairs from the sums of all pairs (groups x columns).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Labels = NDArray[np.int64]
Chosen = NDArray[np.bool_]
Rule = Callable[[Values], Chosen]


def column_sums(values: Values, labels: Labels) -> Values:
    """Sums of the columns of `values` (rows x columns) within every group: (groups x columns).

    >>> column_sums(np.array([[1.0, 0.0], [2.0, 3.0], [4.0, 0.0]]), np.array([0, 1, 0]))
    array([[5., 0.],
           [2., 3.]])
    """
    sums: Values = (labels == np.arange(labels.max() + 1)[:, None]).astype(values.dtype) @ values
    return sums


def largest_pairs(sums: Values, count: int) -> Chosen:
    """The `count` largest of all sums, wherever they are; of equal ones the first.

    >>> largest_pairs(np.array([[5.0, 4.0, 1.0], [2.0, 4.0, 0.0]]), 2)
    array([[ True,  True, False],
           [False, False, False]])
    """
    if count >= sums.size:
        return np.ones(sums.shape, dtype=np.bool_)
    flat = sums.reshape(-1)
    least = np.partition(flat, flat.size - count)[flat.size - count]
    chosen: Chosen = flat > least
    chosen[np.flatnonzero(flat == least)[: count - int(chosen.sum())]] = True
    return chosen.reshape(sums.shape)


def largest_in_each(sums: Values, count: int) -> Chosen:
    """The `count` largest sums of every group; of equal ones the first.

    >>> largest_in_each(np.array([[5.0, 4.0, 1.0], [2.0, 4.0, 0.0]]), 1)
    array([[ True, False, False],
           [False,  True, False]])
    """
    return np.stack([largest_pairs(group, count) for group in sums])


def held(values: Values, labels: Labels, rule: Rule) -> float:
    """Sum of the values in the pairs that the rule picks for these groups."""
    sums = column_sums(values, labels)
    return float(sums[rule(sums)].sum())
