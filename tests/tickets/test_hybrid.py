from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lt_lightning import Hybrid, Ticket, load_shrunk, shrink
from lt_lightning.execution.blocks.kernel_positions import RegroupedConv2d
from lt_lightning.execution.cost import Setting, flops, inputs_like, parameters
from lt_lightning.execution.execute import execute
from lt_lightning.execution.layer_costs import CountedCosts, TimedCosts, memory
from lt_lightning.execution.shrink_channels import Shrunk, cut_point
from lt_lightning.execution.timing import TimeRatio, Timing
from lt_lightning.models.mobilenet import MobileNet
from lt_lightning.models.resnet import cifar_resnet
from lt_lightning.models.vgg import VGG
from lt_lightning.models.vit import VisionTransformer
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.enforcement import EnforcedMasks
from lt_lightning.pruning.layers import full_masks, prunable_layers
from lt_lightning.pruning.masks import kept
from lt_lightning.pruning.rewinding import RewindPoint
from lt_lightning.pruning.selection import prune
from lt_lightning.structures.base import StructureInput, StructureResult
from lt_lightning.structures.hybrid_choice import SHARES, HybridChoice, masses_of
from lt_lightning.structures.plan import BlockPlan, ChannelPlan, HybridPlan, check_plan, plan_from_json, plan_to_json
from lt_lightning.structures.refill import Refill
from lt_lightning.tickets.making import make_ticket
from tests.cases import slow_but

EXAMPLE = torch.zeros(1, 3, 16, 16)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: cifar_resnet(8, 10, width=16),
    "vgg": lambda: VGG(11, 10, width=8),
    "mobilenet": lambda: MobileNet(10, width=8),
    "chain": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten(),
        nn.Linear(8 * 100, 10),
    ),
}  # fmt: skip


