"""Tickets: masks, the values to restart from, the trained weights, and a card that says what it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lt_lightning.files import replacing, write_json
from lt_lightning.pruning.masks import Masks, pack, unpack
from lt_lightning.structures.base import Block, BlockPlan, ChannelPlan, LayerReport, Plan

SCHEMA = 1
Values = Literal["rewind", "trained"]


@dataclass(frozen=True)
class Ticket:
    """A sparse sub-network that can be trained alone.

    All names are those of the network's parameters and buffers; all tensors are on the CPU.

    Attributes:
        masks: of every pruned parameter; what is not named is kept whole.
        rewind: the values that training restarts from: every parameter and buffer, before masking.
        trained: every parameter and buffer after training the ticket; None before.
        plan: how to execute the ticket; None if nothing can be skipped.
        layers: asked and achieved per layer.
        card: what was run: JSON values only (structure, round, density, data, metrics, ...).
    """

    masks: Masks
    rewind: Mapping[str, Tensor]
    trained: Mapping[str, Tensor] | None = None
    plan: Plan | None = None
    layers: Mapping[str, LayerReport] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)

    # Using

    def apply(self, network: nn.Module, values: Values = "rewind") -> nn.Module:
        """Puts the ticket's values into a network, in place, pruned weights at zero.

        Args:
            network: any module with the ticket's parameters and buffers.
            values: the values that training restarts from (`rewind`), or those after training (`trained`).

        Returns:
            the network.

        Raises:
            ValueError: if the network has other parameters, named in the message, or the ticket was not trained.
        """
        state = self.rewind if values == "rewind" else self.trained
        if state is None:
            raise ValueError("the ticket holds no trained weights: it was not trained yet")
        _check_fit(network, state)
        network.load_state_dict(dict(state))
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name in self.masks:
                    parameter.mul_(self.masks[name].to(parameter.device))
        return network

    def with_training(self, trained: Mapping[str, Tensor], **facts: Any) -> Ticket:
        """The ticket with its trained weights, and further facts on its card."""
        return replace(self, trained=trained, card={**self.card, **facts})

    # On disk

    def save(self, path: Path | str) -> None:
        """Writes `path` (safetensors; everything) and beside it the card as JSON, for people to read.

        The file is whole or not there. A digest over all tensors and the card is part of it.
        """
        path = _with_suffix(path)
        tensors = self._tensors()
        card = json.loads(json.dumps(self._full_card()))  # as it will be read, so that the digests agree
        card["digest"] = _digest(tensors, card)
        with replacing(path) as partial:
            save_file(tensors, partial, metadata={"card": json.dumps(card)})
        write_json(path.with_suffix(".json"), {**card, "layers": self._readable_layers()})

    @classmethod
    def load(cls, path: Path | str) -> Ticket:
        """Reads a ticket. Never executes code.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if the file is truncated, altered, no ticket, or of a newer schema; the message names it.
        """
        path = _with_suffix(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no ticket at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                card = json.loads((file.metadata() or {})["card"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise ValueError(f"{path} is damaged or no ticket: {error}") from None
        return cls._from_parts(path, tensors, card)

    @classmethod
    def _from_parts(cls, path: Path, tensors: dict[str, Tensor], card: Any) -> Ticket:
        if not isinstance(card, dict) or not isinstance(card.get("schema"), int):
            raise ValueError(f"{path} is no ticket: its card has no schema version")
        if card["schema"] > SCHEMA:
            raise ValueError(f"{path} has the schema {card['schema']}; this version reads up to {SCHEMA}: upgrade")
        if card.pop("digest", None) != _digest(tensors, card):
            raise ValueError(f"{path} is damaged or was altered: its content does not match its digest")
        parts = _by_part(tensors)
        masks = {name: unpack(parts["mask"][name], tuple(shape)) for name, shape in card.pop("shapes").items()}
        layers = {name: LayerReport(**report) for name, report in card.pop("layers").items()}
        plan = _plan_from(card.pop("plan"), parts["plan"])
        del card["schema"]
        return cls(masks, parts["rewind"], parts["trained"] or None, plan, layers, card)

    def _tensors(self) -> dict[str, Tensor]:
        # Copies, since safetensors refuses tensors that share memory (tied weights).
        tensors = {f"mask/{name}": pack(mask) for name, mask in self.masks.items()}
        tensors |= {f"rewind/{name}": value.cpu().contiguous().clone() for name, value in self.rewind.items()}
        tensors |= {f"trained/{name}": v.cpu().contiguous().clone() for name, v in (self.trained or {}).items()}
        return tensors | {f"plan/{name}": value for name, value in _plan_tensors(self.plan).items()}

    def _readable_layers(self) -> dict[str, Any]:
        return {
            name: {"density_asked": report.asked / report.size, "density": report.density, **asdict(report)}
            for name, report in self.layers.items()
        }

    def _full_card(self) -> dict[str, Any]:
        return {
            **self.card,
            "schema": SCHEMA,
            "plan": _plan_card(self.plan),
            "shapes": {name: list(mask.shape) for name, mask in self.masks.items()},
            "layers": {name: asdict(report) for name, report in self.layers.items()},
        }


def _with_suffix(path: Path | str) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")


def _digest(tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> str:
    sha = hashlib.sha256(json.dumps(card, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        sha.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _by_part(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {"mask": {}, "rewind": {}, "trained": {}, "plan": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    return parts


def _plan_card(plan: Plan | None) -> dict[str, Any] | None:
    match plan:
        case BlockPlan():
            counts = {name: len(blocks) for name, blocks in plan.blocks.items()}
            return {"kind": "blocks", "grain": plan.grain, "blocks": counts}
        case ChannelPlan():
            return {"kind": "channels"}
        case None:
            return None


def _plan_tensors(plan: Plan | None) -> dict[str, Tensor]:
    match plan:
        case BlockPlan():
            return {
                f"{name}/{index}/{side}": getattr(block, side).to(torch.int32).contiguous()
                for name, blocks in plan.blocks.items()
                for index, block in enumerate(blocks)
                for side in ("rows", "columns")
            }
        case ChannelPlan():
            return {
                f"{name}/{side}": channels.to(torch.int32)
                for side in ("outputs", "inputs")
                for name, channels in getattr(plan, side).items()
            }
        case None:
            return {}


def _plan_from(card: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> Plan | None:
    if card is None:
        return None
    if card["kind"] == "channels":
        sides: dict[str, dict[str, Tensor]] = {"outputs": {}, "inputs": {}}
        for key, channels in tensors.items():
            name, _, side = key.rpartition("/")
            sides[side][name] = channels.long()
        return ChannelPlan(**sides)
    blocks = {
        name: [
            Block(tensors[f"{name}/{index}/rows"].long(), tensors[f"{name}/{index}/columns"].long())
            for index in range(count)
        ]
        for name, count in card["blocks"].items()
    }
    return BlockPlan(card["grain"], blocks)


def _check_fit(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = network.state_dict()
    missing = sorted(set(own) - set(state))
    extra = sorted(set(state) - set(own))
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    faults = [("misses", missing), ("has besides", extra), ("has in another shape", misshapen)]
    told = [f"{what} {_first(names)}" for what, names in faults if names]
    if told:
        raise ValueError(f"the ticket is for another network than {type(network).__name__}: it {'; it '.join(told)}")


def _first(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
