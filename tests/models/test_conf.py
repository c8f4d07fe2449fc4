"""Every conf/model/*.yaml builds its network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

FILES = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))

MILLIONS = {  # with 10 classes and 3 channels or the vocabulary of BERT, to two places
    "bert_base": 109.49,
    "bert_small": 2.09,
    "mobilenet_v1": 3.22,
    "resnet14": 0.18,
    "resnet18": 11.17,
    "resnet20": 0.27,
    "resnet9": 6.57,
    "resnet32x2": 1.86,
    "resnet50": 23.53,
    "resnet8": 0.08,
    "vgg16_bn": 14.72,
    "vit_base": 85.66,
    "vit_small": 0.22,
    "wrn32_2": 1.86,
}


def test_all_are_listed() -> None:
    assert [file.stem for file in FILES] == sorted(MILLIONS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize(("classes", "channels"), [(10, 3), (20, 1)])
def test_instantiates(file: Path, classes: int, channels: int) -> None:
    if file.stem.startswith("bert"):
        pytest.importorskip("transformers")
        dataset: dict[str, Any] = {"vocabulary": 30522, "length": 512}
        inputs = torch.empty(2, 7, dtype=torch.int64, device="meta")
    else:
        dataset = {"channels": channels, "size": 32}
        inputs = torch.empty(2, channels, 32, 32, device="meta")
    config = OmegaConf.merge({"dataset": {"classes": classes, **dataset}}, {"model": OmegaConf.load(file)})
    with torch.device("meta"):
        network: nn.Module = instantiate(config.model)
    assert network(inputs).shape == (2, classes)
    if (classes, channels) == (10, 3):
        assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == MILLIONS[file.stem]
