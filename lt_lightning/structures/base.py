"""What every structure is given and returns, and the structure that changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from lt_lightning.network_graph.graph import ChannelGraph
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.layers import Layer
from lt_lightning.pruning.masks import Masks, count_kept
from lt_lightning.structures.plan import Plan

Batches = Callable[[int], Sequence[tuple[Tensor, Tensor]]]
Form = Literal["channels", "blocks", "dense", "unstructured"]

_CACHED = 1 << 18  # weights that stay in the cache (2 MiB as float64)


@dataclass(frozen=True)
class StructureInput:
    """One round's mask, and what a structure may look at to structure it.

    Attributes:
        traced: the network; structures read its layers and its graph, never its values.
        masks: this round's mask of every prunable weight, by parameter name, on the CPU.
        weights: trained value of every parameter, by name, on the CPU; for a structure with `needs_batches` of every
            buffer, too.
        gradients: gradients of the loss summed over a few batches, by name; None unless a structure `needs_gradients`.
        batches: function that gives so many training batches (inputs, targets), the same at every call; None where
            there are none.
        previous: plan of the ticket that this one is grown from; None where it is grown from none.
    """

    traced: TracedNetwork
    masks: Masks
    weights: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor] | None = None
    batches: Batches | None = None
    previous: Plan | None = None

    @property
    def network(self) -> nn.Module:
        """The module itself."""
        return self.traced.network

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Every convolution and linear layer, by name, in the order of the network."""
        return self.traced.layers

    @property
    def graph(self) -> ChannelGraph:
        """The network's channels.

        Raises:
            ValueError: if the network cannot be traced.
        """
        return self.traced.graph

    @property
    def prunable(self) -> list[Layer]:
        """The layers whose weight has a mask, in the order of the network; those that share a weight share its mask."""
        return [layer for layer in self.layers.values() if layer.weight in self.masks]


@dataclass(frozen=True)
class LayerReport:
    """What a structure made of one layer.

    Attributes:
        size: number of weights, at least 1.
        target: number of weights that the round's unstructured mask keeps.
        kept: number of weights that the ticket's mask keeps.
        executed: number of weights that take part in the computation when the plan is executed, padding counted.
        positions: positions of one sample, see `Layer`; the layer executes `executed * positions` multiply-adds.
        form: way in which the layer is executed; `dense` and `unstructured` layers run whole.
        retained_magnitude: share of the unstructured mask's surviving magnitude that the ticket keeps, in [0, 1].
        note: why a layer fell back, or what is particular about it; empty where nothing is.
    """

    size: int
    target: int
    kept: int
    executed: int
    positions: int
    form: Form
    retained_magnitude: float = 1.0
    note: str = ""

    @property
    def density(self) -> float:
        """Share of the weights: executed for a structured layer; kept for an unstructured one, which runs whole."""
        return (self.kept if self.form == "unstructured" else self.executed) / self.size


@dataclass(frozen=True)
class StructureResult:
    """The structured mask, and how to execute it.

    Attributes:
        masks: mask of every prunable weight, and of any other parameter that is not kept whole (BatchNorm affine and
            biases of dropped channels, stem filters, classifier inputs).
        layers: report of every layer of the network, by name.
        plan: way to execute the masks on a smaller network; None if nothing can be skipped.
    """

    masks: Masks
    layers: Mapping[str, LayerReport]
    plan: Plan | None = None


class Structure(Protocol):
    """Turns a round's unstructured mask into one that hardware can use. Pure: nothing given is changed.

    A class of one's own inherits from this one and has at least `__call__`.
    """

    @property
    def needs_gradients(self) -> bool:
        """Whether `StructureInput.gradients` must be there."""
        return False

    @property
    def needs_batches(self) -> bool:
        """Whether `StructureInput.batches` must be there."""
        return False

    def check(self, traced: TracedNetwork) -> None:
        """Refuse a network that the structure cannot be applied to; called before any training.

        Args:
            traced: dense network.

        Raises:
            ValueError: naming the argument of the structure, or what of the network does not fit.
        """
        return

    def __call__(self, given: StructureInput) -> StructureResult:
        """Structure one round's mask."""


@dataclass(frozen=True)
class Unstructured(Structure):
    """Leaves every mask as it is; every layer is executed whole, since dense hardware can skip nothing."""

    def __call__(self, given: StructureInput) -> StructureResult:
        layers = {}
        for name, layer in given.layers.items():
            mask = given.masks.get(layer.weight)
            kept = layer.size if mask is None else count_kept(mask)
            form: Form = "dense" if kept == layer.size else "unstructured"
            layers[name] = LayerReport(layer.size, kept, kept, layer.size, layer.positions, form)
        return StructureResult({name: mask.clone() for name, mask in given.masks.items()}, layers)


def retained_magnitude(weight: Tensor, before: Tensor, after: Tensor) -> float:
    """Return the share of the magnitude surviving in the mask `before` that `after` keeps; 1 if none survives."""
    total = retained = 0.0
    for values, old, new in in_pieces(weight, before, after):
        magnitude = masked(values, old).double().abs_()
        total += float(magnitude.sum())
        retained += float(masked(magnitude, new).sum())
    return retained / total if total else 1.0


def in_pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield rows of tensors of one shape, side by side, as many at a time as stay in the cache."""
    rows, size = len(tensors[0]), tensors[0].numel()
    pieces = max(1, min(rows // 2, size // _CACHED))  # a row alone would be summed up in another order
    return zip(*(tensor.tensor_split(pieces) for tensor in tensors), strict=True)


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    """Return the weights, zero where the mask prunes."""
    return weight * mask.view(torch.uint8)  # which is converted several times faster than flags
