"""Criteria that ask the loss, in two processes: both hold the same masks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from omegaconf import DictConfig

from tests.runs import run_of

Compose = Callable[..., DictConfig]


@pytest.mark.slow
def test_grasp_scores_once_for_all_processes_beside_a_synchronised_batchnorm(small: Compose) -> None:
    """Its second derivatives do not go through all processes, and masks are compared in every round."""
    options = ("trainer=ddp_sim", "pruning=grasp", "pruning.density=0.5", "retrain_rounds=[]", "trainer.max_epochs=1")
    results = run_of(small("job", *options))
    assert [round(result.density, 3) for result in results] == [1.0, 0.5]


def test_a_search_goes_on_from_a_structure_beside_a_synchronised_batchnorm(small: Compose) -> None:
    """The structure looks at the network during the fit, and at its feature maps in one process alone."""
    options = ("trainer=ddp_sim", "pruning.next_round_from=refill", "structure.refill.score=feature_l1")
    brief = ("pruning.rewind=0ep", "trainer.max_epochs=1", "data.limit=0.1", "trainer.precision=64-true")
    results = run_of(small("job", *options, *brief))
    assert [result.structure for result in results] == ["dense", "refill"]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["agp", "movement", "admm"])
def test_masks_that_come_to_be_in_a_training_are_the_same_in_all_processes(source: str, small: Compose) -> None:
    """They are compared whenever they change: the gradients that movement sums are those of both processes."""
    options = ("trainer=ddp_sim", f"pruning={source}", "pruning.density=0.3", "retrain_rounds=[]")
    results = run_of(small("job", *options))
    assert [round(result.density, 3) for result in results] == [1.0, 0.3]
