"""Pruning to an exact density, against a brute-force sort."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lt_lightning.pruning.criteria import Magnitude
from lt_lightning.pruning.densities import density_after
from lt_lightning.pruning.masks import Masks, kept, nested
from lt_lightning.pruning.selection import Scope, erk_counts, prune, prune_each

Scores = dict[str, Tensor]


def ones(scores: Scores) -> Masks:
    return {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}


def random_scores(sizes: list[int], levels: int, seed: int) -> Scores:
    """Whole numbers below `levels`, so that few levels make many ties."""
    generator = torch.Generator().manual_seed(seed)
    return {f"w{i}": torch.randint(levels, (n,), generator=generator).float() for i, n in enumerate(sizes)}


def brute_force(masks: Masks, scores: Scores, keep: int) -> set[tuple[str, int]]:
    """The kept weights: sort all survivors by score, then by place, and cut off the first."""
    survivors = [
        (float(scores[name][i]), place, name, i)
        for place, name in enumerate(masks)
        for i in range(masks[name].numel())
        if masks[name][i]
    ]
    return {(name, i) for _, _, name, i in sorted(survivors)[max(0, len(survivors) - keep) :]}


def as_set(masks: Masks) -> set[tuple[str, int]]:
    return {(name, int(i)) for name, mask in masks.items() for i in mask.nonzero().flatten()}


sizes = st.lists(st.integers(1, 30), min_size=1, max_size=4)
rates = st.floats(0.05, 0.9)


@given(sizes, rates, st.sampled_from([2, 5, 10**6]), st.integers(0, 10**6))
def test_rounds_keep_what_a_sort_keeps_exactly_and_nested(
    sizes: list[int], rate: float, levels: int, seed: int
) -> None:
    masks = ones(random_scores(sizes, levels, seed))
    total = sum(sizes)
    for number in range(1, 5):
        scores = random_scores(sizes, levels, seed + number)
        wanted = round(density_after(number, rate) * total)
        if wanted < 1:
            with pytest.raises(ValueError, match=r"^density="):
                prune(masks, scores, density_after(number, rate))
            return
        after = prune(masks, scores, density_after(number, rate))
        assert kept(after) == wanted
        assert abs(kept(after) - (1 - rate) ** number * total) <= 0.5 + 1e-6
        assert nested(after, masks)
        assert as_set(after) == brute_force(masks, scores, wanted)
        masks = after


@given(sizes, rates, st.integers(0, 10**6))
def test_no_weight_dies_before_a_smaller_one(sizes: list[int], rate: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = {f"w{i}": torch.randn(n, generator=generator) for i, n in enumerate(sizes)}
    if round((1 - rate) * sum(sizes)) < 1:
        return
    full = ones(weights)
    masks = prune(full, Magnitude()(weights, full), 1 - rate)
    dead = [float(weights[name][~mask].abs().max()) for name, mask in masks.items() if not mask.all()]
    alive = [float(weights[name][mask].abs().min()) for name, mask in masks.items() if mask.any()]
    assert max(dead, default=0) <= min(alive)


@given(sizes, rates, st.integers(0, 10**6))
def test_layer_scope_prunes_every_layer_alike_and_none_empty(sizes: list[int], rate: float, seed: int) -> None:
    scores = random_scores(sizes, 7, seed)
    masks = prune(ones(scores), scores, 1 - rate, "layer")
    for name, mask in masks.items():
        wanted = max(1, round((1 - rate) * mask.numel()))
        assert as_set({name: mask}) == brute_force({name: torch.ones_like(mask)}, scores, wanted)


def test_of_equal_scores_the_last_is_kept_over_all_layers() -> None:
    scores = {"a": torch.ones(3), "b": torch.tensor([[2.0, 1.0], [1.0, 0.0]])}
    masks = prune(ones(scores), scores, 3 / 7)
    assert masks["a"].tolist() == [False, False, False]
    assert masks["b"].tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_sparser_mask_stays_and_the_arguments_are_not_changed(scope: Scope) -> None:
    masks = {"w": torch.tensor([True, False, False, False])}
    scores = {"w": torch.arange(4.0)}
    after = prune(masks, scores, 0.75, scope)
    assert torch.equal(after["w"], masks["w"])
    assert after["w"] is not masks["w"]
    pruned = prune({"w": torch.ones(4, dtype=torch.bool)}, scores, 0.5, scope)
    assert pruned["w"].tolist() == [False, False, True, True]
    assert masks["w"].tolist() == [True, False, False, False]
    assert torch.equal(scores["w"], torch.arange(4.0))


def test_the_scores_of_pruned_weights_do_not_matter() -> None:
    masks = {"w": torch.tensor([True, True, False, True])}
    for other in (-1.0, 9.0, math.nan, math.inf):
        after = prune(masks, {"w": torch.tensor([1.0, 3.0, other, 2.0])}, 0.5)
        assert after["w"].tolist() == [False, True, False, True]


def test_infinite_scores_have_an_order() -> None:
    scores = {"w": torch.tensor([math.inf, -math.inf, 0.0, math.inf])}
    assert prune(ones(scores), scores, 0.5)["w"].tolist() == [True, False, False, True]


def test_scores_in_channels_last_are_read_by_index() -> None:
    scores = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    masks = {"w": torch.ones(4, 3, 2, 2, dtype=torch.bool)}
    expected = prune(masks, {"w": scores}, 0.3)["w"]
    assert torch.equal(prune(masks, {"w": scores.contiguous(memory_format=torch.channels_last)}, 0.3)["w"], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_types(dtype: torch.dtype) -> None:
    scores = {"a": torch.arange(10).to(dtype), "b": torch.arange(10, 20).to(dtype)}
    masks = prune(ones(scores), scores, 0.35)
    assert masks["a"].tolist() == [False] * 10
    assert masks["b"].tolist() == [False] * 3 + [True] * 7


def test_scores_of_different_number_types_are_compared_exactly() -> None:
    """Of 1 + 2^-10, which bfloat16 rounds to 1, and 1: the first stays."""
    scores = {"a": torch.tensor([1.0, 0.5], dtype=torch.bfloat16), "b": torch.tensor([1 + 2.0**-10, 0.25])}
    assert as_set(prune(ones(scores), scores, 0.25)) == {("b", 0)}
    assert as_set(prune(ones(scores), scores, 0.5)) == {("a", 0), ("b", 0)}


def test_a_score_that_is_not_a_number_is_refused_by_name() -> None:
    scores = {"fine": torch.ones(2), "layer3.weight": torch.tensor([1.0, math.nan])}
    with pytest.raises(ValueError, match=r"layer3\.weight are not all numbers"):
        prune(ones(scores), scores, 0.5)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, math.nan])
def test_an_impossible_density_is_refused(density: float) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(f"density={density}: ")):
        prune({"w": torch.ones(4, dtype=torch.bool)}, {"w": torch.ones(4)}, density)


@settings(max_examples=20)
@given(st.integers(0, 12), rates)
def test_density_after_compounds(rounds: int, rate: float) -> None:
    expected = 1.0
    for _ in range(rounds):
        expected *= 1 - rate
    assert density_after(rounds, rate) == pytest.approx(expected, rel=1e-12)


def test_more_scores_than_a_float32_counts() -> None:
    """fasterai's `torch.quantile` fails above 2^24 scores."""
    count = 2**24 + 3
    scores = {"w": torch.arange(count, dtype=torch.int32)}
    mask = prune({"w": torch.ones(count, dtype=torch.bool)}, scores, 0.8)["w"]
    wanted = round(0.8 * count)
    assert int(mask.count_nonzero()) == wanted
    assert bool(mask[count - wanted :].all())


