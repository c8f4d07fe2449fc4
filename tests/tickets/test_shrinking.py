"""One call: the smaller network computes what the full one does without what was left out, and is found in its file."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lt_lightning import Filters, Refill, Regroup, ShrunkNetwork, Ticket, load_shrunk, shrink
from lt_lightning.models.resnet import cifar_resnet
from lt_lightning.network_graph.recording import without_fast_path
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.examples import Example, call_network, copied, tensors_in
from lt_lightning.pruning.layers import find_layers, full_masks
from lt_lightning.structures.base import Structure, StructureInput, Unstructured
from lt_lightning.tickets.making import make_ticket
from tests.cases import slow_but


class Encoder(nn.Module):
    """PyTorch's transformer encoder with a classifier."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)
        self.embed, self.head = nn.Linear(8, 32), nn.Linear(32, 5)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(self.embed(x)).mean(1))
        return out


class UNet(nn.Module):
    """Down, up by transposed convolutions, and concatenations of what skips the middle."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(2 * width, 4 * width, 3, 2, 1), nn.ReLU())
        self.up = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.joined = nn.Sequential(nn.Conv2d(4 * width, 2 * width, 3, padding=1), nn.ReLU())
        self.up_again = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.last = nn.Conv2d(2 * width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(first)
        up = self.joined(torch.cat([self.up(self.middle(second)), second], 1))
        out: Tensor = self.last(torch.cat([first, self.up_again(up)], 1))
        return out


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50, num_labels=3,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    network: nn.Module = transformers.BertForSequenceClassification(config)
    return network


def sentences() -> Example:
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(50, (3, 9), generator=generator)
    return {"input_ids": words, "attention_mask": (torch.arange(9) < torch.tensor([[9], [6], [4]])).long()}


def floats(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", [nn.Identity(), nn.GroupNorm(1, 16), nn.GroupNorm(4, 16), nn.PReLU(16), None], ids=str)
@pytest.mark.parametrize("groups", [2, 16])
@pytest.mark.parametrize(("dims", "bias"), [(1, True), (2, True), (2, False), (3, False)])
def test_transposed_convolutions_in_groups_keep_their_channels(
    dims: int, bias: bool, groups: int, norm: nn.Module | None
) -> None:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    up = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    torch.manual_seed(0)
    grouped = up(16, 16, 2, 2, groups=groups, bias=bias)
    after = norm or (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1](16)
    parts = (conv(3, 16, 3), nn.ReLU(), grouped, after, conv(16, 8, 1), nn.ReLU(), conv(8, 4, 1))
    network = nn.Sequential(*parts).double()
    example = torch.randn(2, 3, *[6] * dims, dtype=torch.float64)
    small = shrink(network, example, keep=0.95)
    assert small.network.get_parameter("2.weight").shape == network.get_parameter("2.weight").shape
    assert len(small.network.get_parameter("4.weight")) < 8


class Named(nn.Module):
    """Calls its layers by the names of their arguments, and one with another argument."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 8, 3, stride=2)
        self.one, self.norm, self.two = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(input=self.conv(input=x).relu(), output_size=(16, 16)).relu()
        out: Tensor = self.two(input=self.norm(input=self.one(input=x.mean((2, 3)))).relu())
        return out


@pytest.mark.parametrize(
    "structure",
    [Refill(round_to=1), Refill(coupling="independent", round_to=1), Regroup(group_size=4, min_rows=1, min_columns=1),
     Regroup("input_channel", group_size=4, min_rows=1, min_columns=1)],
    ids=str,
)  # fmt: skip
def test_layers_that_are_called_by_the_names_of_their_arguments(structure: Structure) -> None:
    torch.manual_seed(0)
    network, images = Named().double(), torch.randn(4, 3, 7, 7, dtype=torch.float64)
    small = shrink(network, images, keep=0.7, structure=structure)
    assert sum(each.numel() for each in small.network.parameters()) < sum(each.numel() for each in network.parameters())
    small.network.eval()(images)


def test_marks_on_parameters_stay() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    vars(network.get_parameter("0.weight"))["_no_weight_decay"] = True
    small = shrink(network, torch.zeros(1, 4), keep=0.5).network
    assert len(small.get_parameter("0.weight")) < 8
    assert vars(small.get_parameter("0.weight")) == {"_no_weight_decay": True}


@dataclass(frozen=True)
class Kind:
    """A kind of network, the batch that it is given, and how near a share can come on so small a one."""

    make: Callable[[], nn.Module]
    example: Callable[[], Example]
    near: float


