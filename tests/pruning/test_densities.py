"""The density of every round."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_lightning.pruning.densities import densities


@given(st.floats(0.01, 0.95), st.floats(0.01, 0.99))
def test_as_many_rounds_as_reach_the_density_and_no_more(rate: float, density: float) -> None:
    shares = [1.0, *densities(1, rate, density)]
    assert shares[-1] == density
    assert all(after == pytest.approx(before * (1 - rate)) for before, after in pairwise(shares[:-1]))
    assert all(share > density for share in shares[:-1])
    assert shares[-2] * (1 - rate) <= density * (1 + 1e-6)


@pytest.mark.parametrize(("rate", "rounds"), [(0.2, 2), (0.2, 10), (0.5, 3), (0.36, 4), (0.1, 20)])
def test_a_density_that_rounds_reach_takes_no_round_more(rate: float, rounds: int) -> None:
    """0.8 x 0.8 is 0.6400000000000001."""
    assert len(densities(1, rate, round((1 - rate) ** rounds, 14))) == rounds


@pytest.mark.parametrize("density", [1e-3, [0.3, 1e-3], [0.5, 0.3, 0.1, 0.01, 1e-3]])
def test_too_many_rounds_are_refused_however_many_densities_they_pass(density: float | list[float]) -> None:
    with pytest.raises(ValueError, match=r"^rate=0\.005: "):
        densities(1, 0.005, density)


def test_without_a_density_rounds_count() -> None:
    assert densities(3, 0.5) == [0.5, 0.25, 0.125]
    assert densities(3, 0.5, at_once=True) == [0.5, 0.25, 0.125]
    assert densities(3, 0.5, 0.1, at_once=True) == [0.1]
