"""Assignments to groups, against brute force and SciPy's general solver."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from lt_lightning.structures import clustering as assignment
from lt_lightning.structures.clustering import Floats, Integers, assign


def general(gains: Floats, size: int) -> Integers:
    """By SciPy, every group as `size` places for one row each."""
    rows, places = linear_sum_assignment(np.repeat(gains, size, axis=1), maximize=True)
    labels = np.empty(len(gains), dtype=np.int64)
    labels[rows] = places // size
    return labels


def gained(gains: Floats, labels: Integers) -> float:
    return float(gains[np.arange(len(gains)), labels].sum())


KINDS = ("any", "few levels", "rows alike", "columns alike", "empty rows", "one group wanted", "large and small")


def make(kind: str, rows: int, groups: int, draw: np.random.Generator) -> Floats:
    gains = draw.standard_normal((rows, groups))
    match kind:
        case "few levels":
            gains = draw.integers(0, 3, (rows, groups)).astype(np.float64)
        case "rows alike":
            gains = np.repeat(gains[:1], rows, axis=0)
        case "columns alike":
            gains = np.repeat(gains[:, :1], groups, axis=1)
        case "empty rows":
            gains[draw.random(rows) < 0.4] = 0
        case "one group wanted":
            gains[:, 0] += 10
        case "large and small":
            gains *= 10.0 ** draw.integers(-6, 6, (rows, 1))
    return gains


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 8), st.integers(1, 8), st.integers(0, 10**6))
def test_no_assignment_gains_more(kind: str, groups: int, size: int, seed: int) -> None:
    gains = make(kind, groups * size, groups, np.random.default_rng(seed))
    before = gains.copy()
    labels = assign(gains, size)
    assert np.bincount(labels, minlength=groups).tolist() == [size] * groups
    best = general(gains, size)
    assert gained(gains, labels) == pytest.approx(gained(gains, best), rel=1e-9, abs=1e-9)
    if kind == "any":  # in which no two assignments gain the same
        assert np.array_equal(labels, best)
    assert np.array_equal(gains, before)


@pytest.mark.parametrize("seed", range(5))
def test_six_rows_in_three_groups_by_brute_force(seed: int) -> None:
    gains = np.random.default_rng(seed).standard_normal((6, 3))
    every = set(permutations([0, 0, 1, 1, 2, 2]))
    best = max(every, key=lambda labels: gained(gains, np.array(labels)))
    assert assign(gains, 2).tolist() == list(best)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_move_one_by_one_where_prices_tell_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "_prices", lambda gains, _: np.zeros(gains.shape[1]))
    for seed in range(10):
        gains = make(kind, 30, 5, np.random.default_rng(seed))
        best = gained(gains, general(gains, 6))
        assert gained(gains, assign(gains, 6)) == pytest.approx(best, rel=1e-9, abs=1e-9)
