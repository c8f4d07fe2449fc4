"""Finished tickets of random weights, one for every structure, and what they are exported to; each made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from lt_lightning.models.mobilenet import MobileNet
from lt_lightning.models.resnet import cifar_resnet
from lt_lightning.models.vgg import VGG
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.layers import full_masks, prunable_layers
from lt_lightning.pruning.selection import prune
from lt_lightning.structures.base import Structure, StructureInput, Unstructured
from lt_lightning.structures.nm import NM
from lt_lightning.structures.refill import Refill
from lt_lightning.structures.regroup import Regroup
from lt_lightning.tickets.export.exporting import export_ticket
from lt_lightning.tickets.making import make_ticket
from lt_lightning.tickets.ticket import Ticket

SHAPE = (1, 8, 8)
MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "resnet8": (
        lambda: cifar_resnet(8, 10, 1, width=8),
        {"_target_": "lt_lightning.models.resnet.cifar_resnet", "depth": 8, "classes": 10, "channels": 1, "width": 8},
    ),
    "vgg11": (
        lambda: VGG(11, 10, 1, width=4),
        {"_target_": "lt_lightning.models.vgg.VGG", "depth": 11, "classes": 10, "channels": 1, "width": 4},
    ),
    "mobilenet": (
        lambda: MobileNet(10, 1, width=8),
        {"_target_": "lt_lightning.models.mobilenet.MobileNet", "classes": 10, "channels": 1, "width": 8},
    ),
}
STRUCTURES: dict[str, Structure] = {
    "unstructured": Unstructured(),
    "stream": Refill(round_to=2),
    "inner": Refill(coupling="inner", round_to=2),
    "independent": Refill(coupling="independent", round_to=2),
    "kernel_position": Regroup(granularity="kernel_position", clustering="random", group_size=4),
    "input_channel": Regroup(granularity="input_channel", clustering="random", group_size=4),
    "n:m": NM(),
}


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        source: the ticket's folder.
        output: the folder written.
        card: as returned.
        masked: the full network with the ticket's trained weights, made here from the class itself.
    """

    source: Path
    output: Path
    card: dict[str, Any]
    masked: nn.Module

    def logits(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.masked(images)
        return logits


Export = Callable[..., Exported]


def finished(search: Path, model: str, structure: str) -> Path:
    """Writes a search's folder with one trained ticket, whose folder it returns."""
    make, node = MODELS[model]
    torch.manual_seed(0)
    network = make()
    _vary_statistics(network)
    example = torch.zeros(1, *SHAPE)
    traced = TracedNetwork(network, example)
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    masks = full_masks(prunable_layers(traced.layers, ("stem", "classifier")))
    masks = prune(masks, {name: weights[name].abs() for name in masks}, 0.4, "layer")
    state = network.state_dict()
    ticket = make_ticket(structure, STRUCTURES[structure], StructureInput(traced, masks, weights), state, {"round": 1})
    folder = search / "round_01" / f"{structure}-0000"
    ticket.with_training(state, best_epoch=3).save(folder / "ticket")
    data = {"_target_": "lt_lightning.data.digits.Digits", "root": "data"}
    config = {"dataset": {"classes": 10, "channels": 1, "size": 8}, "data": data, "model": node, "seed": 0}
    OmegaConf.save(OmegaConf.create(config), search / "config.yaml")
    return folder


def masked_network(model: str, folder: Path) -> nn.Module:
    return Ticket.load(folder / "ticket").apply(MODELS[model][0](), "trained").eval()


def _vary_statistics(network: nn.Module) -> None:
    """As after a training: of a fresh network most normalisation layers do nothing, and hide mistakes."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for value, mean in ((module.weight.data, 1.0), (module.bias.data, 0.0)):
                value.normal_(mean, 0.3)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Exports a network's ticket, in every format unless told otherwise; the same one only once."""

    @cache
    def exported(model: str, structure: str, formats: tuple[str, ...] | None = None) -> Exported:
        root = tmp_path_factory.mktemp(f"{model}-{structure}")
        source = finished(root / "search", model, structure)
        card = export_ticket(source, root / "exported", formats)
        return Exported(source, root / "exported", card, masked_network(model, source))

    return exported
