"""Every family: size, shape, gradients, tracing, initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from lt_lightning.models.common import initialise
from lt_lightning.models.mobilenet import MobileNet, SeparableBlock
from lt_lightning.models.resnet import (
    BasicBlock,
    Bottleneck,
    PreActivationBlock,
    WideResNet,
    cifar_resnet,
    resnet18,
    resnet50,
)
from lt_lightning.models.resnet9 import ResNet9
from lt_lightning.models.vgg import VGG

# Of every family a small one: (classes, channels) -> network.
SMALL: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet8": lambda classes, channels: cifar_resnet(8, classes, channels, width=4),
    "resnet8-stride2": lambda classes, channels: cifar_resnet(8, classes, channels, width=4, stem="stride2"),
    "resnet18-imagenet": lambda classes, channels: resnet18(classes, channels, width=4, stem="imagenet"),
    "resnet50": lambda classes, channels: resnet50(classes, channels, width=4, stem="cifar"),
    "wrn": lambda classes, channels: WideResNet(14, 1, classes, channels),
    "vgg": lambda classes, channels: VGG(11, classes, channels, width=4),
    "mobilenet": lambda classes, channels: MobileNet(classes, channels, width=4),
    "resnet9": lambda classes, channels: ResNet9(classes, channels, width=4),
}


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """Built without memory or arithmetic."""
    with torch.device("meta"):
        return make()


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("make", "millions"),
    [
        (lambda: resnet18(10), 11.173962),
        (lambda: resnet18(100), 11.220132),  # the 11.22M of the paper
        (lambda: resnet18(1000, stem="imagenet"), 11.689512),
        (lambda: resnet50(1000), 25.557032),
        (lambda: WideResNet(28, 10, 10), 36.479194),
        (lambda: WideResNet(32, 2, 10), 1.855578),
        (lambda: cifar_resnet(32, 10, width=32), 1.860522),
        (lambda: VGG(16, 10), 14.724042),
        (lambda: MobileNet(10), 3.217226),
    ],
)
def test_known_parameter_counts(make: Callable[[], nn.Module], millions: float) -> None:
    assert parameters(on_meta(make)) == round(millions * 1e6)


@pytest.mark.parametrize(
    ("make", "millions"),
    [
        (lambda: resnet18(100), 11.22),
        (lambda: WideResNet(32, 2, 10), 1.86),
        (lambda: cifar_resnet(32, 10, width=32), 1.86),
        (lambda: VGG(16, 10), 14.72),
        (lambda: resnet50(1000), 25.56),
    ],
)
def test_counts_printed_in_the_paper(make: Callable[[], nn.Module], millions: float) -> None:
    assert round(parameters(on_meta(make)) / 1e6, 2) == millions


@pytest.mark.parametrize("depth", [8, 14, 20, 32, 56])
def test_cifar_resnet_by_hand(depth: int) -> None:
    def block(inputs: int, outputs: int) -> int:
        projection = inputs * outputs + 2 * outputs if inputs != outputs else 0
        return 9 * inputs * outputs + 9 * outputs * outputs + 4 * outputs + projection

    n = (depth - 2) // 6
    expected = 3 * 16 * 9 + 2 * 16 + 64 * 10 + 10
    for inputs, outputs in ((16, 16), (16, 32), (32, 64)):
        expected += block(inputs, outputs) + (n - 1) * block(outputs, outputs)
    network = on_meta(lambda: cifar_resnet(depth, 10))
    assert parameters(network) == expected
    main_path = [m for name, m in network.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in name]
    assert len(main_path) + 1 == depth


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_vgg_depth_counts_the_three_linear_layers_of_the_original(depth: int) -> None:
    network = on_meta(lambda: VGG(depth, 10))
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) + 3 == depth


@pytest.mark.parametrize(
    ("make", "size", "multiply_adds"),
    [
        (lambda: VGG(16, 10), 32, 0.314e9),  # the paper's
        (lambda: resnet18(10), 32, 0.556e9),
        (lambda: resnet50(1000), 224, 4.09e9),
        (lambda: resnet18(1000, stem="imagenet"), 224, 1.81e9),
        (lambda: WideResNet(28, 10, 10), 32, 5.25e9),
    ],
)
def test_known_multiply_adds(make: Callable[[], nn.Module], size: int, multiply_adds: float) -> None:
    network = on_meta(make)
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, size, size, device="meta"))
    assert counter.get_total_flops() / 2 == pytest.approx(multiply_adds, rel=3e-3)


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (32, 3), (64, 3)])
@pytest.mark.parametrize("name", SMALL)
def test_any_size_traces_and_reaches_every_parameter(name: str, size: int, channels: int) -> None:
    torch.manual_seed(0)
    network = SMALL[name](7, channels)
    images = torch.randn(2, channels, size, size)
    logits = network(images)
    assert logits.shape == (2, 7)
    torch.autograd.backward(nn.functional.cross_entropy(logits, torch.tensor([1, 4])))
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    network.eval()
    assert torch.equal(fx.symbolic_trace(network)(images), network(images))


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_has_influence(name: str) -> None:
    # Of 32x32 random images at batch 8 no layer is so starved that its whole gradient is zero.
    torch.manual_seed(0)
    network = SMALL[name](7, 3)
    torch.autograd.backward(network(torch.randn(8, 3, 32, 32)).square().sum())
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", SMALL)
def test_first_and_last_layer_of_the_graph(name: str) -> None:
    network = SMALL[name](7, 3)
    modules = dict(network.named_modules())
    called = [modules[str(node.target)] for node in fx.symbolic_trace(network).graph.nodes if node.op == "call_module"]
    layers = [module for module in called if isinstance(module, nn.Conv2d | nn.Linear)]
    assert isinstance(layers[0], nn.Conv2d)
    assert layers[0].in_channels == 3
    assert isinstance(layers[-1], nn.Linear)
    assert layers[-1].out_features == 7
    assert sum(isinstance(module, nn.Linear) for module in layers) == 1
    assert not any(isinstance(module, nn.Identity | nn.Dropout) for module in called)


@pytest.mark.parametrize("name", SMALL)
def test_convolutions_have_no_bias_and_normalisation_starts_neutral(name: str) -> None:
    for module in SMALL[name](7, 3).modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert bool((module.bias == 0).all())


def test_initial_spread_is_kaiming_fan_out() -> None:
    torch.manual_seed(0)
    network = resnet18(10)
    reference = torch.empty(256, 128, 3, 3)
    nn.init.kaiming_normal_(reference, mode="fan_out", nonlinearity="relu")
    weight = network.get_parameter("stages.2.0.conv1.weight")
    assert weight.shape == reference.shape
    assert float(weight.detach().std()) == pytest.approx(float(reference.std()), rel=0.01)
    assert float(weight.detach().mean()) == pytest.approx(0, abs=3e-4)
    depthwise = SeparableBlock(4096, 1, 1)
    initialise(depthwise)
    assert float(depthwise.depthwise.weight.detach().std()) == pytest.approx(math.sqrt(2 / 9), rel=0.02)


@pytest.mark.parametrize("block", [BasicBlock(8, 8, 1), Bottleneck(32, 8, 1)])
def test_residual_block_without_its_branch_is_relu(block: nn.Module) -> None:
    last = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)][-1]
    nn.init.zeros_(last.weight)
    x = torch.randn(2, 8 if isinstance(block, BasicBlock) else 32, 6, 6)
    assert torch.equal(block(x), x.relu())


def test_pre_activation_block_without_its_branch_is_the_identity() -> None:
    block = PreActivationBlock(8, 8, 1)
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(block(x), x)


def test_projection_reads_the_activated_input_before_it() -> None:
    block = PreActivationBlock(8, 16, 2).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 8, 6, 6)
    projection = block.get_submodule("shortcut")
    assert torch.allclose(block(x), projection((x / math.sqrt(1 + 1e-5)).relu()), atol=1e-6)
    assert block(x).shape == (2, 16, 3, 3)


def test_basic_block_projects_with_normalisation() -> None:
    block = BasicBlock(8, 16, 2).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 8, 6, 6)
    conv = block.shortcut.get_submodule("conv")
    expected: Tensor = conv(x) / math.sqrt(1 + 1e-5)
    assert torch.allclose(block(x), expected.relu(), atol=1e-6)


@pytest.mark.parametrize(("stem", "expected"), [("cifar", (32, 32)), ("stride2", (16, 16)), ("imagenet", (8, 8))])
def test_stem_divides_the_image(stem: str, expected: tuple[int, int]) -> None:
    network = cifar_resnet(8, 10, stem=stem)  # type: ignore[arg-type]  # a str from the parametrisation
    assert network.stem(torch.randn(1, 3, 32, 32)).shape[2:] == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cifar_resnet(10, 10), r"depth=10: .*6n \+ 2"),
        (lambda: cifar_resnet(2, 10), r"depth=2: .*6n \+ 2"),
        (lambda: cifar_resnet(8, 10, width=0), "width=0: "),
        (lambda: cifar_resnet(8, 10, stem="vit"), "stem='vit': .*cifar, stride2, imagenet"),  # type: ignore[arg-type]
        (lambda: WideResNet(30, 2, 10), r"depth=30: .*6n \+ 4"),
        (lambda: WideResNet(28, 0, 10), "widen=0"),
        (lambda: VGG(15, 10), "depth=15: .*11, 13, 16, 19"),
        (lambda: VGG(16, 10, channels=0), "channels=0"),
        (lambda: MobileNet(0), "classes=0"),
        (lambda: MobileNet(10, width=1.5), r"width=1\.5: "),  # type: ignore[arg-type]
    ],
)
def test_refuses(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
