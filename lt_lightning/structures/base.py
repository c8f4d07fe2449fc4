"""The mask as it is: nothing that dense hardware could skip."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from lt_lightning.network_graph.graph import ChannelGraph, TracedNetwork
from lt_lightning.pruning.layers import Layer as Layer
from lt_lightning.pruning.masks import Masks, count_kept

Batches = Callable[[int], Sequence[tuple[Tensor, Tensor]]]
Granularity = Literal["kernel_position", "input_channel"]
Form = Literal["channels", "blocks", "dense", "unstructured"]

_BLOCK = 1 << 18  # weights


@dataclass(frozen=True)
class StructureInput:
    """A network at the moment a structure looks at it.

    Attributes:
        anatomy: of the network; structures read its graph, never its values.
        masks: this round's mask of every prunable weight, by parameter name, on the CPU.
        weights: the trained value of every parameter, by name, on the CPU; of every buffer, too, where `batches` are
            looked at.
        gradients: gradients of the loss summed over a few batches, by name; only if `needs_gradients`.
        batches: gives that many training batches (inputs, targets), the same at every call; None where there are none.
    """

    traced: TracedNetwork
    masks: Masks
    weights: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor] | None = None
    batches: Batches | None = None

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
        """The layers whose weight has a mask, in the order of the network."""
        return [layer for layer in self.layers.values() if layer.weight in self.masks]


@dataclass(frozen=True)
class Block:
    """A dense rectangle of a layer's weight matrix: every row with every column.

    Attributes:
        rows: output channels, int64.
        columns: int64, ascending; input channels for the granularity `input_channel`, indices into the flattened
            (inputs x kernel) axis of one filter for `kernel_position`.
    """

    rows: Tensor
    columns: Tensor


@dataclass(frozen=True)
class BlockPlan:
    """Layers computed block by block; a layer that is not named runs dense.

    Blocks of a layer may share rows (their results are added up) but never a weight.
    """

    granularity: Granularity
    blocks: Mapping[str, Sequence[Block]]


@dataclass(frozen=True)
class ChannelPlan:
    """Layers computed on fewer channels; a layer that is not named runs whole.

    Attributes:
        outputs: kept output channels by layer (convolution, linear) or normalisation name, int64, ascending.
        inputs: input channels that are read, by layer name, int64, ascending.
    """

    outputs: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]


@dataclass(frozen=True)
class NMPlan:
    """Layers of which every filter keeps n of each m consecutive inputs; which ones, the masks say.

    Attributes:
        n: kept.
        m: of so many.
        layers: linear layers and 1x1 convolutions that may be computed so; a layer that is not named runs whole.
    """

    n: int
    m: int
    layers: tuple[str, ...]

    def __post_init__(self) -> None:
        if type(self.n) is not int or type(self.m) is not int or not 1 <= self.n < self.m:
            raise ValueError(f"a plan of {self.n!r}:{self.m!r}: must be whole numbers, n at least 1 and below m")


Plan = BlockPlan | ChannelPlan | NMPlan


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        size: weights of the layer.
        asked: weights that the round's unstructured mask keeps.
        kept: weights that the ticket keeps (its mask).
        executed: weights that take part in the computation when the plan is executed, padding counted.
        positions: output positions of one sample; `executed * positions` multiply-adds.
        form: how the layer is executed; `dense` and `unstructured` layers are not structured.
        held: share of the unstructured mask's surviving magnitude that the ticket keeps, in [0, 1].
        note: why a layer fell back, or what is particular about it; empty where nothing is.
    """

    size: int
    asked: int
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
    """A structure's result.

    Attributes:
        masks: every prunable weight's mask, and that of any other parameter which is not kept whole
            (BatchNorm affine and biases of dropped channels, stem filters, classifier inputs).
        layers: a report for every layer of the subject, by name.
        plan: how to execute it; None if nothing can be skipped.
    """

    masks: Masks
    layers: Mapping[str, LayerReport]
    plan: Plan | None = field(default=None)


class Structure(Protocol):
    """Turns a round's unstructured mask into one that hardware can use. Pure: nothing given is changed."""

    @property
    def needs_gradients(self) -> bool:
        """Whether `StructureInput.gradients` must be there."""

    @property
    def needs_batches(self) -> bool:
        """Whether `StructureInput.batches` must be there: the training's own images are looked at."""

    def check(self, network: nn.Module, example: Tensor) -> None:
        """Raises ValueError if the structure cannot be applied to this network; called before any training."""

    def __call__(self, given: StructureInput) -> StructureResult: ...


def retained_magnitude(weight: Tensor, before: Tensor, after: Tensor) -> float:
    """Share of the magnitude surviving in the mask `before` that the mask `after` keeps; 1 if none survives."""
    total = held = 0.0
    for values, old, new in in_blocks(weight, before, after):
        magnitude = masked(values, old).double().abs_()
        total += float(magnitude.sum())
        held += float(masked(magnitude, new).sum())
    return held / total if total else 1.0


def in_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of tensors of one shape, side by side, as many at a time as stay in the cache (2 MiB as float64)."""
    rows, size = len(tensors[0]), tensors[0].numel()
    blocks = max(1, min(rows // 2, size // _BLOCK))  # a row alone would be summed up in another order
    return zip(*(tensor.tensor_split(blocks) for tensor in tensors), strict=True)


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    """The weights, zero where the mask prunes."""
    return weight * mask.view(torch.uint8)  # which is converted several times faster than flags


# The mask as it is: nothing that dense hardware could skip.


@dataclass(frozen=True)
class Unstructured:
    """Leaves every mask as it is; every layer is executed whole."""

    needs_gradients: ClassVar[bool] = False
    needs_batches: ClassVar[bool] = False

    def check(self, network: nn.Module, example: Tensor) -> None:
        """Any network will do."""

    def __call__(self, given: StructureInput) -> StructureResult:
        layers = {}
        for name, layer in given.layers.items():
            mask = given.masks.get(layer.weight)
            asked = layer.size if mask is None else count_kept(mask)
            form: Form = "dense" if asked == layer.size else "unstructured"
            layers[name] = LayerReport(layer.size, asked, asked, layer.size, layer.positions, form)
        return StructureResult({name: mask.clone() for name, mask in given.masks.items()}, layers)
