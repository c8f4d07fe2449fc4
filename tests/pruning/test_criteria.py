"""Every criterion beside a brute-force computation on a tiny network."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lt_lightning.pruning.criteria import SNIP, Context, Criterion, GraSP, Magnitude, Random, SynFlow
from lt_lightning.pruning.masks import Masks, kept
from lt_lightning.pruning.selection import Scope, prune

CONV, HEAD = "0.weight", "5.weight"


def tiny() -> nn.Module:
    """Smooth, in double precision: 18 + 6 + 6 parameters and a BatchNorm with statistics of its own."""
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(2, 3),
    ).double()  # fmt: skip
    with torch.no_grad():
        for value in (*network.parameters(), network.get_buffer("1.running_mean")):
            value.copy_(torch.randn_like(value))
        network.get_buffer("1.running_var").uniform_(0.5, 2)
    return network


def data(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(4, 1, 4, 4, generator=generator, dtype=torch.float64), torch.randint(3, (4,), generator=generator))
        for _ in range(count)
    ]


def context_of(
    network: nn.Module, density: float = 0.5, scope: Scope = "global", example: Tensor | None = None
) -> Context:
    given = torch.zeros(1, 1, 4, 4) if example is None else example
    return Context(network, network.state_dict(), given, data, density, scope)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def full(network: nn.Module) -> Masks:
    return {name: torch.ones_like(p, dtype=torch.bool) for name, p in network.named_parameters() if p.dim() > 1}


def loss_of(network: nn.Module, values: Mapping[str, Tensor], count: int, temperature: float = 1.0) -> Tensor:
    """Mean loss over the batches in training mode."""
    own = {name: buffer.clone() for name, buffer in network.named_buffers()}
    losses = [
        F.cross_entropy(functional_call(network, {**own, **values}, (images,)) / temperature, labels)
        for images, labels in data(count)
    ]
    return torch.stack(losses).mean()


def test_snip_is_what_finite_differences_of_the_loss_give() -> None:
    network = tiny().train()
    weights, step = weights_of(network), 1e-6
    scores = SNIP(batches=3)(weights, full(network), context_of(network))
    for name, score in scores.items():
        for place in product(*map(range, score.shape)):
            ends = []
            for sign in (1, -1):  # of the factor that multiplies the weight, as the paper defines it
                moved = {key: value.clone() for key, value in weights.items()}
                moved[name][place] *= 1 + sign * step
                ends.append(float(loss_of(network, moved, 3)))
            assert float(score[place]) == pytest.approx(abs(ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_grasp_is_what_the_whole_hessian_gives(temperature: float) -> None:
    network = tiny().train()
    weights = weights_of(network)
    scores = GraSP(batches=3, temperature=temperature)(weights, full(network), context_of(network))
    names = list(weights)
    sizes = [value.numel() for value in weights.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = {name: part.view_as(weights[name]) for name, part in zip(names, torch.split(flat, sizes), strict=True)}
        return loss_of(network, parts, 3, temperature)

    theta = torch.cat([value.flatten() for value in weights.values()])
    g = torch.func.grad(loss)(theta)
    hessian: Any = torch.autograd.functional.hessian(loss, theta)  # type: ignore[no-untyped-call]
    expected = dict(zip(names, (theta * (hessian @ g)).split(sizes), strict=True))
    for name, score in scores.items():
        torch.testing.assert_close(score.flatten(), expected[name], rtol=1e-8, atol=1e-14)
    signs = torch.cat([score.flatten() for score in scores.values()]).sign()
    assert set(signs.tolist()) == {-1.0, 1.0}


def test_grasp_prunes_first_what_adds_to_the_gradient_flow() -> None:
    """||g||^2 with a weight scaled down by a little grows for the lowest score, and shrinks for the highest."""
    network = tiny().train()
    weights, masks = weights_of(network), full(network)
    scores = GraSP(batches=2, temperature=1.0)(weights, masks, context_of(network))

    def flow(values: Mapping[str, Tensor]) -> float:
        free = {name: value.clone().requires_grad_() for name, value in values.items()}
        gradients = torch.autograd.grad(loss_of(network, free, 2), list(free.values()))
        return float(sum(g.square().sum() for g in gradients))

    def flow_without(name: str, index: int, share: float = 1e-4) -> float:
        changed = {key: value.clone() for key, value in weights.items()}
        changed[name].view(-1)[index] *= 1 - share
        return flow(changed)

    before = flow(weights)
    flat = [(float(s), name, i) for name, score in scores.items() for i, s in enumerate(score.flatten())]
    (_, low, i), (_, high, j) = min(flat), max(flat)
    assert flow_without(low, i) > before
    assert flow_without(high, j) < before
    pruned = prune(masks, scores, (len(flat) - 1) / len(flat))
    assert not pruned[low].view(-1)[i]
    assert kept(pruned) == len(flat) - 1


def test_the_loss_is_that_of_the_masked_network() -> None:
    network = tiny().train()
    masks = full(network)
    masks[CONV][0, 0, 0] = False
    scores = SNIP(batches=1)(weights_of(network), masks, context_of(network))
    zeroed = copy.deepcopy(network)
    with torch.no_grad():
        zeroed.get_parameter(CONV)[0, 0, 0] = 0
    expected = SNIP(batches=1)(weights_of(zeroed), full(network), context_of(zeroed))
    for name in masks:
        torch.testing.assert_close(scores[name], expected[name])


def two_layers() -> nn.Module:
    """2 -> 2 -> 1, with a normalisation that has seen data between."""
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2, eps=0), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        network.get_parameter("0.weight").copy_(torch.tensor([[1.0, -2.0], [3.0, -4.0]]))
        network.get_parameter("1.weight").copy_(torch.tensor([-2.0, 1.0]))
        network.get_parameter("3.weight").copy_(torch.tensor([[-5.0, 6.0]]))
        network.get_buffer("1.running_mean").copy_(torch.tensor([100.0, 100.0]))
        network.get_buffer("1.running_var").copy_(torch.tensor([4.0, 0.25]))
    return network


def test_one_step_of_synflow_is_the_product_along_each_path() -> None:
    network = two_layers()
    context = context_of(network, example=torch.zeros(7, 2))
    scores = SynFlow(steps=1)(weights_of(network), full(network), context)
    # Factors of the normalisation: 2 / sqrt(4) = 1 and 1 / sqrt(0.25) = 2.
    assert scores["0.weight"].tolist() == [[1 * 5, 2 * 5], [3 * 2 * 6, 4 * 2 * 6]]
    assert scores["3.weight"].tolist() == [[(1 + 2) * 5, (3 + 4) * 2 * 6]]
    assert scores["0.weight"].dtype == torch.float64


def test_synflow_conserves_flow_and_never_empties_a_layer() -> None:
    """What flows into a layer flows out of it (theorem 1); the thinnest layer outlives every other criterion."""
    torch.manual_seed(0)
    widths = [8, 30, 3, 30, 4]
    network = nn.Sequential(*(part for a, b in pairwise(widths) for part in (nn.Linear(a, b, bias=False), nn.ReLU())))
    masks, weights = full(network), weights_of(network)
    context = context_of(network, density=0.03, example=torch.zeros(1, 8))
    once = SynFlow(steps=1)(weights, masks, context)
    totals = [float(score.sum()) for score in once.values()]
    assert totals == pytest.approx([totals[0]] * len(totals), rel=1e-12)
    left = prune(masks, SynFlow(steps=100)(weights, masks, context), 0.03)
    assert kept(left) == round(0.03 * sum(mask.numel() for mask in masks.values()))
    assert all(mask.any() for mask in left.values())
    scores = SynFlow(steps=1)(weights, left, context)
    assert min(float(scores[name][mask].min()) for name, mask in left.items()) > 0  # every weight is on a path


def test_synflow_is_the_loop_of_the_paper() -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    masks, weights = full(network), weights_of(network)
    found = prune(masks, SynFlow(steps=4)(weights, masks, context_of(network, 0.2, example=torch.zeros(1, 3))), 0.2)
    a, b, bias = (weights[name].double().abs() for name in ("0.weight", "2.weight", "0.bias"))
    left = {name: mask.double() for name, mask in masks.items()}
    for step in (1, 2, 3, 4):
        hidden = (a * left["0.weight"]).sum(1) + bias
        through = (b * left["2.weight"]).sum(0)
        scores = {"0.weight": a * left["0.weight"] * through[:, None], "2.weight": b * left["2.weight"] * hidden}
        flat = torch.cat([score.flatten() for score in scores.values()])
        threshold = flat.sort(descending=True).values[round(0.2 ** (step / 4) * 30) - 1]
        left = {name: (score >= threshold).double() for name, score in scores.items()}
    assert all(torch.equal(found[name], left[name].bool()) for name in found)


def test_magnitude_and_random_need_no_context() -> None:
    masks = {"a": torch.ones(50, 40, dtype=torch.bool), "b": torch.ones(10, dtype=torch.bool)}
    weights = {name: torch.randn(mask.shape) for name, mask in masks.items()}
    first, again, other = Random(seed=1)(weights, masks), Random(seed=1)({}, masks), Random(seed=2)(weights, masks)
    assert all(torch.equal(first[name], again[name]) for name in masks)
    assert not torch.equal(first["a"], other["a"])
    left = prune(masks, first, 0.3, "layer")["a"].double()
    assert int(left.sum()) == 600
    # Of each row 12 of 40 weights, give or take: the standard deviation of a row's count is below 2.9.
    assert float((left.sum(1) - 12).abs().max()) < 5 * 2.9
    assert set(Magnitude()(weights, {"b": masks["b"]})) == {"b"}


@pytest.mark.parametrize(
    "criterion", [Magnitude(), Random(), SNIP(2), GraSP(2), SynFlow(5)], ids=lambda c: type(c).__name__
)
@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
def test_nothing_given_is_changed(criterion: Criterion, scope: Scope) -> None:
    network = tiny().train()
    network.get_parameter("5.bias").requires_grad_(False)
    network.get_parameter(CONV).grad = torch.ones_like(network.get_parameter(CONV))
    masks, weights = full(network), weights_of(network)
    before = copy.deepcopy((network.state_dict(), masks, weights))
    context = context_of(network, 0.5, scope)
    scores = criterion(weights, masks, context)
    assert {name: score.shape for name, score in scores.items()} == {name: mask.shape for name, mask in masks.items()}
    after = (network.state_dict(), masks, weights)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(before, after, strict=True) for key in a)
    gradient = network.get_parameter(CONV).grad
    assert gradient is not None
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert network.training
    assert kept(prune(masks, scores, 0.5, scope)) == 12


def test_the_state_is_scored_and_not_the_network() -> None:
    network, other = tiny().train(), tiny().train()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(-1.5)
    scored = Context(network, other.state_dict(), torch.zeros(1, 1, 4, 4), data, 0.5, "global")
    masks, weights = full(other), weights_of(other)
    makers: tuple[Callable[[], Criterion], ...] = (lambda: SNIP(1), lambda: GraSP(1), lambda: SynFlow(2))
    for make in makers:
        expected = make()(weights, masks, context_of(other))
        found = make()(weights, masks, scored)
        assert all(torch.equal(found[name], expected[name]) for name in masks)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SNIP(batches=0), "batches=0:"),
        (lambda: GraSP(batches=0), "batches=0:"),
        (lambda: GraSP(temperature=0.0), "temperature=0.0:"),
        (lambda: SynFlow(steps=0), "steps=0:"),
    ],
)
def test_impossible_options_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make()


def test_synflow_refuses_token_ids_of_which_there_are_no_ones() -> None:
    network = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    context = context_of(network, example=torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^criterion=SynFlow: .*torch\.int64"):
        SynFlow()(weights_of(network), full(network), context)
