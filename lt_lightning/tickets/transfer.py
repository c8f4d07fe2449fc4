"""Transfer of a ticket to the same network for another data set: other classes, other image channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from lt_lightning.pruning.layers import find_layers
from lt_lightning.pruning.masks import Masks
from lt_lightning.tickets.ticket import Ticket

CLASSES, IMAGE_CHANNELS = 0, 1  # dimensions of the weights at a network's ends


@dataclass(frozen=True)
class Transferred:
    """A ticket for the new network.

    Attributes:
        ticket: ticket whose values to restart from and trained ones fit the network.
        replaced: parameters at the network's ends that have the network's own values.
    """

    ticket: Ticket
    replaced: list[str]


def transfer(ticket: Ticket, network: nn.Module, example: Tensor, other_classes: bool) -> Transferred:
    """Fit an unstructured ticket to a network that differs in its classes and image channels.

    The classifier is initialised anew if the classes are others, also if there are as many, and the stem if the number
    of the image's channels differs; everything else keeps its mask and its values: those to restart from, and the
    trained ones, by which a structure scores. A mask of a layer that is initialised anew keeps a classifier's input if
    it was kept for any class, and a stem's filter weight if it was kept for any image channel. (Morcos et al. 2019,
    "One ticket to win them all", transfer masks and early values likewise.)

    Args:
        ticket: ticket without a plan; it is structured after the transfer.
        network: network whose values replace those that do not fit; it is left alone.
        example: input batch of the true shape.
        other_classes: whether the network's classes are others than those of the ticket's data set.

    Raises:
        ValueError: if the network differs in more, naming the parameters; or if the ticket has a plan.
    """
    if ticket.plan is not None:
        raise ValueError("an unstructured ticket is transferred, and structured then: this one has a plan")
    own = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
    ends = _ends(network, example)
    differing = _differing(own, ticket.rewind, ends, network)
    replaced = [name for name in own if name in differing or (other_classes and ends.get(name) == CLASSES)]
    fresh = {name: own[name] for name in replaced}
    masks: Masks = {
        name: mask.any(ends[name], keepdim=True).expand(own[name].shape).clone() if name in fresh else mask
        for name, mask in ticket.masks.items()
    }
    trained = None if ticket.trained is None else {**ticket.trained, **fresh}
    return Transferred(replace(ticket, masks=masks, rewind={**ticket.rewind, **fresh}, trained=trained), replaced)


def _differing(
    own: Mapping[str, Tensor], values: Mapping[str, Tensor], ends: Mapping[str, int], network: nn.Module
) -> list[str]:
    """Return the parameters of other shapes, if they differ at the network's ends alone."""
    differing = [name for name, value in own.items() if name in values and value.shape != values[name].shape]
    odd = sorted(set(own) ^ set(values))
    odd += [name for name in differing if not _differ_in(own[name], values[name], ends.get(name))]
    if odd:
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise ValueError(
            f"the ticket is for another network than {type(network).__name__}, not only for other classes or image "
            f"channels: {', '.join(odd[:3])}{more}"
        )
    return differing


def _ends(network: nn.Module, example: Tensor) -> dict[str, int]:
    """Return the parameters of stem and classifier, with the dimension in which each may have another size."""
    layers = find_layers(network, example).values()
    stem = {layer.weight: IMAGE_CHANNELS for layer in layers if "stem" in layer.roles}
    classifier = [layer.name for layer in layers if "classifier" in layer.roles]
    return stem | {f"{name}.{part}": CLASSES for name in classifier for part in ("weight", "bias")}


def _differ_in(one: Tensor, other: Tensor, dimension: int | None) -> bool:
    """Return whether the shapes differ in that dimension alone."""
    if one.dim() != other.dim():
        return False
    return [i for i, (a, b) in enumerate(zip(one.shape, other.shape, strict=True)) if a != b] == [dimension]
