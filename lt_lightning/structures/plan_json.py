"""Plans as JSON values, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lt_lightning.structures.base import Block, BlockPlan, ChannelPlan, NMPlan, Plan


def plan_to_json(plan: Plan | None) -> dict[str, Any] | None:
    """The plan as JSON values.

    >>> plan_to_json(BlockPlan("input_channel", {"conv": [Block(torch.tensor([0, 2]), torch.tensor([1]))]}))
    {'kind': 'blocks', 'granularity': 'input_channel', 'blocks': {'conv': [[[0, 2], [1]]]}}
    """
    match plan:
        case BlockPlan():
            blocks = {
                name: [[b.rows.tolist(), b.columns.tolist()] for b in found] for name, found in plan.blocks.items()
            }
            return {"kind": "blocks", "granularity": plan.granularity, "blocks": blocks}
        case ChannelPlan():
            return {"kind": "channels", "outputs": _lists(plan.outputs), "inputs": _lists(plan.inputs)}
        case NMPlan():
            return {"kind": "n_m", "n": plan.n, "m": plan.m, "layers": list(plan.layers)}
        case None:
            return None


def plan_from_json(values: Mapping[str, Any] | None) -> Plan | None:
    """The plan that the values were made from.

    Raises:
        ValueError: if there is no such kind of plan.
    """
    match values:
        case None:
            return None
        case {"kind": "channels"}:
            return ChannelPlan(_tensors(values["outputs"]), _tensors(values["inputs"]))
        case {"kind": "n_m"}:
            return NMPlan(values["n"], values["m"], tuple(values["layers"]))
        case {"kind": "blocks"}:
            blocks = {
                name: [Block(_indices(rows), _indices(columns)) for rows, columns in found]
                for name, found in values["blocks"].items()
            }
            return BlockPlan(values["granularity"], blocks)
        case _:
            raise ValueError(f"there is no plan of the kind {values.get('kind')!r}: must be channels, blocks or n_m")


def _lists(sides: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: channels.tolist() for name, channels in sides.items()}


def _tensors(sides: Mapping[str, list[int]]) -> dict[str, Tensor]:
    return {name: _indices(channels) for name, channels in sides.items()}


def _indices(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)
