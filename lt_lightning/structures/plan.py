"""The plan of a structured ticket: which part of each layer is computed, and its JSON values in files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lt_lightning.pruning.layers import weight_of

Granularity = Literal["kernel_position", "input_channel"]


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
    """Layers of which every filter keeps n of each m consecutive inputs; the masks say which ones.

    Attributes:
        n: number of weights kept of each m.
        m: number of consecutive inputs.
        layers: linear layers and 1x1 convolutions that may be computed so; a layer that is not named runs whole.

    Raises:
        ValueError: unless n and m are whole numbers with 1 <= n < m.
    """

    n: int
    m: int
    layers: tuple[str, ...]

    def __post_init__(self) -> None:
        if type(self.n) is not int or type(self.m) is not int or not 1 <= self.n < self.m:
            raise ValueError(f"n={self.n!r}, m={self.m!r}: must be whole numbers, n at least 1 and below m")


@dataclass(frozen=True)
class HybridPlan:
    """Layers computed on fewer channels, and some of them, in the network that is left, block by block.

    Attributes:
        channels: what is left of the full network.
        blocks: blocks of the network that is left: their rows and columns count the channels that are there.
    """

    channels: ChannelPlan
    blocks: BlockPlan


Plan = BlockPlan | ChannelPlan | NMPlan | HybridPlan


def blocks_in_full(plan: HybridPlan, shapes: Mapping[str, Sequence[int]]) -> BlockPlan:
    """Return the blocks of a hybrid plan, with the rows and columns that they have in the full network.

    Args:
        plan: the plan.
        shapes: shape of every parameter of the full network, by name.

    >>> channels = ChannelPlan({"conv": torch.tensor([1, 3])}, {"conv": torch.tensor([2, 5])})
    >>> plan = HybridPlan(channels, BlockPlan("input_channel", {"conv": [Block(torch.tensor([1]), torch.tensor([0]))]}))
    >>> blocks_in_full(plan, {"conv.weight": (4, 6, 3, 3)}).blocks["conv"]
    [Block(rows=tensor([3]), columns=tensor([2]))]
    """
    found: dict[str, Sequence[Block]] = {}
    for name, blocks in plan.blocks.blocks.items():
        outputs, inputs, *kernel = shapes[weight_of(name, shapes)]
        rows = plan.channels.outputs.get(name, torch.arange(outputs))
        columns = plan.channels.inputs.get(name, torch.arange(inputs))
        if plan.blocks.granularity == "kernel_position":
            positions = math.prod(kernel)
            columns = (columns[:, None] * positions + torch.arange(positions)).flatten()
        found[name] = [Block(rows[block.rows], columns[block.columns]) for block in blocks]
    return BlockPlan(plan.blocks.granularity, found)


def shapes_left(plan: ChannelPlan, shapes: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """Return the shapes of the parameters of which a plan leaves some channels."""
    left = dict(shapes)
    for name in plan.outputs.keys() | plan.inputs.keys():
        weight = weight_of(name, shapes)
        if len(shapes.get(weight, ())) > 1:
            sides = (plan.outputs.get(name), plan.inputs.get(name))
            ends = [size if kept is None else len(kept) for size, kept in zip(shapes[weight], sides, strict=False)]
            left[weight] = [*ends, *shapes[weight][2:]]
    return left


def block_mask(blocks: Sequence[Block], shape: Sequence[int], granularity: Granularity) -> Tensor:
    """Return the mask that keeps the blocks of a weight, in its shape."""
    columns = shape[1] if granularity == "input_channel" else math.prod(shape[1:])
    inside = torch.zeros(shape[0], columns, dtype=torch.bool)
    for block in blocks:
        inside[block.rows[:, None], block.columns] = True
    return inside.repeat_interleave(math.prod(shape[1:]) // columns, dim=1).reshape(tuple(shape))


def masks_of_blocks(plan: BlockPlan, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return the mask that keeps the blocks of each layer's weight, by parameter name; shapes are those of weights."""
    weights = {name: weight_of(name, shapes) for name in plan.blocks}
    return {
        weights[name]: block_mask(blocks, shapes[weights[name]], plan.granularity)
        for name, blocks in plan.blocks.items()
    }


# As JSON values, for tickets and exported networks


def plan_to_json(plan: Plan | None) -> dict[str, Any] | None:
    """Return the plan as JSON values.

    >>> plan_to_json(BlockPlan("input_channel", {"conv": [Block(torch.tensor([0, 2]), torch.tensor([1]))]}))
    {'kind': 'blocks', 'granularity': 'input_channel', 'blocks': {'conv': [[[0, 2], [1]]]}}
    """
    match plan:
        case BlockPlan():
            blocks = {
                name: [[block.rows.tolist(), block.columns.tolist()] for block in of_layer]
                for name, of_layer in plan.blocks.items()
            }
            return {"kind": "blocks", "granularity": plan.granularity, "blocks": blocks}
        case ChannelPlan():
            return {"kind": "channels", "outputs": _lists(plan.outputs), "inputs": _lists(plan.inputs)}
        case NMPlan():
            return {"kind": "n_m", "n": plan.n, "m": plan.m, "layers": list(plan.layers)}
        case HybridPlan():
            return {"kind": "hybrid", "channels": plan_to_json(plan.channels), "blocks": plan_to_json(plan.blocks)}
        case None:
            return None