def given(network: nn.Module, density: float = 0.4, example: Tensor = EXAMPLE) -> StructureInput:
    """A network with channels and weights of uneven sizes, and the mask of its largest weights."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                uneven = torch.exp(0.7 * torch.randn(parameter.shape[:2], generator=generator))
                parameter.mul_(uneven.view(*parameter.shape[:2], *[1] * (parameter.dim() - 2)))
    traced = TracedNetwork(network, example)
    masks = full_masks(prunable_layers(traced.layers, ("stem", "classifier")))
    weights = {name: value.detach() for name, value in network.state_dict().items()}
    masks = prune(masks, {name: weights[name].abs() for name in masks}, density)
    return StructureInput(traced, masks, weights)


def hybrid(budget: str, **options: Any) -> Hybrid:
    return Hybrid(budget, **{"round_to": 1, "group_size": 4, "clustering": "random", "batch_size": 4, **options})


def executed(of: StructureInput, result: StructureResult) -> tuple[nn.Module, Shrunk]:
    """The masked network, and the one that executes the plan."""
    EnforcedMasks(of.network, result.masks).zero_weights()
    made = execute(of.network, result.plan, result.masks, of.traced.example, traced=of.traced)
    assert made is not None
    return of.network, made


COUNTS: dict[str, Callable[[nn.Module], int]] = {
    "flops": lambda network: flops(network, EXAMPLE),
    "params": parameters,
    "memory": lambda network: memory(network, EXAMPLE, 4),
}


@pytest.mark.parametrize("kind", COUNTS)
@pytest.mark.parametrize("name", slow_but(["resnet", "chain"], NETWORKS))
@pytest.mark.parametrize("parts", [("channels",), ("channels", "blocks")], ids=str)
def test_the_network_costs_what_was_asked_and_computes_what_the_masked_one_does(
    name: str, kind: str, parts: tuple[Any, ...]
) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().double()
    asked = 0.7 if kind == "memory" or name == "chain" else 0.5
    of = given(network, example=EXAMPLE.double())
    whole = COUNTS[kind](network.float())
    network.double()
    result = hybrid(f"{kind}:{asked}", parts=parts)(of)
    masked, made = executed(of, result)
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    for training in (False, True):
        torch.testing.assert_close(made.network.train(training)(images), masked.train(training)(images))
    share = COUNTS[kind](made.network.float().eval()) / whole
    assert share == pytest.approx(asked, rel=0.05 if name != "chain" else 0.1)
    # The reports say what the network that is executed does.
    layers = result.layers.values()
    assert 2 * sum(layer.executed * layer.positions for layer in layers) == flops(made.network, EXAMPLE)
    assert {layer.form for layer in layers} <= {*parts, "dense"}


def test_channels_go_where_images_are_large_and_blocks_where_they_are_small() -> None:
    """What costs time or memory is there the images, which blocks leave as large as they are."""
    result = hybrid("memory:0.6", batch_size=128)(given(NETWORKS["resnet"]()))
    assert isinstance(result.plan, HybridPlan)
    forms = [(layer.positions, layer.form) for layer in result.layers.values() if layer.form != "dense"]
    assert {form for positions, form in forms if positions == 256} == {"channels"}
    assert "blocks" in {form for positions, form in forms if positions == 16}


def hybrid_result(seed: int = 0) -> tuple[StructureInput, StructureResult]:
    torch.manual_seed(seed)
    of = given(NETWORKS["resnet"]().double(), example=EXAMPLE.double())
    result = hybrid("memory:0.6", batch_size=64)(of)
    assert isinstance(result.plan, HybridPlan)
    return of, result


def test_training_is_that_of_the_masked_network_from_the_same_momentum() -> None:
    of, result = hybrid_result()
    network = of.network
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64)

    def train(network: nn.Module, optimizer: torch.optim.Optimizer, held: EnforcedMasks | None) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(network(images), torch.arange(6)).backward()  # type: ignore[no-untyped-call]
            if held is not None:
                held.zero_gradients()
            optimizer.step()

    optimizer = torch.optim.SGD(network.parameters(), 0.02, momentum=0.9, weight_decay=1e-2)
    train(network, optimizer, None)
    point = RewindPoint.capture(network, [optimizer], [])
    held = EnforcedMasks(network, result.masks)
    held.zero_weights()
    held.zero_optimizer_state([optimizer])
    made = execute(network, result.plan, result.masks, images[:1])
    assert made is not None
    small = made.network
    smaller = torch.optim.SGD(small.parameters(), 0.02, momentum=0.9, weight_decay=1e-2)
    cut_point(point, made.slices, small, [smaller]).restore_schedule([smaller], [])
    rest = EnforcedMasks(small, made.masks)
    rest.zero_optimizer_state([smaller])
    train(network, optimizer, held)
    train(small, smaller, rest)
    state = small.state_dict()
    for name, value in made.slices.take(network.state_dict()).items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-9)
    whole = made.slices.put(state, network.state_dict())
    for name, mask in result.masks.items():
        torch.testing.assert_close(whole[name], network.get_parameter(name) * mask, rtol=0, atol=1e-9)


def test_a_plan_is_written_and_read_and_one_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    of, result = hybrid_result()
    rewind = dict(of.network.state_dict())
    ticket = make_ticket(
        "hybrid", hybrid("memory:0.6", batch_size=64), of, rewind, {"data": "d", "model": "m", "seed": 0, "round": 1}
    )
    ticket.save(tmp_path / "ticket")
    again = Ticket.load(tmp_path / "ticket")
    assert plan_to_json(again.plan) == plan_to_json(result.plan)
    assert plan_to_json(plan_from_json(plan_to_json(result.plan))) == plan_to_json(result.plan)
    shapes = {name: value.shape for name, value in rewind.items()}
    check_plan(again.plan, shapes)
    plan = again.plan
    assert isinstance(plan, HybridPlan)
    name = next(name for name in plan.blocks.blocks if name in plan.channels.inputs)
    left = len(plan.channels.inputs[name])
    assert max(int(block.columns.max()) for block in plan.blocks.blocks[name]) < left * 9
    plan.blocks.blocks[name][0].columns[-1] = left * 9  # there in the full layer, and not in what is left
    with pytest.raises(ValueError, match=name):
        check_plan(plan, shapes)


def test_shrink_takes_a_budget_and_a_file_of_it_is_read(tmp_path: Path) -> None:
    network = cifar_resnet(8, 10, width=16)
    small = shrink(network, EXAMPLE, 0.6, of="memory")
    assert memory(small.network, EXAMPLE, 128) / memory(network, EXAMPLE, 128) == pytest.approx(0.6, rel=0.05)
    small.save(tmp_path / "small")
    again = load_shrunk(tmp_path / "small.safetensors", cifar_resnet(8, 10, width=16), EXAMPLE)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(again.network.eval()(images), small.network.eval()(images))
    with pytest.raises(ValueError, match="of='time'"):
        shrink(network, EXAMPLE, of="time", structure=Refill())


# The choice


@pytest.mark.parametrize("limit", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(4))
def test_the_choice_of_channels_is_nearly_the_best_of_all(limit: float, seed: int) -> None:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Conv2d(5, 7, 3), nn.ReLU(), nn.Conv2d(7, 2, 3)
    )
    of = given(network)
    channels = Refill(round_to=1).choose(of)
    costs = CountedCosts("flops")
    choice = HybridChoice(channels, of.layers, masses_of(of), {}, costs)
    limit *= choice.whole.cost
    found = choice.within(limit)

    def judged(counts: tuple[int, ...]) -> tuple[float, float]:
        liveness = channels.liveness(np.array(counts))
        value = cost = 0.0
        for name, layer in of.layers.items():
            sides = [side.get(name, np.ones(size, bool)) for side, size in zip(
                (liveness.outputs, liveness.inputs), layer.shape, strict=False)]  # fmt: skip
            cost += sides[0].sum() * sides[1].sum() * 9 * layer.positions
            if layer.weight in of.masks:
                magnitude = (of.weights[layer.weight] * of.masks[layer.weight]).abs().sum((2, 3)).double().numpy()
                value += np.log(magnitude[np.ix_(*sides)].sum() / magnitude.sum())
        return cost, value

    assert judged(found.counts) == pytest.approx((found.cost, found.value))
    every = map(judged, itertools.product(*(range(1, group.channels + 1) for group in channels.groups)))
    best = max((value for cost, value in every if cost <= limit), default=None)
    assert (found.cost <= limit) is (best is not None)
    assert best is None or found.value >= best - 0.05


def test_blocks_take_the_shares_that_retain_most() -> None:
    """Without channels the layers are priced alike: their shares are the solution of a knapsack."""
    of = given(NETWORKS["chain"]())
    curve = np.sqrt(SHARES)
    names = [name for name, layer in of.layers.items() if layer.weight in of.masks]
    choice = HybridChoice(None, of.layers, masses_of(of), {name: {4: curve} for name in names}, CountedCosts("params"))
    others = sum(layer.size for name, layer in of.layers.items() if name not in names)
    prunable = sum(of.layers[name].size for name in names)
    found = choice.within(others + 0.5 * prunable)
    kept_share = {name: SHARES[found.forms[name].share] for name in names if found.forms[name].group_size}
    # The sum of log(share) / 2 under a sum of sizes is largest where each layer keeps as many weights.
    sizes = [kept_share.get(name, 1.0) * of.layers[name].size for name in names]
    assert max(sizes) / min(sizes) < 1.15
    assert 0.98 * 0.5 * prunable <= sum(sizes) <= 0.5 * prunable


def test_times_are_interpolated_between_measurements_and_remembered() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1))
    traced = TracedNetwork(network, EXAMPLE)

    def made() -> TimedCosts:
        return TimedCosts(network, EXAMPLE, traced.layers, Setting(2, training=False), "kernel_position")

    first = made()
    dense = {
        name: first.dense(
            layer, np.array([layer.shape[0], layer.shape[0] / 4.0]), np.array([layer.shape[1] * layer.groups] * 2)
        )
        for name, layer in traced.layers.items()
    }
    assert all((seconds > 0).all() for seconds in dense.values())
    again = made()
    for name, layer in traced.layers.items():
        sides = np.array([float(layer.shape[0])]), np.array([float(layer.shape[1] * layer.groups)])
        assert again.dense(layer, *sides)[0] == dense[name][0]
        if layer.groups == 1:
            assert (first.blocks(layer, *sides, 4) == again.blocks(layer, *sides, 4)).all()
            assert first.blocks(layer, *sides, 4).shape == (1, len(SHARES))


class Own(nn.Conv2d):
    """A class of one's own that computes what PyTorch's does."""


class Scaled(nn.Conv2d):
    """A convolution that cannot be timed alone."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_layers_that_cannot_be_timed_cost_what_their_operations_do_at_the_rate_of_the_others() -> None:
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5)
    network = nn.Sequential(Own(3, 8, 3), Own(8, 8, 3), Scaled(8, 8, 3), nn.Conv2d(8, 16, 3, groups=8), *ends)
    layers = TracedNetwork(network, EXAMPLE).layers
    state = torch.get_rng_state()
    costs = TimedCosts(network, EXAMPLE, layers, Setting(3, training=True), "kernel_position")
    assert torch.equal(torch.get_rng_state(), state)
    whole = np.array([8.0]), np.array([8.0])
    assert costs.blocks(layers["1"], *whole, 4).shape == (1, len(SHARES))
    timed = sum(float(costs._alone(layers[name], np.array([8.0]), np.array([inputs]))[0]) for name, inputs in (
        ("0", 3.0), ("1", 8.0)))  # fmt: skip
    operations = {name: layer.size * layer.positions for name, layer in layers.items()}
    expected = timed * operations["2"] / (operations["0"] + operations["1"])
    assert costs._alone(layers["2"], *whole)[0] == pytest.approx(expected)
    several = costs._alone(layers["3"], np.array([16.0]), np.array([8.0]))[0]  # of two outputs for each input
    assert several / timed == pytest.approx(operations["3"] / (operations["0"] + operations["1"]))