KINDS = {
    "resnet": Kind(lambda: cifar_resnet(8, 10, width=16), lambda: floats(4, 3, 16, 16), 0.02),
    "bert": Kind(bert, sentences, 0.1),
    "encoder": Kind(Encoder, lambda: (floats(4, 6, 8),), 0.1),
    "unet": Kind(UNet, lambda: floats(2, 3, 16, 16), 0.02),
}


def of_kind(name: str) -> tuple[nn.Module, Example]:
    """A network in float64, no value of which is zero by chance."""
    torch.manual_seed(0)
    network = KINDS[name].make().double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network, KINDS[name].example()


def outputs(network: nn.Module, example: Example) -> list[Tensor]:
    with without_fast_path():
        return list(tensors_in(call_network(network, example)))


def masked(network: nn.Module, small: ShrunkNetwork) -> nn.Module:
    """The full model with zeros wherever the smaller network has nothing."""
    full = copied(network)
    full.load_state_dict(small.slices.put(small.network.state_dict(), network.state_dict()))
    return full


def assert_same(network: nn.Module, small: ShrunkNetwork, example: Example) -> None:
    for training in (False, True):
        whole, less = masked(network, small).train(training), copied(small.network).train(training)
        for expected, got in zip(outputs(whole, example), outputs(less, example), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


QUICK = [("resnet", "parameters"), ("bert", "flops"), ("encoder", "parameters"), ("unet", "flops")]


@pytest.mark.parametrize(("name", "of"), slow_but(QUICK, product(KINDS, ("parameters", "flops"))))
def test_the_smaller_network_computes_what_the_masked_one_does(name: str, of: Any) -> None:
    network, example = of_kind(name)
    before = copy.deepcopy(network.state_dict())
    small = shrink(network, example, 0.5, of=of)
    assert_same(network, small, example)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())

    params = [sum(p.numel() for p in each.parameters()) for each in (network, small.network)]
    counts = []
    for each in (network, small.network):
        plain = sdpa_kernel(SDPBackend.MATH)
        with without_fast_path(), plain, torch.no_grad(), FlopCounterMode(display=False) as counter:
            call_network(each.eval(), example)
        counts.append(counter.get_total_flops())
    assert [small.params.before, small.params.after] == params
    assert [small.flops.before, small.flops.after] == counts
    share = (params if of == "parameters" else counts)[1] / (params if of == "parameters" else counts)[0]
    assert 0.5 - KINDS[name].near <= share <= 0.5


@pytest.mark.parametrize("name", KINDS)
def test_a_kept_value_is_the_models_and_the_strongest_stay(name: str) -> None:
    network, example = of_kind(name)
    small = shrink(network, example)
    state, full = small.network.state_dict(), network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in small.slices.take(full).items())
    assert state.keys() == full.keys()


def test_the_strongest_filters_stay() -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    with torch.no_grad():
        network.get_parameter("0.weight").copy_(
            torch.tensor([5.0, 1, 7, 2, 8, 3, 6, 4]).view(8, 1, 1, 1).expand(8, 1, 3, 3)
        )
    small = shrink(network, torch.zeros(1, 1, 8, 8), {"*": 0.5}).network
    assert small.get_parameter("0.weight")[:, 0, 0, 0].tolist() == [5, 7, 8, 6]


