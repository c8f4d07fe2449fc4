"""The executed network beside the masked one: equal however random training is, and the first layer that differs."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lt_lightning.execution.shrink_channels import shrink_channels
from lt_lightning.models.resnet import cifar_resnet
from lt_lightning.network_graph.compare import DifferentError, SameForAllShapes, compare_networks, difference, tolerance
from lt_lightning.structures.plan import ChannelPlan

KEPT = torch.tensor([0, 2, 3, 5, 6])


class DropPath(nn.Module):
    """Stochastic depth, by each of the ways in which libraries write it."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x * self.draw(x) if self.training else x


class Net(nn.Module):
    """Two convolutions with something random, or not, between them."""

    def __init__(self, middle: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.first, self.middle, self.second = nn.Conv2d(3, width, 3), middle, nn.Conv2d(width, 6, 3)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.second(self.middle(F.relu(self.first(x))))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def masked_and_narrow(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> tuple[Net, Net]:
    """A network of which some channels are zero, and the one that does not have them, made by hand."""
    torch.manual_seed(0)
    masked, narrow = Net(make()).to(dtype), Net(make(), len(KEPT)).to(dtype)
    dropped = torch.tensor([channel for channel in range(8) if channel not in KEPT.tolist()])
    state = {name: value.clone() for name, value in masked.state_dict().items()}
    with torch.no_grad():
        for part in ("first.weight", "first.bias"):
            masked.get_parameter(part)[dropped] = 0
    state["first.weight"], state["first.bias"] = state["first.weight"][KEPT], state["first.bias"][KEPT]
    state["second.weight"] = state["second.weight"][:, KEPT]
    narrow.load_state_dict(state)
    return masked, narrow


RANDOM: dict[str, Callable[[], nn.Module]] = {
    "nothing": nn.Identity,
    "dropout": lambda: nn.Dropout(0.3),
    "dropout2d": lambda: nn.Dropout2d(0.5, inplace=True),
    "alpha dropout": lambda: nn.AlphaDropout(0.2),
    "rrelu": nn.RReLU,
    "rand": lambda: DropPath(lambda x: (torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype) < 0.5) * 2),
    "floor of rand": lambda: DropPath(lambda x: (0.8 + torch.rand(len(x), 1, 1, 1, dtype=x.dtype)).floor() / 0.8),
    "bernoulli_": lambda: DropPath(lambda x: torch.empty_like(x[:, :1]).bernoulli_(0.7)),
    "bernoulli of probabilities": lambda: DropPath(lambda x: torch.bernoulli(torch.full_like(x, 0.6))),
    "binomial": lambda: DropPath(lambda x: torch.bernoulli(torch.full_like(x, 0.6), p=0.9)),
    "noise of every channel": lambda: DropPath(lambda x: 1 + torch.randn_like(x) / 4),
    "uniform": lambda: DropPath(lambda x: torch.empty_like(x).uniform_(1, 2)),
    "normal": lambda: DropPath(lambda x: torch.empty_like(x).normal_(1, 0.1)),
    "whole numbers": lambda: DropPath(lambda x: torch.randint(1, 3, x.shape).to(x.dtype)),
    "order of samples": lambda: DropPath(lambda x: x.detach()[torch.randperm(len(x))]),
    "Python": lambda: DropPath(lambda x: torch.full_like(x, random.random())),
    "NumPy": lambda: DropPath(lambda x: torch.full_like(x, float(np.random.rand()))),
}


@pytest.mark.parametrize("kind", RANDOM)
def test_random_layers_are_equal_whatever_the_width(kind: str) -> None:
    for dtype in (torch.float64, torch.float32):
        masked, narrow = masked_and_narrow(RANDOM[kind], dtype)
        compare_networks(masked, narrow, torch.zeros(1, 3, 8, 8, dtype=dtype))
    with torch.no_grad():
        narrow.second.weight[0, 0, 0, 0] += 1  # what is wrong is seen beside what is random
    with pytest.raises(DifferentError, match=r"in evaluation.* second"):
        compare_networks(masked, narrow, torch.zeros(1, 3, 8, 8))


def test_what_differs_in_training_alone_is_seen() -> None:
    masked, narrow = masked_and_narrow(lambda: DropPath(lambda x: torch.full_like(x, 2)))
    compare_networks(masked, narrow, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    narrow.middle = nn.Identity()
    with pytest.raises(DifferentError, match=r"in training.* second"):
        compare_networks(masked, narrow, torch.zeros(1, 3, 8, 8, dtype=torch.float64))


def test_a_dropout_of_nearly_everything_hides_nothing() -> None:
    masked, narrow = masked_and_narrow(lambda: nn.Dropout(0.9))
    compare_networks(masked, narrow, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    narrow.middle = nn.Dropout(0.8)
    with pytest.raises(DifferentError, match=r"in training.* second"):
        compare_networks(masked, narrow, torch.zeros(1, 3, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize("quarter", range(5))
def test_the_first_layer_that_differs_is_named(quarter: int) -> None:
    torch.manual_seed(0)
    network = cifar_resnet(8, 10, width=8)
    names = [name for name, module in network.named_modules() if module._parameters]
    layer = names[(len(names) - 1) * quarter // 4]
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.get_submodule(layer).get_parameter("weight").mul_(1.5)
    with pytest.raises(DifferentError, match=f"first in {layer}:"):
        compare_networks(network, other, torch.zeros(1, 3, 8, 8))
    compare_networks(network, copy.deepcopy(network), torch.zeros(1, 3, 8, 8))


def test_rounding_is_no_difference() -> None:
    """In float32 a network of 50 layers and its shrunk one differ by rounding alone, batch normalisation included."""
    torch.manual_seed(0)
    network = cifar_resnet(50, 10, width=4)
    convolutions = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    example = torch.zeros(1, 3, 8, 8)
    compare_networks(network, shrink_channels(network, ChannelPlan({}, {}), example).network, example)
    noisy = copy.deepcopy(network)
    with torch.no_grad():
        for name in convolutions:
            noisy.get_parameter(f"{name}.weight").mul_(1 + 1e-7 * torch.randn(1).sign())
    compare_networks(network, noisy, example)


def test_networks_and_generators_are_left_as_they_were() -> None:
    masked, narrow = masked_and_narrow(lambda: nn.Dropout(0.3))
    masked.middle.eval()
    before = [{name: value.clone() for name, value in net.state_dict().items()} for net in (masked, narrow)]
    states = torch.get_rng_state(), random.getstate(), pickle.dumps(np.random.get_state())
    compare_networks(masked, narrow, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    for net, state in zip((masked, narrow), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
        assert not any(module._forward_hooks for module in net.modules())
    assert [masked.training, masked.middle.training, narrow.middle.training] == [True, False, True]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), pickle.dumps(np.random.get_state())) == states[1:]


class Words(nn.Module):
    """Words and a mask by name, to several results."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, words: Tensor, weights: Tensor, double: bool = False) -> dict[str, object]:
        x = (self.embed(words) * weights.unsqueeze(-1)).sum(1) * (2 if double else 1)
        return {"logits": self.head(x), "more": [x, (None, x + 1)]}


@pytest.mark.parametrize("named", [True, False])
def test_inputs_and_results_of_several_tensors(named: bool) -> None:
    torch.manual_seed(0)
    one = Words()
    example: Mapping[str, object] = {"words": torch.tensor([[4, 1, 2]]), "weights": torch.rand(1, 3), "double": True}
    given = example if named else tuple(example.values())
    compare_networks(one, copy.deepcopy(one), given)
    other = copy.deepcopy(one)
    with torch.no_grad():
        other.embed.weight[4] += 1
    with pytest.raises(DifferentError, match="first in embed"):
        compare_networks(one, other, given)


class Size(nn.Module):
    """A module whose result is a number."""

    def forward(self, x: Tensor) -> Tensor:
        return x.square().sum()


def test_the_first_difference_is_found_beside_results_of_any_shape() -> None:
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(4, 3), nn.Flatten(0), nn.Unflatten(0, (-1, 3)), nn.Linear(3, 2), Size())
    other = copy.deepcopy(one)
    with torch.no_grad():
        other.get_parameter("3.weight").add_(1)
    with pytest.raises(DifferentError, match="first in 3"):
        compare_networks(one, other, torch.randn(2, 4))


def test_what_cannot_be_compared_is_told() -> None:
    class OneByOne(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, : 4 // (len(x) == 1)]

    class Refusing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("targets")

    compare_networks(OneByOne(), OneByOne(), torch.zeros(1, 4))
    with pytest.warns(UserWarning, match=r"in evaluation: KeyError.*targets"):
        compare_networks(Refusing(), Refusing(), torch.zeros(1, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare_networks(nn.Identity(), nn.Identity(), torch.zeros(1, 4))


def test_numbers_that_are_none_are_equal_only_to_their_like() -> None:
    nan, inf = float("nan"), float("inf")
    same = torch.tensor([1.0, nan, inf])
    assert difference([same], [same.clone()]) == 0
    assert difference([torch.tensor([1.0, nan, 2.0])], [same]) == inf
    assert difference([torch.tensor([1.5, nan, inf])], [same]) == 0.5
    assert difference([torch.zeros(2)], [torch.zeros(3)]) == difference([], [same]) == inf
    assert tolerance([torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1)]) == 3 * 0.0078125**0.5
    assert tolerance([torch.zeros(1, dtype=torch.int64)]) == 0


def test_attention_drops_the_same_with_fewer_heads() -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 4, 3, 8)
    with SameForAllShapes(), torch.no_grad():  # type: ignore[no-untyped-call]
        whole, part = (F.scaled_dot_product_attention(q, q, q, dropout_p=0.4) for q in (query, query[:, 2:]))
    torch.testing.assert_close(whole[:, 2:], part)
    assert bool(part.any())
