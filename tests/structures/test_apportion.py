from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_lightning.structures.matrices import apportion

layer = st.tuples(st.integers(1, 60), st.integers(1, 80), st.floats(0, 1))


@given(st.lists(layer, min_size=1, max_size=6), st.floats(0, 1))
def test_the_sum_is_as_close_below_the_total_as_steps_allow(layers: list[tuple[int, int, float]], share: float) -> None:
    steps = [step for step, _, _ in layers]
    most = [high for _, high, _ in layers]
    targets = [round(step * high * part) for step, high, part in layers]
    total = round(sum(targets) * share)

    counts = apportion(targets, steps, most, total)

    used = sum(count * step for count, step in zip(counts, steps, strict=True))
    assert all(1 <= count <= high for count, high in zip(counts, most, strict=True))
    if used > total:
        assert counts == [1] * len(counts)
    else:
        free = [step for step, count, high in zip(steps, counts, most, strict=True) if count < high]
        assert not free or total - used < min(free)


def test_layers_that_ask_for_what_there_is_get_it_within_a_step() -> None:
    targets, steps = [1000, 333, 77, 512], [32, 16, 8, 64]
    counts = apportion(targets, steps, [1000] * 4, total=sum(targets))
    for target, step, count in zip(targets, steps, counts, strict=True):
        assert abs(count * step - target) < step


def test_what_is_missing_is_taken_in_proportion() -> None:
    assert apportion([1000, 100], [1, 1], [2000, 2000], total=550) == [500, 50]


@pytest.mark.parametrize("total", [-5, 0, 2])
def test_no_layer_is_emptied(total: int) -> None:
    assert apportion([10, 0, 0], [1, 2, 3], [10, 10, 10], total) == [1, 1, 1]