def plan_from_json(values: Mapping[str, Any] | None) -> Plan | None:
    """Return the plan that the values were made from.

    Raises:
        ValueError: if there is no such kind of plan, or its indices are not whole numbers.
    """
    match values:
        case None:
            return None
        case {"kind": "channels"}:
            return ChannelPlan(_tensors(values["outputs"]), _tensors(values["inputs"]))
        case {"kind": "n_m"}:
            return NMPlan(values["n"], values["m"], tuple(values["layers"]))
        case {"kind": "blocks", "granularity": granularity} if granularity in get_args(Granularity):
            blocks = {
                name: [Block(_indices(rows), _indices(columns)) for rows, columns in of_layer]
                for name, of_layer in values["blocks"].items()
            }
            return BlockPlan(granularity, blocks)
        case {"kind": "hybrid"}:
            channels, of_rest = plan_from_json(values["channels"]), plan_from_json(values["blocks"])
            if not isinstance(channels, ChannelPlan) or not isinstance(of_rest, BlockPlan):
                raise ValueError("a hybrid plan has a plan of channels and one of blocks")
            return HybridPlan(channels, of_rest)
        case _:
            kind, granularity = values.get("kind"), values.get("granularity")
            raise ValueError(f"there is no plan of the kind {kind!r} with the granularity {granularity!r}")


def _lists(sides: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: channels.tolist() for name, channels in sides.items()}


def _tensors(sides: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: _indices(channels) for name, channels in sides.items()}


def _indices(values: Any) -> Tensor:
    if not isinstance(values, list) or any(type(index) is not int for index in values):
        raise ValueError("the plan's indices are no lists of whole numbers")
    return torch.tensor(values, dtype=torch.int64)


# Beside the network that it is for


def check_plan(plan: Plan | None, shapes: Mapping[str, Sequence[int]]) -> None:
    """Look whether a network has what a plan names.

    Args:
        plan: plan to check.
        shapes: shape of every parameter of the network, by name.

    Raises:
        ValueError: if a channel or a layer is not there, or a layer has no blocks; names the layer.
    """
    if isinstance(plan, HybridPlan):
        check_plan(plan.channels, shapes)
        check_plan(plan.blocks, shapes_left(plan.channels, shapes))
        return
    for name in _named(plan):
        if weight_of(name, shapes) not in shapes and name not in shapes:  # a parameter of its own has no layer
            raise ValueError(f"the plan names {name!r}, which the network does not have")
    if isinstance(plan, BlockPlan) and (empty := [name for name, blocks in plan.blocks.items() if not blocks]):
        raise ValueError(f"the plan names {empty[0]!r} without any blocks")
    for name, limit, indices in _limits(plan, shapes):
        if len(indices) and (indices.min() < 0 or (limit is not None and indices.max() >= limit)):
            raise ValueError(f"the plan of {name} names channels that the layer does not have")


def _named(plan: BlockPlan | ChannelPlan | NMPlan | None) -> list[str]:
    """Return the names of the layers and normalisations that a plan is about."""
    match plan:
        case BlockPlan():
            return list(plan.blocks)
        case ChannelPlan():
            return [*plan.outputs, *plan.inputs]
        case NMPlan():
            return list(plan.layers)
        case None:
            return []


def _limits(
    plan: BlockPlan | ChannelPlan | NMPlan | None, shapes: Mapping[str, Sequence[int]]
) -> Iterator[tuple[str, int | None, Tensor]]:
    """Yield the lists of indices of a plan, with their layer and what the indices stay below, None if unknown."""

    def known(name: str, dimensions: slice) -> int | None:
        shape = shapes.get(weight_of(name, shapes))
        return None if shape is None else math.prod(shape[dimensions])

    if isinstance(plan, BlockPlan):
        columns = slice(1, 2) if plan.granularity == "input_channel" else slice(1, None)
        for name, blocks in plan.blocks.items():
            for block in blocks:
                yield name, known(name, slice(0, 1)), block.rows
                yield name, known(name, columns), block.columns
    elif isinstance(plan, ChannelPlan):
        for name, channels in plan.outputs.items():
            shape = shapes.get(f"{name}.weight")  # embeddings and transposed convolutions have their outputs second
            yield name, None if shape is None else max(shape[:2]), channels
        for name, channels in plan.inputs.items():
            yield name, known(name, slice(0, 2)), channels  # at most: a weight does not tell the number of groups