def test_a_training_step_works_and_keeps_frozen_parameters_frozen() -> None:
    network, example = of_kind("resnet")
    frozen = network.get_parameter("stages.1.0.conv2.weight").requires_grad_(False)
    assert not frozen.requires_grad
    small = shrink(network, example).network.train()
    parameters = dict(small.named_parameters())
    before = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(call_network(small, example), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {name for name, value in parameters.items() if not torch.equal(value, before[name])}
    assert changed == set(parameters) - {"stages.1.0.conv2.weight"}


# What may be asked for


def test_shares_by_layer() -> None:
    network, example = of_kind("resnet")
    layers = {
        layer.name: layer for layer in shrink(network, example, {"stages.2.*": 0.25, "stages.1.0.conv1": 0.5}).layers
    }
    kept = {name: layer.outputs.share for name, layer in layers.items()}
    assert kept.pop("stages.1.0.conv1") == 0.5
    assert {name for name, share in kept.items() if share == 0.25} == {name for name in kept if "stages.2." in name}
    assert {name for name, share in kept.items() if share == 1.0} == {name for name in kept if "stages.2." not in name}
    first = shrink(network, example, {"stages.2.0.conv1": 0.75, "*": 0.5})  # the first pattern counts
    assert {layer.name: layer.outputs.share for layer in first.layers} == {
        name: 0.75 if name == "stages.2.0.conv1" else 1.0 if name == "classifier" else 0.5 for name in layers
    }


def test_heads_are_chosen_whole() -> None:
    network, example = of_kind("encoder")
    small = shrink(network, example, {"encoder.layers.0.self_attn.*": 0.5, "*.linear1": 0.25})
    layers = {layer.name: layer for layer in small.layers}
    attention = layers["encoder.layers.0.self_attn.in_proj"]
    assert (attention.units.before, attention.units.after) == (4, 2)
    assert (attention.outputs.before, attention.outputs.after) == (96, 48)
    assert layers["encoder.layers.1.linear1"].outputs.after == 16
    assert_same(network, small, example)


@pytest.mark.parametrize("keep", [0.4, {"*": 0.5}])
def test_ignored_layers_keep_their_outputs(keep: Any) -> None:
    network, example = of_kind("resnet")
    small = shrink(network, example, keep, ignore=["stem", "stages.1.0.conv1"])
    layers = {layer.name: layer for layer in small.layers}
    for name, why in (("stem.conv", "ignore='stem'"), ("stages.1.0.conv1", "ignore='stages.1.0.conv1'")):
        assert (layers[name].outputs.after, layers[name].why) == (layers[name].outputs.before, why)
    assert layers["stages.0.0.conv2"].outputs.share == 1.0  # it writes the stem's stream
    assert layers["stages.2.0.conv1"].outputs.share < 1.0
    assert_same(network, small, example)


STRUCTURES: Mapping[str, Structure] = {
    "filters": Filters(scope="global"),
    "inner": Filters(coupling="inner"),
    "multiples": Filters(round_to=4),
    "independent": Refill(coupling="independent", round_to=1),
    "refill": Refill(score="l2", round_to=1),
    "regroup": Regroup(granularity="input_channel", clustering="random"),
}


@pytest.mark.parametrize("name", slow_but(["multiples", "independent", "regroup"], STRUCTURES))
def test_other_structures(name: str, tmp_path: Path) -> None:
    network, example = of_kind("resnet")
    small = shrink(network, example, 0.6, structure=STRUCTURES[name])
    assert 0.5 < small.params.share <= 0.6
    assert_same(network, small, example)
    streams = [layer for layer in small.layers if layer.name.endswith("conv2")]
    if name != "filters":  # which is free to leave streams whole, or not
        assert all(layer.outputs.share == 1.0 for layer in streams) == (name in ("inner", "regroup"))
    if name == "multiples":
        assert all(layer.outputs.after % 4 == 0 for layer in small.layers if layer.name != "classifier")
    small.save(tmp_path / "small")
    again = load_shrunk(tmp_path / "small", cifar_resnet(8, 10, width=16).double(), example)
    assert torch.equal(outputs(again.network.eval(), example)[0], outputs(small.network.eval(), example)[0])


def test_the_table_says_what_went_and_what_stayed() -> None:
    network, example = of_kind("encoder")
    small = shrink(network, example)
    printed = repr(small)
    assert max(map(len, printed.splitlines())) <= 80
    assert f"parameters: {small.params} ({small.params.share:.1%})" in printed
    (row,) = [line.split() for line in small.table().splitlines() if line.startswith("encoder.layers.0.self_attn.in_")]
    heads = next(layer.units for layer in small.layers if layer.name == "encoder.layers.0.self_attn.in_proj")
    assert row[4:7] == ["4", "->", str(heads.after)]
    assert "- output of the network: head" in printed


# The file


@pytest.mark.parametrize("name", slow_but(["unet"], KINDS))
def test_saved_and_loaded_in_a_new_process_it_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    network, example = of_kind(name)
    small = shrink(network, example, 0.4)
    small.save(tmp_path / "small")
    torch.save([each.detach() for each in outputs(small.network.eval(), example)], tmp_path / "outputs")
    code = f"""
import importlib.util, torch
spec = importlib.util.spec_from_file_location("test_shrinking", {str(Path(__file__))!r})
test = importlib.util.module_from_spec(spec)
import sys; sys.modules["test_shrinking"] = test
spec.loader.exec_module(test)
torch.manual_seed(7)
model, example = test.KINDS[{name!r}].make().double(), test.KINDS[{name!r}].example()
again = test.load_shrunk({str(tmp_path / "small")!r}, model, example)
got = test.outputs(again.network.eval(), example)
assert all(map(torch.equal, got, torch.load({str(tmp_path / "outputs")!r}, weights_only=True)))
print(repr(again), end="")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == repr(small)


def test_what_was_trained_on_is_saved(tmp_path: Path) -> None:
    network, example = of_kind("unet")
    small = shrink(network, example)
    with torch.no_grad():
        small.network.get_parameter("last.bias").fill_(3.0)
    small.save(tmp_path / "small.safetensors")
    again = load_shrunk(tmp_path / "small.safetensors", UNet().double(), example)
    assert again.network.get_parameter("last.bias").tolist() == [3.0, 3.0]


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    network, example = of_kind("unet")
    shrink(network, example).save(tmp_path / "small")
    with pytest.raises(ValueError, match=r"than UNet.*first\.0\.bias float64 \(16,\) instead of float64 \(8,\)"):
        load_shrunk(tmp_path / "small", UNet(8).double(), example)
    with pytest.raises(ValueError, match=r"first\.0\.bias float64 \(16,\) instead of float32 \(16,\)"):
        load_shrunk(tmp_path / "small", UNet(), torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"another network than Encoder.*misses embed"):
        load_shrunk(tmp_path / "small", Encoder().double(), floats(4, 6, 8))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    network, example = of_kind("unet")
    path = tmp_path / "small.safetensors"
    shrink(network, example).save(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=str(path)):
        load_shrunk(path, network, example)
    path.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=str(path)):
        load_shrunk(path, network, example)
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "nothing")):
        load_shrunk(tmp_path / "nothing", network, example)
    given = StructureInput(TracedNetwork(network, example), {}, network.state_dict())
    Ticket({}, given.weights).save(tmp_path / "ticket")
    with pytest.raises(ValueError, match=str(tmp_path / "ticket")):
        load_shrunk(tmp_path / "ticket", network, example)


# Tickets


@pytest.mark.parametrize("structure", [Refill(round_to=1), Regroup(granularity="input_channel", clustering="random")])
def test_a_ticket_shrinks_a_network(structure: Structure) -> None:
    network, example = of_kind("resnet")
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    masks = {
        name: weights[name].abs() > weights[name].abs().median()
        for name in full_masks(find_layers(network, example).values())
    }
    ticket = make_ticket("s", structure, StructureInput(TracedNetwork(network, example), masks, weights), weights)
    small = ticket.shrink(network, example, "rewind")
    torch.testing.assert_close(
        call_network(small.network.eval(), example),
        call_network(ticket.apply(copied(network)).eval(), example),
        rtol=0,
        atol=1e-10,
    )
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert small.params.share == pytest.approx(ticket.card["params_ratio"], abs=0.01)
    with pytest.raises(ValueError, match="no trained weights"):
        ticket.shrink(network, example)
    trained = ticket.with_training({name: value + 1 for name, value in weights.items()})
    bias = trained.shrink(network, example).network.get_parameter("classifier.bias")
    assert torch.equal(bias, weights["classifier.bias"] + 1)


def test_a_ticket_without_a_plan_says_so() -> None:
    network, example = of_kind("resnet")
    with pytest.raises(ValueError, match="no plan"):
        Ticket({}, network.state_dict()).shrink(network, example, "rewind")


# What cannot be asked for


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"keep": 0.0}, r"keep=0\.0"),
        ({"keep": 1.5}, r"keep=1\.5"),
        ({"keep": True}, "keep=True"),
        (
            {"keep": 0.001},
            r"keep=0\.001: 0\.\d+ .*parameters .*\blast\b",
        ),
        ({"keep": {"middle.*": 2}}, r"keep\['middle\.\*'\]=2"),
        ({"keep": {"centre.*": 0.5}}, r"keep=\['centre\.\*'\]: .*middle\.0"),
        ({"keep": {"*": 0.5}, "structure": Regroup()}, r"keep=\{'\*': 0\.5\}.*Regroup"),
        ({"of": "seconds"}, "of='seconds': .*parameters, flops"),
        ({"ignore": ["centre"]}, r"ignore=\['centre'\].*middle\.0"),
        ({"ignore": "middle"}, "ignore='middle'"),
        ({"ignore": ["*"]}, r"ignore=\['\*'\]: .*middle\.0"),
        ({"structure": Unstructured()}, r"structure=Unstructured\(\)"),
    ],
)
def test_what_cannot_be_asked_for(arguments: Any, told: str) -> None:
    network, example = of_kind("unet")
    with pytest.raises(ValueError, match=told) as caught:
        shrink(network, example, **arguments)
    assert "\n" not in str(caught.value)
