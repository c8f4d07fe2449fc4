"""A ticket taken to the same network for another data set: other classes, other image channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from lt_lightning.pruning.layers import find_layers
from lt_lightning.pruning.masks import Masks
from lt_lightning.ticket import Ticket


@dataclass(frozen=True)
class Transferred:
    """A ticket for the new network.

    Attributes:
        ticket: untrained weights and trained ones both fit the network.
        replaced: parameters whose shape another data set changes; they have the network's own initial values.
    """

    ticket: Ticket
    replaced: list[str]


def transfer(ticket: Ticket, network: nn.Module, example: Tensor) -> Transferred:
    """Fits an unstructured ticket to a network that differs in its classes and image channels alone.

    The classifier is initialised anew if the number of classes differs, the stem if that of the image's channels does;
    everything else keeps its mask and its values: those to restart from, and the trained ones, by which a structure
    scores. A mask of a layer that is initialised anew keeps a classifier's input if it was kept for any class, and a
    stem's filter weight if it was kept for any image channel. (Morcos et al. 2019, "One ticket to win them all",
    transfer masks and early values likewise.)

    Args:
        ticket: without a plan; structures are applied after it.
        network: freshly initialised; its values are left alone.
        example: an input batch of the true shape.

    Raises:
        ValueError: if the network differs elsewhere; names the parameters.
    """
    if ticket.plan is not None:
        raise ValueError("an unstructured ticket is transferred, and structured then: this one has a plan")
    own = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
    replaced = _replaced(own, ticket.rewind, network, example)
    fresh = {name: own[name] for name in replaced}
    masks: Masks = {name: _fitted(mask, own[name]) for name, mask in ticket.masks.items()}
    trained = None if ticket.trained is None else {**ticket.trained, **fresh}
    return Transferred(replace(ticket, masks=masks, rewind={**ticket.rewind, **fresh}, trained=trained), replaced)


def _replaced(
    own: Mapping[str, Tensor], values: Mapping[str, Tensor], network: nn.Module, example: Tensor
) -> list[str]:
    """Parameters of another shape, if no more than the ends of the network differ."""
    odd = sorted(set(own) ^ set(values))
    layers = {} if odd else find_layers(network, example)
    stem = [layer.weight for layer in layers.values() if "stem" in layer.roles]
    classifier = [layer.name for layer in layers.values() if "classifier" in layer.roles]
    allowed: dict[str, int] = dict.fromkeys(stem, 1)  # the dimension in which it may differ
    allowed |= {f"{name}.{part}": 0 for name in classifier for part in ("weight", "bias")}
    differing = [name for name in own if name in values and own[name].shape != values[name].shape]
    odd += [name for name in differing if not _differ_in(own[name], values[name], allowed.get(name))]
    if odd:
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise ValueError(
            f"the ticket is for another network than {type(network).__name__}, not only for other classes or image "
            f"channels: {', '.join(odd[:3])}{more}"
        )
    return differing


def _differ_in(one: Tensor, other: Tensor, dimension: int | None) -> bool:
    """Whether the shapes differ in that dimension alone."""
    if dimension is None or one.dim() != other.dim():
        return False
    return [i for i, (a, b) in enumerate(zip(one.shape, other.shape, strict=True)) if a != b] == [dimension]


def _fitted(mask: Tensor, value: Tensor) -> Tensor:
    """The mask for a value that may have another size in one dimension."""
    for dimension, (was, wanted) in enumerate(zip(mask.shape, value.shape, strict=True)):
        if was != wanted:
            mask = mask.any(dimension, keepdim=True).expand(value.shape).clone()
    return mask
