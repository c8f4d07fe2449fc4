"""What a study builds of its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from lt_lightning.experiment.run.experiment import Experiment
from omegaconf import DictConfig
from torch.backends import cudnn


@pytest.fixture(autouse=True)
def flags() -> Iterator[None]:
    before = cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    yield
    cudnn.benchmark = before[0]
    torch.use_deterministic_algorithms(before[1])


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
    options: list[str], expected: bool, composed: Callable[..., DictConfig]
) -> None:
    cudnn.benchmark = not expected
    Experiment.from_config(composed("model.width=8", *options)).trainer([], [])
    assert cudnn.benchmark == expected
