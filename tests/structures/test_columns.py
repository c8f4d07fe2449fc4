from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lt_lightning.structures.matrices import ColumnRule, chosen_sum, column_sums, largest_in_each, largest_pairs

small = st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=4)


@given(small, st.integers(1, 20))
def test_the_largest_sums_are_chosen_and_ties_go_to_the_first(sums: list[list[int]], count: int) -> None:
    table = np.array(sums, dtype=np.float64)
    places = [(-value, row, column) for row, line in enumerate(sums) for column, value in enumerate(line)]
    wanted = {(row, column) for _, row, column in sorted(places)[:count]}
    assert {(int(r), int(c)) for r, c in np.argwhere(largest_pairs(table, count))} == wanted


@given(small, st.integers(1, 4))
def test_every_group_gets_the_same_number_of_columns(sums: list[list[int]], count: int) -> None:
    chosen = largest_in_each(np.array(sums, dtype=np.float64), count)
    for line, picked in zip(sums, chosen, strict=True):
        wanted = sorted(range(4), key=lambda column: (-line[column], column))[:count]
        assert np.flatnonzero(picked).tolist() == sorted(wanted)


def test_sums_by_hand() -> None:
    values = np.array([[3.0, 0.0], [1.0, 1.0], [0.0, 2.0], [0.0, 5.0]])
    labels = np.array([1, 1, 0, 0])
    assert column_sums(values, labels).tolist() == [[0.0, 7.0], [4.0, 1.0]]
    assert chosen_sum(values, labels, ColumnRule(2)) == 11.0
    assert chosen_sum(values, labels, ColumnRule(1)) == 7.0


def test_the_least_that_is_chosen_by_hand() -> None:
    sums = np.array([[5.0, 4.0, 1.0], [2.0, 4.0, 3.0]])
    assert ColumnRule(4).least(sums).tolist() == [[3.0], [3.0]]
    assert ColumnRule(2, in_each=True).least(sums).tolist() == [[4.0], [3.0]]
    assert ColumnRule(2, in_each=True)(sums).tolist() == [[True, True, False], [False, True, True]]
