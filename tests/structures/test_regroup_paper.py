"""The released rule of regroup: by hand, and against its loops written out as the paper's code has them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from omegaconf import OmegaConf

from lt_lightning.models.vgg import VGG
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.layers import full_masks, prunable_layers
from lt_lightning.pruning.selection import prune
from lt_lightning.structures.base import StructureInput
from lt_lightning.structures.regroup_paper import RegroupPaper, accepted_columns
from tests.structures.test_regroup import blocks_of, chain, check, single, structure_input

CONF = Path(__file__).parents[2] / "conf" / "structure"


def count_by_loops(pattern: NDArray[np.bool_], ratio: float) -> int | None:
    """Try every number of columns, and count every row down, one after the other."""
    left = [int(row.sum()) for row in pattern]
    for count in range(1, pattern.shape[1]):
        for row in range(len(pattern)):
            left[row] -= int(pattern[row, count])
            if count <= ratio * left[row]:
                break
        else:
            return count
    return None


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 6), st.integers(2, 20), st.floats(0, 0.8), st.integers(0, 1000))
def test_the_number_of_columns_is_that_of_the_loops(rows: int, columns: int, density: float, seed: int) -> None:
    pattern = np.random.default_rng(seed).random((rows, columns)) < density
    assert accepted_columns(pattern, 1.5) == count_by_loops(pattern, 1.5)


def test_a_layer_by_hand() -> None:
    """Rows 0 and 1 make a cluster, rows 2 and 3 another.

    Row 0 has non-zeros in columns 0 and 1. At i = 1 one is left, and 1 is not above 1.5; at i = 2 one is left still,
    and 2 is. Row 1 has the same two; from i = 2 on nothing is counted down: 2 are left, so i has to exceed 3: i = 4.
    The block has the 4 densest columns, of equal ones the first: 0, 1, 2 and 3. Rows 2 and 3 have one non-zero, in
    column 5: at i = 2 the first has passed, and the second has: columns 5 and 0.
    """
    pattern = torch.tensor([
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 1],
    ])[:, :, None, None].bool()  # fmt: skip
    given_input = single(torch.ones(4, 6, 1, 1), pattern)
    result = RegroupPaper(clusters=2, least_rows=1)(given_input)
    check(result, given_input, "kernel_position")
    assert result.masks["0.weight"][:, :, 0, 0].int().tolist() == [
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 0, 0, 0, 0, 1],
        [1, 0, 0, 0, 0, 1],
    ]
    assert (result.layers["0"].target, result.layers["0"].executed) == (6, 12)


def test_clusters_that_are_too_small_or_too_dense_form_no_block() -> None:
    small = structure_input(chain(8, 128), density=0.3)  # 8 clusters of 16 filters, where more than 16 are asked for
    assert RegroupPaper(clustering="random")(small).layers["1"].note == (
        "clusters of 16 filters form no block: executed dense"
    )
    dense = single(torch.ones(4, 6, 1, 1), torch.ones(4, 6, 1, 1, dtype=torch.bool))
    report = RegroupPaper(clusters=2, least_rows=1)(dense).layers["0"]
    assert (report.form, report.executed) == ("dense", 24)
    assert report.note == "2 of 2 clusters form no block; executed dense"


def test_filters_of_a_cluster_without_a_block_are_pruned() -> None:
    pattern = torch.zeros(4, 6, 1, 1, dtype=torch.bool)
    pattern[:2], pattern[2:, 5] = True, True  # all of the first two rows, for which no number is large enough
    given_input = single(torch.ones(4, 6, 1, 1), pattern)
    result = RegroupPaper(clusters=2, least_rows=1)(given_input)
    check(result, given_input, "kernel_position")
    assert not result.masks["0.weight"][:2].any()
    assert result.layers["0"].note == "1 of 2 clusters form no block"
    assert [block.rows.tolist() for block in blocks_of(result)["0"]] == [[2, 3]]


@pytest.mark.slow
@pytest.mark.parametrize(("share", "published"), [(0.41, 0.626), (0.21, 0.382)])
def test_it_keeps_about_as_much_as_was_published(share: float, published: float) -> None:
    """VGG-16 by magnitude, at its initial values, whose rows are more even than trained ones; docs/verdicts.md."""
    torch.manual_seed(0)
    traced = TracedNetwork(VGG(16, 100), torch.zeros(1, 3, 32, 32))
    weights = {name: parameter.detach() for name, parameter in traced.network.named_parameters()}
    masks = full_masks(prunable_layers(traced.layers, ("stem", "classifier")))
    masks = prune(masks, {name: weights[name].abs() for name in masks}, share)
    given_input = StructureInput(traced, masks, weights)
    result = RegroupPaper(clustering="random")(given_input)
    reports = [result.layers[layer.name] for layer in given_input.prunable]
    kept = sum(report.target if report.form == "dense" else report.kept for report in reports)
    assert kept / sum(report.size for report in reports) == pytest.approx(published, rel=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"clusters": 0}, "clusters=0: "), ({"ratio": 0.0}, "ratio=0.0: "), ({"least_rows": -1}, "least_rows=-1: "),
     ({"clustering": "hmetis"}, "clustering='hmetis': ")],
)  # fmt: skip
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        replace(RegroupPaper(), **options)  # type: ignore[arg-type]


def test_the_configuration_names_every_option_with_its_default() -> None:
    config = OmegaConf.merge({"seed": 7}, {"structure": OmegaConf.load(CONF / "regroup_paper.yaml")})
    structure = hydra.utils.instantiate(config.structure.regroup_paper)
    assert structure == RegroupPaper(seed=7)
    assert set(config.structure.regroup_paper) == {"_target_", *asdict(structure)}
