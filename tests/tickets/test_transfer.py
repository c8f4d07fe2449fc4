"""A ticket for a data set of other classes and image channels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lt_lightning.models.resnet import cifar_resnet
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.tickets.transfer import transfer

EXAMPLE = torch.zeros(1, 3, 12, 12)


def net(classes: int = 10, channels: int = 1, width: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return cifar_resnet(8, classes, channels, width)


def a_ticket(network: nn.Module, *names: str) -> Ticket:
    generator = torch.Generator().manual_seed(7)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    masks = {name: torch.rand(state[name].shape, generator=generator) < 0.5 for name in names}
    trained = {name: value + 1 for name, value in state.items()}
    return Ticket(masks, state, trained, card={"round": 2})


INNER = "stages.0.0.conv1.weight"


def test_other_classes_and_channels_replace_the_ends_alone() -> None:
    ticket, target = a_ticket(net(), INNER), net(classes=7, channels=3, seed=1)
    moved = transfer(ticket, target, EXAMPLE, other_classes=True)
    assert moved.replaced == ["stem.conv.weight", "classifier.weight", "classifier.bias"]
    own = target.state_dict()
    assert moved.ticket.trained is not None
    assert ticket.trained is not None
    for name, value in own.items():
        new = name in moved.replaced
        assert torch.equal(moved.ticket.rewind[name], value if new else ticket.rewind[name])
        assert torch.equal(moved.ticket.trained[name], value if new else ticket.trained[name])
    assert torch.equal(moved.ticket.masks[INNER], ticket.masks[INNER])
    moved.ticket.apply(target)  # the ticket is the network's now
    assert target(torch.zeros(2, 3, 12, 12)).shape == (2, 7)


def test_other_classes_have_a_classifier_of_their_own_also_if_there_are_as_many() -> None:
    ticket, target = a_ticket(net(), INNER, "classifier.weight"), net(seed=1)
    moved = transfer(ticket, target, torch.zeros(1, 1, 9, 9), other_classes=True)
    assert moved.replaced == ["classifier.weight", "classifier.bias"]
    for name, value in target.state_dict().items():
        assert torch.equal(moved.ticket.rewind[name], value if name in moved.replaced else ticket.rewind[name])
    assert torch.equal(moved.ticket.masks[INNER], ticket.masks[INNER])
    rows = moved.ticket.masks["classifier.weight"]
    assert rows.tolist() == [ticket.masks["classifier.weight"].any(0).tolist()] * 10


def test_the_same_classes_and_shapes_change_nothing() -> None:
    ticket = a_ticket(net(), INNER, "classifier.weight")
    moved = transfer(ticket, net(seed=1), torch.zeros(1, 1, 9, 9), other_classes=False)
    assert moved.replaced == []
    for mine, theirs in ((moved.ticket.rewind, ticket.rewind), (moved.ticket.masks, ticket.masks)):
        assert {name: value.tolist() for name, value in mine.items()} == {
            name: value.tolist() for name, value in theirs.items()
        }


def test_masks_of_replaced_layers_keep_what_any_class_or_channel_kept() -> None:
    ticket = a_ticket(net(classes=2, channels=2), "classifier.weight", "stem.conv.weight")
    moved = transfer(ticket, net(classes=5, channels=3), EXAMPLE, other_classes=True).ticket.masks
    was = ticket.masks["classifier.weight"]
    assert not was.any(0).all()  # something is to be seen
    assert moved["classifier.weight"].tolist() == [(was[0] | was[1]).tolist()] * 5
    stem: Tensor = ticket.masks["stem.conv.weight"]
    for channel in range(3):
        assert torch.equal(moved["stem.conv.weight"][:, channel], stem[:, 0] | stem[:, 1])


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (cifar_resnet(14, 10, 3, 4), "stages.0.1.bn1.bias"),
        (cifar_resnet(8, 10, 3, 8), "stem.conv.weight"),
        (nn.Conv2d(3, 2, 3), "classifier.weight"),
    ],
    ids=["deeper", "wider", "another"],
)
def test_another_network_is_refused(network: nn.Module, named: str) -> None:
    with pytest.raises(ValueError, match=type(network).__name__) as caught:
        transfer(a_ticket(net(channels=3), INNER), network, EXAMPLE, other_classes=True)
    assert named in str(caught.value)
