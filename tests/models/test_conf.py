"""Every conf/model/*.yaml builds its network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

FILES = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))

MILLIONS = {  # with 10 classes and 3 channels, to two places
    "mobilenet_v1": 3.22,
    "resnet14": 0.18,
    "resnet18": 11.17,
    "resnet20": 0.27,
    "resnet32x2": 1.86,
    "resnet50": 23.53,
    "resnet8": 0.08,
    "vgg16_bn": 14.72,
    "wrn32_2": 1.86,
}


def test_all_are_listed() -> None:
    assert [file.stem for file in FILES] == sorted(MILLIONS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize(("classes", "channels"), [(10, 3), (20, 1)])
def test_instantiates(file: Path, classes: int, channels: int) -> None:
    config = OmegaConf.merge(
        {"dataset": {"classes": classes, "channels": channels, "size": 32}}, {"model": OmegaConf.load(file)}
    )
    with torch.device("meta"):
        network: nn.Module = instantiate(config.model)
    assert network(torch.empty(2, channels, 32, 32, device="meta")).shape == (2, classes)
    if (classes, channels) == (10, 3):
        assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == MILLIONS[file.stem]
