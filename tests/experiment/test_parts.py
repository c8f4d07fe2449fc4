"""What an experiment builds of its configuration, and what it leaves as it is."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from torch.backends import cudnn

from lt_lightning.experiment.parts import Experiment

Compose = Callable[..., DictConfig]


@pytest.fixture(autouse=True)
def flags() -> Iterator[None]:
    before = cudnn.benchmark, torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    yield
    cudnn.benchmark = before[0]
    torch.use_deterministic_algorithms(before[1])
    torch.set_num_threads(before[2])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], True),
        (["trainer.deterministic=true"], False),  # the fastest may be another one after a resume
        (["trainer.deterministic=warn"], False),
        (["trainer.benchmark=false"], False),
        (["~trainer.deterministic"], True),
    ],
)
def test_cudnn_tries_its_algorithms_unless_they_must_be_deterministic(
    options: list[str], expected: bool, composed: Compose
) -> None:
    cudnn.benchmark = not expected
    Experiment.from_config(composed("model.width=8", *options)).trainer([], [])
    assert cudnn.benchmark == expected


def drawn() -> tuple[float, float, float]:
    """Return what the global random generators give next, and leave them as they are."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    numbers = random.random(), float(np.random.rand()), float(torch.rand(()))
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    return numbers


def test_the_parts_are_built_without_drawing_random_numbers(composed: Compose) -> None:
    """A network is built for the checks, and another one for the table of layers."""
    structures = "structure=[refill,regroup,filters]"
    config = composed("model.width=8", structures, "pruning.scope=erk", "controls=[small_dense]")
    before = drawn()
    experiment = Experiment.from_config(config)
    assert drawn() == before
    first = experiment.spare_classifier().network
    assert drawn() == before
    assert experiment.spare_classifier().network is first
    networks = [experiment.network(3).state_dict() for _ in range(2)]
    assert drawn() != before  # the network of a seed goes on from where its values end
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])


@pytest.mark.parametrize(
    ("mode", "rewind", "epochs"),
    [("weights", "2ep", 3), ("learning_rate", "2ep", 3), ("weights_only", "2ep", 5), ("weights", "2it", 5)],
)
def test_a_round_has_the_epochs_that_what_goes_back_leaves(
    mode: str, rewind: str, epochs: int, composed: Compose
) -> None:
    options = ("trainer.max_epochs=5", "pruning.rounds=2", f"pruning.mode={mode}", f"pruning.rewind={rewind}")
    experiment = Experiment.from_config(composed("model.width=8", *options))
    assert experiment.search_lengths() == [[5], [epochs], [epochs]]
    assert experiment.retraining_epochs(False) == epochs


def test_threads_are_set_when_a_training_asks_for_them_and_not_before(composed: Compose) -> None:
    torch.set_num_threads(1)
    experiment = Experiment.from_config(composed("model.width=8", "threads=2"))
    assert torch.get_num_threads() == 1
    experiment.use_threads()
    assert torch.get_num_threads() == 2
    Experiment.from_config(composed("model.width=8", "threads=null")).use_threads()
    assert torch.get_num_threads() == 2