def seconds_of(network: nn.Module, shape: tuple[int, ...], batch_size: int) -> float:
    """The time of an imagined machine: operations, bytes of the outputs, and a start for each layer.

    Blocks take half as long again as their operations would, and a start of their own.
    """
    layers: list[float] = []

    def note(module: nn.Module, _: object, output: Tensor) -> None:
        share = 1.5 if isinstance(module, RegroupedConv2d) else 1.0
        layers.append(1e-5 + 4e-9 * output.numel() + share * 1e-10 * flops_of[module] * batch_size)

    modules = [each for each in network.modules() if isinstance(each, (nn.Conv2d, nn.Linear, RegroupedConv2d))]
    images = torch.zeros(1, *shape)
    with torch.no_grad():
        inputs: dict[nn.Module, Tensor] = {}
        hooks = [each.register_forward_pre_hook(lambda m, i: inputs.__setitem__(m, i[0])) for each in modules]
        network(images)
        for hook in hooks:
            hook.remove()
        flops_of = {module: flops(module, image) for module, image in inputs.items()}
        hooks = [each.register_forward_hook(note) for each in modules]
        network(torch.zeros(batch_size, *shape))
        for hook in hooks:
            hook.remove()
    return sum(layers)


@pytest.mark.parametrize("asked", [0.4, 0.7])
@pytest.mark.parametrize("training", [False, True])
def test_a_time_is_met_on_a_machine_whose_times_are_known(
    asked: float, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(layers: Any, batch_size: int, *_: object, **__: object) -> dict[str, Timing]:
        return {
            name: Timing(seconds_of(layer, shape, batch_size), 0.0, 0.0, 1) for name, (layer, shape) in layers.items()
        }

    def ratio(dense: nn.Module, small: nn.Module, example: Tensor, setting: Setting, *_: object) -> TimeRatio:
        assert setting.training is training
        times = [seconds_of(each, tuple(example.shape[1:]), setting.batch_size) for each in (small, dense)]
        return TimeRatio(times[0] / times[1], 0.0, 1)

    monkeypatch.setattr("lt_lightning.execution.layer_costs.time_layers", timed)
    monkeypatch.setattr("lt_lightning.execution.form_choice.time_layers", timed)
    monkeypatch.setattr("lt_lightning.tickets.hybrid.time_ratio", ratio)
    of = given(NETWORKS["resnet"]())
    structure = hybrid(f"time:{asked}", of="training" if training else "inference")
    masked, made = executed(of, structure(of))
    share = seconds_of(made.network, (3, 16, 16), 4) / seconds_of(masked, (3, 16, 16), 4)
    assert share == pytest.approx(asked, rel=0.05)


def test_memory_is_what_backward_keeps() -> None:
    """Of convolutions and ReLU: inputs of the convolutions, and outputs of the ReLU, which is the next one's input."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    weights = 4 * (3 * 4 * 9 + 4 + 4 * 2 * 9 + 2)
    assert memory(network, EXAMPLE, 10) == 3 * weights + 4 * 10 * (3 * 256 + 4 * 196)


def test_attention_with_fewer_heads_and_inputs_of_another_precision() -> None:
    torch.manual_seed(0)

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inward, self.attention = nn.Linear(6, 16), nn.MultiheadAttention(16, 4, batch_first=True)
            self.out = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inward(x)
            out: Tensor = self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))
            return out

    network, tokens = Attending().double(), torch.randn(2, 5, 6, dtype=torch.float64)
    small = shrink(network, tokens, structure=hybrid("params:0.6"))
    assert parameters(small.network) < 0.65 * parameters(network)
    assert inputs_like(tokens, Setting(3, training=False)).dtype is torch.float64


# What is refused


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"budget": "time"}, "budget='time'"),
        ({"budget": "watts:0.5"}, "budget='watts:0.5'"),
        ({"budget": "time:0"}, "budget='time:0'"),
        ({"budget": "time:nan"}, "budget='time:nan'"),
        ({"budget": "time:50%"}, "budget='time:50%'"),
        ({"of": "validation"}, "of='validation'"),
        ({"parts": ()}, "parts="),
        ({"parts": ("filters",)}, "parts="),
        ({"group_size": 0}, "group_size=0"),
        ({"group_size": []}, "group_size="),
        ({"batch_size": 0}, "batch_size=0"),
        ({"round_to": 0}, "round_to=0"),
        ({"coupling": "loose"}, "coupling='loose'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}") as error:
        Hybrid(**{"budget": "time:0.5", **options})
    assert "\n" not in str(error.value)


def test_no_time_where_everything_is_to_be_deterministic() -> None:
    traced = TracedNetwork(NETWORKS["chain"](), EXAMPLE)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(ValueError, match=r"^budget='time:0\.5'"):
            Hybrid("time:0.5").check(traced)
        Hybrid("flops:0.5").check(traced)
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_budget_that_nothing_meets_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^budget='flops:0\.001'"):
        hybrid("flops:0.001")(given(NETWORKS["resnet"]()))


def test_a_budget_that_is_missed_from_below_is_told() -> None:
    """Of two channels there is half or all: a hidden layer of them has a half of the weights, or every one."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 2), nn.ReLU(), nn.Linear(2, 1))
    traced = TracedNetwork(network, EXAMPLE)
    of = StructureInput(traced, full_masks(traced.layers.values()), dict(network.state_dict()))
    with pytest.warns(UserWarning, match=r"^budget='params:0\.8'.*0\.50"):
        hybrid("params:0.8", parts=["channels"])(of)


def test_a_network_of_which_no_channel_may_be_dropped_keeps_blocks() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 40))
    traced = TracedNetwork(network, EXAMPLE)
    of = StructureInput(traced, full_masks(traced.layers.values()), dict(network.state_dict()))
    result = hybrid("params:0.5")(of)
    assert isinstance(result.plan, BlockPlan)
    assert kept({name: result.masks[name] for name in of.masks}) == pytest.approx(0.5 * 768 * 40, rel=0.05)
    with pytest.raises(ValueError, match="no channel"):
        hybrid("params:0.5", parts=["channels"]).check(of.traced)


def test_a_transformer() -> None:
    torch.manual_seed(0)
    network = VisionTransformer(10, size=16, patch=4, width=32, depth=2, heads=4)
    of = given(network)
    result = hybrid("params:0.5")(of)
    masked, made = executed(of, result)
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(made.network.eval()(images), masked.eval()(images), rtol=1e-4, atol=1e-5)
    assert parameters(made.network) / parameters(network) == pytest.approx(0.5, rel=0.05)
    assert not isinstance(result.plan, ChannelPlan)