def test_magnitude_is_the_absolute_value_of_masked_parameters_only() -> None:
    weights = {"a": torch.tensor([-2.0, 1.0]), "b": torch.ones(1)}
    scores = Magnitude()(weights, {"a": torch.ones(2, dtype=torch.bool)})
    assert {name: score.tolist() for name, score in scores.items()} == {"a": [2.0, 1.0]}
    assert weights["a"].tolist() == [-2.0, 1.0]


shapes = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3)), min_size=1, max_size=5)


@given(shapes, st.floats(0.02, 1), st.integers(0, 10**6))
def test_erk_keeps_exactly_what_is_asked_in_its_proportions(
    shapes: list[tuple[int, int, int]], density: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {f"w{i}": torch.rand(o, n, k, k, generator=generator) for i, (o, n, k) in enumerate(shapes)}
    full = ones(scores)
    keep = round(density * sum(score.numel() for score in scores.values()))
    if keep < 1:
        return
    masks = prune(full, scores, density, "erk")
    assert kept(masks) == keep
    counts = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
    for name, mask in masks.items():
        chosen = brute_force({name: full[name].flatten()}, {name: scores[name].flatten()}, counts[name])
        assert as_set({name: mask.flatten()}) == chosen
    # A layer is either full, or its density over (outputs + inputs + kernel) / size is the factor of the others.
    partial = [name for name in counts if counts[name] < scores[name].numel() - 1]
    for a in partial:
        for b in counts:
            bound = (counts[b] + 1) / sum(scores[b].shape)
            assert (counts[a] - 1) / sum(scores[a].shape) <= bound or counts[b] == scores[b].numel()


def test_erk_of_two_layers_by_hand() -> None:
    """4 + 4 + 3 + 3 = 14 of 144 and 8 + 4 = 12 of 32: 44 weights are 44 x 14 / 26 = 23.7 and 44 x 12 / 26 = 20.3."""
    scores = {"conv": torch.rand(4, 4, 3, 3), "linear": torch.rand(8, 4)}
    masks = prune(ones(scores), scores, 44 / 176, "erk")
    assert {name: kept({name: mask}) for name, mask in masks.items()} == {"conv": 24, "linear": 20}
    # 88 weights would be 47.4 and 40.6, more than there are: the small layer stays whole.
    masks = prune(ones(scores), scores, 0.5, "erk")
    assert {name: kept({name: mask}) for name, mask in masks.items()} == {"conv": 56, "linear": 32}


def test_erk_counts_on_from_masks_that_are_sparser() -> None:
    masks = {"a": torch.ones(10, 10, dtype=torch.bool), "b": torch.zeros(10, 10, dtype=torch.bool)}
    masks["b"][:, 0] = True
    assert erk_counts(masks, 50) == {"a": 40, "b": 10}
    assert erk_counts(masks, 1000) == {"a": 100, "b": 10}


def test_each_mask_keeps_its_own_number() -> None:
    scores = {"a": torch.arange(4.0), "b": torch.arange(4.0).flip(0)}
    masks = prune_each(ones(scores), scores, {"a": 3, "b": 1})
    assert masks["a"].tolist() == [False, True, True, True]
    assert masks["b"].tolist() == [True, False, False, False]
