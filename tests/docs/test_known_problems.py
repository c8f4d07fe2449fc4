"""docs/known_problems.md: its tests are there, and what it says of Lightning is true of the installed one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelPruning
from torch import Tensor, nn

from lt_lightning import shrink

ROOT = Path(__file__).resolve().parents[2]


def test_every_entry_names_a_test_that_is_there() -> None:
    entries = (ROOT / "docs" / "known_problems.md").read_text().split('\n- "')[1:]
    assert len(entries) > 12
    for entry in entries:
        named = re.findall(r"`(tests/\S+\.py)::(\w+)`", entry)
        assert named, entry
        for path, function in named:
            assert f"\ndef {function}(" in (ROOT / path).read_text(), f"{path}::{function}"


def pruned(**options: Any) -> tuple[pl.LightningModule, ModelPruning]:
    module, layer = pl.LightningModule(), nn.Linear(8, 8)
    module.add_module("layer", layer)
    callback = ModelPruning("l1_unstructured", parameters_to_prune=[(layer, "weight")], amount=0.2, **options)
    callback.setup(pl.Trainer(accelerator="cpu", logger=False), module, "fit")
    callback.apply_pruning(0.2)
    return module, callback


def test_the_second_reset_of_model_pruning_is_to_trained_weights() -> None:
    module, callback = pruned(use_lottery_ticket_hypothesis=True)
    weights = dict(module.named_parameters())["layer.weight_orig"]
    start = weights.detach().clone()
    for trained, right in ((weights + 1, True), (weights + 2, False)):
        with torch.no_grad():
            weights.copy_(trained)  # in place, as optimizers do
        callback.apply_lottery_ticket_hypothesis()
        assert torch.equal(weights, start) == right


def test_a_checkpoint_of_model_pruning_has_no_masks() -> None:
    module, callback = pruned(use_lottery_ticket_hypothesis=False)
    checkpoint = {"state_dict": module.state_dict()}
    assert set(checkpoint["state_dict"]) == {"layer.weight_orig", "layer.weight_mask", "layer.bias"}
    callback.on_save_checkpoint(pl.Trainer(accelerator="cpu", logger=False), module, checkpoint)
    assert set(checkpoint["state_dict"]) == {"layer.weight", "layer.bias"}
    assert callback.state_dict() == {}


class Generator(nn.Module):
    """The network of Torch-Pruning's issue 125, smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 16 * 16)
        self.first = nn.ConvTranspose2d(16, 8, kernel_size=4, stride=2, padding=1)
        self.second = nn.ConvTranspose2d(8, 3, kernel_size=4, stride=2, padding=1)

    def forward(self, noise: Tensor) -> Tensor:
        maps = self.linear(noise).relu().view(-1, 16, 4, 4)
        images: Tensor = self.second(self.first(maps).relu())
        return images


def test_a_linear_layer_that_is_viewed_as_channels_of_a_transposed_convolution() -> None:
    torch.manual_seed(0)
    model = Generator().eval()
    small = shrink(model, torch.zeros(1, 8), keep={"*": 0.5})
    network = small.network
    assert isinstance(network, Generator)
    assert (network.linear.out_features, network.first.in_channels, network.first.out_channels) == (256, 16, 4)
    whole = {layer.name: layer.why for layer in small.layers if layer.why}
    assert f"{Path(__file__).name}:" in whole["linear"]
    model.load_state_dict(small.slices.put(network.state_dict(), model.state_dict()))
    noise = torch.randn(4, 8)
    torch.testing.assert_close(network.eval()(noise), model(noise))
