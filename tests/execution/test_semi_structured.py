"""2:4 tickets: dense and honest about it where no kernel is there; the kernels against the dense layers on CUDA."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lt_lightning.execution.execute import DENSE_FORM, execute, forms_of, swap_layers
from lt_lightning.execution.form_choice import choose_forms
from lt_lightning.execution.semi_structured import (
    SPARSE,
    SemiStructuredConv1x1,
    SemiStructuredLinear,
    by_matrix,
)
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.enforcement import EnforcedMasks
from lt_lightning.pruning.layers import find_layers, full_masks, prunable_layers
from lt_lightning.structures.base import StructureInput, StructureResult
from lt_lightning.structures.nm import NM
from lt_lightning.structures.plan import NMPlan, plan_from_json, plan_to_json
from lt_lightning.tickets.ticket import Ticket


def network_and_ticket() -> tuple[nn.Sequential, StructureResult]:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 128, 1, stride=2, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    example = torch.zeros(1, 3, 8, 8)
    layers = find_layers(network, example)
    masks = full_masks(prunable_layers(layers, ("stem", "classifier")))
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    ticket = NM()(StructureInput(TracedNetwork(network, example), masks, weights))
    EnforcedMasks(network, ticket.masks).zero_weights()
    return network, ticket


@pytest.mark.parametrize("training", [True, False])
def test_on_the_cpu_nothing_is_replaced(training: bool) -> None:
    network, ticket = network_and_ticket()
    assert ticket.plan == NMPlan(2, 4, ("2", "7"))
    example = torch.zeros(1, 3, 8, 8)
    choice = choose_forms(network, ticket.plan, example, 4, training)
    shrunk = execute(network, ticket.plan, ticket.masks, example, choice.forms)
    assert shrunk is not None
    assert shrunk.choice == {"2": DENSE_FORM, "7": DENSE_FORM}
    assert shrunk.masks.keys() == ticket.masks.keys()
    assert [type(module) for module in shrunk.network.children()] == [type(module) for module in network]
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(shrunk.network(images), network(images), rtol=0, atol=0)


def test_replaced_layers_keep_names_and_train_as_before() -> None:
    network, ticket = network_and_ticket()
    assert isinstance(ticket.plan, NMPlan)
    shrunk = swap_layers(network, ticket.plan, ticket.masks, {"2": SPARSE, "7": SPARSE})
    assert shrunk.choice == {"2": SPARSE, "7": SPARSE}
    kinds = [type(shrunk.network.get_submodule(name)) for name in ("2", "7")]
    assert kinds == [SemiStructuredConv1x1, SemiStructuredLinear]
    images = torch.randn(4, 3, 8, 8)
    expected, got = network(images), shrunk.network(images)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    for outputs in (got, expected):
        F.cross_entropy(outputs, torch.arange(4)).backward()  # type: ignore[no-untyped-call]
    for (name, first), (second_name, second) in zip(
        network.named_parameters(), shrunk.network.named_parameters(), strict=True
    ):
        assert name == second_name
        torch.testing.assert_close(second.grad, first.grad, rtol=0, atol=0)
    state = shrunk.slices.put(shrunk.network.state_dict(), network.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_1x1_convolution_is_a_product_with_a_matrix(stride: tuple[int, int], bias: bool) -> None:
    conv = nn.Conv2d(5, 7, 1, stride, bias=bias).double()
    x = torch.randn(3, 5, 6, 8, dtype=torch.float64)
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        got = by_matrix(images, conv.weight.flatten(1), conv.bias, stride)
        torch.testing.assert_close(got, conv(images))
        assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 1, padding=1),
        nn.Conv2d(64, 64, 1, groups=2),
        nn.Conv1d(64, 64, 1),
        nn.Linear(64, 10),  # the kernels take multiples of 32 outputs and 64 inputs
        nn.Linear(32, 64),
        nn.Conv2d(96, 64, 1),
    ],
)
def test_other_layers_have_no_such_form(layer: nn.Module) -> None:
    assert forms_of(layer, NMPlan(2, 4, ("",)), "") == {}


def test_a_single_layer_is_its_own_network() -> None:
    layer = nn.Linear(64, 32)
    plan = NMPlan(2, 4, ("",))
    assert isinstance(swap_layers(layer, plan, {}, {"": SPARSE}).network, SemiStructuredLinear)
    assert type(swap_layers(layer, plan, {}, {"": DENSE_FORM}).network) is nn.Linear


def test_plans_survive_the_disk(tmp_path: Path) -> None:
    network, structured = network_and_ticket()
    ticket = Ticket(structured.masks, network.state_dict(), None, structured.plan, structured.layers)
    ticket.save(tmp_path / "ticket")
    assert Ticket.load(tmp_path / "ticket").plan == structured.plan
    assert plan_from_json(plan_to_json(structured.plan)) == structured.plan


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_the_kernels_compute_the_dense_layers(dtype: torch.dtype, batch: int) -> None:
    network, ticket = network_and_ticket()
    assert isinstance(ticket.plan, NMPlan)
    network.cuda().to(dtype).eval()
    small = copy.deepcopy(swap_layers(network, ticket.plan, ticket.masks, {"2": SPARSE, "7": SPARSE}).network)
    images = torch.randn(batch, 3, 8, 8, device="cuda", dtype=dtype).contiguous(memory_format=torch.channels_last)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            torch.testing.assert_close(small(images), network(images), rtol=2e-2, atol=2e-2)
    with torch.no_grad():  # a weight that changes is compressed again
        for net in (network, small):
            net.get_parameter("7.weight").mul_(-2)
        torch.testing.assert_close(small(images), network(images), rtol=2e-2, atol=4e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_layers_are_replaced_where_they_are_measured_faster() -> None:
    network, ticket = network_and_ticket()
    example = torch.zeros(1, 3, 8, 8)
    measured = choose_forms(network, ticket.plan, example, 64, device="cuda", bfloat16=True)
    asked = choose_forms(network, ticket.plan, example, None, device="cuda", bfloat16=True)
    assert set(measured.forms.values()) <= {DENSE_FORM, SPARSE}
    assert asked.forms == {"2": SPARSE, "7": SPARSE}
