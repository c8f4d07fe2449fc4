"""What is compared with the dense network: tickets, and what others make of their masks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from benchmarks.peers import SquareBlocks, prune_by_torch_pruning, with_sparse_weights
from lt_lightning.execution.cost import Setting
from lt_lightning.execution.execute import DENSE_FORM, execute
from lt_lightning.execution.form_choice import choose_forms
from lt_lightning.execution.shrink_channels import Shrunk
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.enforcement import EnforcedMasks
from lt_lightning.pruning.layers import full_masks, prunable_layers
from lt_lightning.pruning.masks import Masks
from lt_lightning.pruning.selection import prune, prune_each
from lt_lightning.structures.base import Structure, StructureInput, StructureResult, Unstructured
from lt_lightning.structures.plan import ChannelPlan
from lt_lightning.structures.refill import Refill
from lt_lightning.structures.regroup import Regroup


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        samples: number of turns, of which the median counts.
        slot: shortest time of a turn's calls of one function, in seconds.
        limit: seconds after which no further turn of a setting begins (there are three at least).
    """

    samples: int = 7
    slot: float = 0.05
    limit: float = 60.0


@dataclass(frozen=True)
class Executed:
    """A network that computes what a ticket's masked network does.

    Attributes:
        network: the network that runs.
        masks: masks that training enforces.
        left_dense: layers of the ticket's plan that it computes whole, since that was measured faster.
    """

    network: nn.Module
    masks: Masks = field(default_factory=dict)
    left_dense: tuple[str, ...] = ()


class Tickets:
    """A network at random weights and its tickets: every prunable layer pruned to a density by magnitude.

    Only time is measured, which depends on shapes alone.

    Attributes:
        network: the dense one.
        example: an image of zeros.
        layer_densities: density of every prunable layer, by name; None gives all of them the ticket's density.
        densities: densities of the tickets that there are with these; empty where any density is possible.
    """

    def __init__(
        self, network: nn.Module, shape: tuple[int, ...], layer_densities: Mapping[str, float] | None = None
    ) -> None:
        """Take the network, the shape of an image and the densities of the layers.

        Raises:
            ValueError: if a prunable layer has no density, or the network lacks a layer that has one.
        """
        self.network = network.eval()
        self.layer_densities = layer_densities
        self.example = torch.zeros(1, *shape)
        self.traced = TracedNetwork(network, self.example)
        self.layers = self.traced.layers
        self._full = full_masks(prunable_layers(self.layers, ("stem", "classifier")))
        self.densities = [] if layer_densities is None else [self._total(layer_densities)]
        self._tickets: dict[tuple[Structure, float], StructureResult] = {}
        self._whole: dict[tuple[Structure, float], Shrunk | None] = {}

    def ticket(self, structure: Structure, density: float) -> StructureResult:
        """Return a structure's ticket, which is made once."""
        key = (structure, density)
        if key not in self._tickets:
            weights = {name: parameter.detach() for name, parameter in self.network.named_parameters()}
            scores = {name: weights[name].abs() for name in self._full}
            if self.layer_densities is None:
                masks = prune(self._full, scores, density, "layer")
            else:
                masks = prune_each(self._full, scores, self._counts(self.layer_densities))
            self._tickets[key] = structure(StructureInput(self.traced, masks, weights))
        return self._tickets[key]

    def _counts(self, layer_densities: Mapping[str, float]) -> dict[str, int]:
        """Return how many weights every prunable weight keeps."""
        prunable = prunable_layers(self.layers, ("stem", "classifier"))
        return {layer.weight: max(1, round(layer_densities[layer.name] * layer.size)) for layer in prunable}

    def _total(self, layer_densities: Mapping[str, float]) -> float:
        """Return the density of all prunable weights together."""
        names = {layer.name for layer in prunable_layers(self.layers, ("stem", "classifier"))}
        if odd := sorted(names ^ layer_densities.keys()):
            raise ValueError(f"layer densities: {odd[0]!r} must be a prunable layer and have a density")
        kept = sum(self._counts(layer_densities).values())
        return round(kept / sum(mask.numel() for mask in self._full.values()), 4)

    def masked(self, structure: Structure, density: float) -> nn.Module:
        """Return the full network with the ticket's pruned weights at zero."""
        network = copy.deepcopy(self.network)
        EnforcedMasks(network, self.ticket(structure, density).masks).zero_weights()
        return network

    def whole(self, structure: Structure, density: float) -> Shrunk | None:
        """Return the network in which everything runs as the ticket's plan says, faster or not; made once."""
        key, ticket = (structure, density), self.ticket(structure, density)
        if key not in self._whole:
            self._whole[key] = execute(self.masked(structure, density), ticket.plan, ticket.masks, self.example)
        return self._whole[key]


