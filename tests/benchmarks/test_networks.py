"""Everything that is measured computes the same, and operations are counted on what runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.layers import measure_by_paper, measure_layers
from benchmarks.networks import Measurement, measure_networks
from benchmarks.peers import SparseConv2d
from benchmarks.variants import PEERS, VARIANTS, Effort, Executed, Tickets, Variant, as_planned, with_round_to
from lt_lightning.execution.cost import Engine, Setting, flops, parameters
from lt_lightning.models.resnet import cifar_resnet
from lt_lightning.models.vgg import VGG
from lt_lightning.pruning.evaluation import largest_difference
from lt_lightning.pruning.masks import kept
from lt_lightning.structures.refill import Refill
from lt_lightning.structures.regroup import Regroup
from tests.cases import slow_but

QUICK = Effort(samples=2, slot=0.001)
REFILL = Variant(Refill(round_to=2), as_planned, exports=True)
BLOCKS = Variant(Regroup(granularity="input_channel", group_size=4, clustering="random"), as_planned)
SOME = {"masked": VARIANTS["masked"], "refill": REFILL, "regroup": BLOCKS}


@pytest.fixture(scope="module")
def vgg() -> Tickets:
    torch.manual_seed(0)
    return Tickets(VGG(11, 10, width=8), (3, 32, 32))


@pytest.fixture(scope="module")
def resnet() -> Tickets:
    torch.manual_seed(0)
    return Tickets(cifar_resnet(8, 10, width=16), (3, 16, 16))


def by_name(rows: list[Measurement]) -> Mapping[tuple[str, float], Measurement]:
    return {(row.variant, row.density): row for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_every_variant_at_every_density(vgg: Tickets, training: bool) -> None:
    setting = Setting(4, training)
    rows = by_name(measure_networks(vgg, SOME, [0.5, 0.25], setting, QUICK, layouts=(True, False)))
    assert set(rows) == {("dense", 1.0), ("masked", 0.25)} | {
        (n, d) for n in ("refill", "regroup") for d in (0.5, 0.25)
    }
    dense, masked, refill = rows["dense", 1.0], rows["masked", 0.25], rows["refill", 0.25]
    assert dense.speedup == 1.0
    assert dense.parameters == parameters(vgg.network)
    assert dense.flops == 4 * flops(vgg.network, vgg.example)
    assert masked.ideal == 1.0
    assert math.isnan(masked.share)
    assert 2.0 < refill.ideal < 8.0
    assert refill.ideal == pytest.approx(dense.flops / refill.flops)
    assert refill.parameters < 0.35 * dense.parameters
    assert refill.file_megabytes < 0.5 * dense.file_megabytes
    assert 0 < refill.peak_megabytes <= dense.peak_megabytes
    if training:
        assert refill.peak_megabytes < dense.peak_megabytes
        assert refill.saved_megabytes < dense.saved_megabytes
    assert all(row.difference < 1e-3 for row in rows.values())
    assert all(math.isnan(row.joules) for row in rows.values())


def test_the_ideal_is_the_plans_even_if_layers_run_dense(vgg: Tickets) -> None:
    """A layer that is left dense does not make the target easier."""
    structure = BLOCKS.structure
    ticket = vgg.ticket(structure, 0.25)
    assert ticket.plan is not None
    dense = Variant(structure, lambda network, ticket, *_: Executed(network, ticket.masks, ("all",)))
    row = by_name(measure_networks(vgg, {"dense blocks": dense}, [0.25], Setting(2, False), QUICK))[
        "dense blocks", 0.25
    ]
    assert row.ideal > 2.5
    assert row.flops == 2 * flops(vgg.network, vgg.example)
    assert row.left_dense == ("all",)


@pytest.mark.parametrize("training", slow_but([False], [False, True]))
def test_bfloat16(resnet: Tickets, training: bool) -> None:
    rows = measure_networks(resnet, {"refill": REFILL}, [0.25], Setting(2, training, True), QUICK)
    assert all(row.difference < 0.1 for row in rows)
    assert training or all(row.difference > 1e-5 for row in rows)  # to float32


@pytest.mark.slow
def test_compiled_and_onnx_runtime(conv_net: Callable[[], nn.Module]) -> None:
    pytest.importorskip("onnxruntime")
    torch._dynamo.reset()
    tiny = Tickets(conv_net(), (1, 6, 6))
    engines: tuple[Engine, ...] = ("eager", "compile", "onnx")
    some = {"masked": VARIANTS["masked"], "refill": REFILL}
    rows = measure_networks(tiny, some, [0.5], Setting(2, False), QUICK, engines)
    assert [(row.setting["engine"], row.variant) for row in rows] == [
        *(("eager", name) for name in ("dense", "masked", "refill")),
        *(("compile", name) for name in ("dense", "masked", "refill")),
        *(("onnx", name) for name in ("dense", "refill")),
    ]
    assert all(row.difference < 1e-4 for row in rows)
    assert math.isnan(rows[3].peak_megabytes)  # compiled code allocates unseen


def test_a_network_that_computes_something_else_is_refused(vgg: Tickets) -> None:
    other = Variant(Refill(), lambda network, ticket, *_: Executed(VGG(11, 10, width=8)))
    for training in (False, True):
        with pytest.raises(RuntimeError, match=r"\bother\b.*\b0\.25\b"):
            measure_networks(vgg, {"other": other}, [0.25], Setting(2, training), QUICK)


@pytest.mark.parametrize("name", PEERS)
def test_peers_compute_what_the_masked_network_does(resnet: Tickets, name: str) -> None:
    if name == "torch_pruning":
        pytest.importorskip("torch_pruning")
    variant = VARIANTS[name]
    setting = Setting(2, False)
    masked = resnet.masked(variant.structure, 0.5)
    ticket = resnet.ticket(variant.structure, 0.5)
    small = variant.execute(masked, ticket, resnet.example, setting, "cpu").network
    assert largest_difference(masked, small, torch.randn(3, 3, 16, 16)) < 1e-5
    if name == "torch_pruning":
        ours = resnet.whole(variant.structure, 0.5)
        assert ours is not None
        assert parameters(small) == parameters(ours.network) < parameters(masked)
        assert flops(small.eval(), resnet.example) == flops(ours.network.eval(), resnet.example)
    else:
        sparse = [layer for layer in small.modules() if isinstance(layer, SparseConv2d)]
        assert len(sparse) == len(ticket.masks)
        assert sum(layer.values.numel() for layer in sparse) == kept(ticket.masks)
        assert not variant.fits(replace(setting, training=True))


def test_square_blocks_keep_the_largest_squares(resnet: Tickets) -> None:
    ticket = resnet.ticket(VARIANTS["bsr"].structure, 0.25)
    mask = ticket.masks["stages.1.0.conv2.weight"].flatten(1)  # 32 x 288
    squares = mask.reshape(2, 16, 18, 16).transpose(1, 2).flatten(2)
    assert bool((squares.all(2) == squares.any(2)).all())
    assert int(squares.any(2).sum()) == 9
    weight = dict(resnet.network.named_parameters())["stages.1.0.conv2.weight"].detach().flatten(1)
    sums = weight.abs().reshape(2, 16, 18, 16).sum((1, 3))
    assert float(sums[squares.any(2)].min()) > float(sums[~squares.any(2)].max())


@pytest.mark.parametrize("training", slow_but([True], [False, True]))
def test_layers_against_their_forms(resnet: Tickets, training: bool) -> None:
    rows = measure_layers(resnet, SOME, [0.5], Setting(2, training), QUICK)
    assert {row.variant for row in rows} == {"refill", "regroup"}  # masked runs the dense layers
    prunable = {name for name, layer in resnet.layers.items() if not layer.roles & {"stem", "classifier"}}
    for variant in ("refill", "regroup"):
        assert sorted(name for row in rows if row.variant == variant for name in row.layers) == sorted(prunable)
    (row,) = (row for row in rows if row.variant == "refill" and "stages.1.0.conv2" in row.layers)
    conv = resnet.whole(REFILL.structure, 0.5)
    assert conv is not None
    small = conv.network.get_submodule("stages.1.0.conv2")
    assert row.ideal == pytest.approx(32 * 32 / (small.in_channels * small.out_channels))  # type: ignore[operator]
    assert row.speedup == pytest.approx(row.dense_milliseconds / row.milliseconds)
    assert all(0 <= row.difference < 1e-4 for row in rows)


@pytest.mark.slow
def test_the_papers_protocol_counts_every_convolution(resnet: Tickets) -> None:
    (row,) = measure_by_paper(resnet, {"regroup": BLOCKS}, [0.5], QUICK, batch_size=1)
    assert "127x127" in row.protocol
    assert "batch 1," in row.protocol
    convolutions = [layer for layer in resnet.layers.values() if "linear" not in layer.roles]
    side = {"stages.1": 64, "stages.2": 64}

    def outputs(name: str) -> int:  # strides of 2 halve the image
        return (64 if name.endswith((".0.conv1", "shortcut.conv")) and name[:8] in side else 127) ** 2

    ticket = resnet.ticket(BLOCKS.structure, 0.5)
    whole = sum(layer.size * outputs(layer.name) for layer in convolutions)
    executed = sum(ticket.layers[layer.name].executed * outputs(layer.name) for layer in convolutions)
    assert row.ideal_saved == pytest.approx(1 - executed / whole, abs=1e-6)
    assert row.saved <= 1 - row.milliseconds / row.dense_milliseconds + 1e-9


def test_round_to_is_that_of_structures_that_round() -> None:
    refill, blocks = (with_round_to(VARIANTS[name], 8).structure for name in ("refill", "regroup_channels"))
    assert isinstance(refill, Refill)
    assert isinstance(blocks, Regroup)
    assert refill.round_to == blocks.round_to == 8
    assert with_round_to(VARIANTS["regroup"], 8) == VARIANTS["regroup"]