Execute = Callable[[nn.Module, StructureResult, Tensor, Setting, str], Executed]
"""Makes the network that runs, from the masked one, the ticket, an example image, the setting and the device."""


@dataclass(frozen=True)
class Variant:
    """A structure and what executes its tickets.

    Attributes:
        structure: structure that makes the tickets.
        execute: function that makes the network that runs.
        trains: whether that network can train.
        exports: whether ONNX Runtime runs it, too.
    """

    structure: Structure
    execute: Execute
    trains: bool = True
    exports: bool = False

    def fits(self, setting: Setting) -> bool:
        """Return whether the variant can be measured in this setting."""
        if setting.engine == "onnx":
            return self.exports and not setting.training and not setting.bfloat16
        return self.trains or not (setting.training or setting.bfloat16 or setting.engine == "compile")


def as_masked(network: nn.Module, ticket: StructureResult, example: Tensor, setting: Setting, device: str) -> Executed:
    """Multiply zeros like any number, as most lottery ticket code does."""
    return Executed(network, ticket.masks)


def as_planned(network: nn.Module, ticket: StructureResult, example: Tensor, setting: Setting, device: str) -> Executed:
    """Make the network of this package, each layer in the form that is measured fastest in this setting."""
    how = (setting.batch_size, setting.training, device)
    choice = choose_forms(network, ticket.plan, example, *how, setting.bfloat16)
    shrunk = execute(network, ticket.plan, ticket.masks, example, choice.forms)
    if shrunk is None:
        return as_masked(network, ticket, example, setting, device)
    left = tuple(name for name, form in shrunk.choice.items() if form == DENSE_FORM)
    return Executed(shrunk.network, shrunk.masks, left)


def by_torch_pruning(
    network: nn.Module, ticket: StructureResult, example: Tensor, setting: Setting, device: str
) -> Executed:
    """Make Torch-Pruning's network with the channels of a refill ticket."""
    assert isinstance(ticket.plan, ChannelPlan)
    return Executed(prune_by_torch_pruning(network, ticket.plan, example))


def _sparse(layout: torch.layout) -> Execute:
    def make(network: nn.Module, ticket: StructureResult, example: Tensor, setting: Setting, device: str) -> Executed:
        return Executed(with_sparse_weights(network, ticket.masks, layout))

    return make


VARIANTS: Mapping[str, Variant] = {
    "masked": Variant(Unstructured(), as_masked),
    "refill": Variant(Refill(), as_planned, exports=True),
    "refill_inner": Variant(Refill(coupling="inner"), as_planned, exports=True),
    "refill_independent": Variant(Refill(coupling="independent"), as_planned, exports=True),
    "regroup_channels": Variant(Regroup(granularity="input_channel", round_to=16), as_planned),
    "regroup": Variant(Regroup(granularity="kernel_position"), as_planned),
    "torch_pruning": Variant(Refill(), by_torch_pruning),
    "csr": Variant(Unstructured(), _sparse(torch.sparse_csr), trains=False),
    "bsr": Variant(SquareBlocks(), _sparse(torch.sparse_bsr), trains=False),
}
"""The variants by name. The last three are peers; `csr` and `bsr` run in inference only, in float32, uncompiled."""
PEERS = ("torch_pruning", "csr", "bsr")
TICKETS = tuple(name for name in VARIANTS if name not in (*PEERS, "masked"))


def with_round_to(variant: Variant, round_to: int) -> Variant:
    """Return the variant with channel counts rounded up to a multiple, where its structure rounds."""
    structure = variant.structure
    if isinstance(structure, Refill) or (isinstance(structure, Regroup) and structure.granularity == "input_channel"):
        return replace(variant, structure=replace(structure, round_to=round_to))
    return variant
