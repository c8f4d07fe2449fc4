"""What a card says of a layer is what the executor does with it, whatever kind of layer that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from lt_lightning.execution.execute import DENSE_FORM, execute, forms_of
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.enforcement import EnforcedMasks
from lt_lightning.pruning.evaluation import relative_difference
from lt_lightning.pruning.layers import find_layers, full_masks, prunable_layers
from lt_lightning.structures.base import Structure, StructureInput
from lt_lightning.structures.executable import why_irreplaceable, why_no_blocks, why_not_held
from lt_lightning.structures.fixed_blocks import FixedBlocks
from lt_lightning.structures.nm import NM
from lt_lightning.structures.plan import Block, BlockPlan, NMPlan
from lt_lightning.structures.regroup import Regroup

WIDTH = 64
STRUCTURES: dict[str, Structure] = {
    "regroup": Regroup(clustering="random"),
    "regroup channels": Regroup("input_channel", clustering="random"),
    "fixed blocks": FixedBlocks(),
    "fixed tiles": FixedBlocks("kernel_position"),
    "2:4": NM(),
}


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        out: Tensor = self._conv_forward(x, weight, self.bias)
        return out


class Renamed(nn.Conv2d):
    """A class of one's own that computes what its parent does."""


def hooked() -> nn.Module:
    layer = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
    layer.register_forward_hook(lambda module, given, result: result * 2)
    return layer


def patched() -> nn.Module:
    layer = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
    setattr(layer, "forward", lambda x: F.conv2d(x, layer.weight * 2, layer.bias, padding=1))  # noqa: B010
    return layer


class Flat(nn.Module):
    """A layer of other dimensions between images."""

    def __init__(self, layer: nn.Module, dimensions: int) -> None:
        super().__init__()
        self.layer = layer
        self.dimensions = dimensions

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.flatten(2) if self.dimensions == 1 else x.unsqueeze(2))
        return y.view(x.shape)


MIDDLE: dict[str, tuple[Callable[[], nn.Module], str]] = {  # kinds of layers, and why they stay dense
    "plain": (lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1), ""),
    "own class": (lambda: Renamed(WIDTH, WIDTH, 3, padding=1), ""),
    "pixelwise": (lambda: nn.Conv2d(WIDTH, WIDTH, 1), ""),
    "odd padding": (lambda: nn.Conv2d(WIDTH, WIDTH, 2, padding="same"), "padding='same'"),
    "same padding": (lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding="same"), ""),
    "circular": (lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1, padding_mode="circular"), "padding_mode='circular'"),
    "grouped": (lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=2), "groups=2"),
    "own forward": (lambda: Standardised(WIDTH, WIDTH, 3, padding=1), "Standardised has a forward of its own"),
    "hook": (hooked, "hooks"),
    "patched": (patched, "forward of its own"),
    "signals": (lambda: Flat(nn.Conv1d(WIDTH, WIDTH, 3, padding=1), 1), "Conv1d"),
    "volumes": (lambda: Flat(nn.Conv3d(WIDTH, WIDTH, (1, 3, 3), padding=(0, 1, 1)), 3), "Conv3d"),
}
REPLACED_BY_NM = ("pixelwise",)
NM_PATTERN_ALL_THE_SAME = ("odd padding", "circular", "grouped", "signals", "volumes")


def network_of(middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3), nn.ReLU(), middle, nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Conv2d(WIDTH, 64, 3),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ).double()  # fmt: skip


def structure_input(network: nn.Module, example: Tensor, density: float = 0.3) -> StructureInput:
    """The largest weights of every layer, as masks."""
    masks = full_masks(prunable_layers(find_layers(network, example), ("stem", "classifier")))
    state: dict[str, Tensor] = network.state_dict()
    weights = {name: value.detach().clone() for name, value in state.items()}
    for name in masks:
        flat = weights[name].abs()
        masks[name] = flat > flat.flatten().kthvalue(int(flat.numel() * (1 - density))).values
    return StructureInput(TracedNetwork(network, example), masks, weights)


def check_card(network: nn.Module, example: Tensor, structure: Structure) -> dict[str, str]:
    """Compare reports, plan, executor and both networks; return the note of every layer."""
    result = structure(structure_input(network, example))
    EnforcedMasks(network, result.masks).zero_weights()
    assert result.plan is None or isinstance(result.plan, BlockPlan | NMPlan)
    shrunk = execute(network, result.plan, result.masks, example)
    choice = {} if shrunk is None else shrunk.choice
    for name, report in result.layers.items():
        replaced = choice.get(name, DENSE_FORM) != DENSE_FORM
        assert replaced == (report.form == "blocks")
        assert report.executed == (report.kept if report.form == "blocks" else report.size)
        if report.form == "dense":
            assert report.kept == report.size
            assert all(bool(mask.all()) for key, mask in result.masks.items() if key == f"{name}.weight")
        if isinstance(result.plan, NMPlan) and name not in result.plan.layers:
            assert not why_irreplaceable(network, name) or report.form == "dense"
    if shrunk is not None:
        images = torch.randn(4, *example.shape[1:], dtype=torch.float64)
        for training in (False, True):
            network.train(training)
            shrunk.network.train(training)
            assert relative_difference(shrunk.network(images), network(images)) < 1e-12
    return {name: report.note for name, report in result.layers.items()}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", MIDDLE)
def test_cards_say_what_is_executed(kind: str, structure: str) -> None:
    torch.manual_seed(0)
    make, why = MIDDLE[kind]
    network, example = network_of(make()), torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    (name,) = (name for name in find_layers(network, example) if name.startswith("2"))
    note = check_card(network, example, STRUCTURES[structure])[name]
    if structure == "2:4":
        assert note.startswith("2:4") == (not why or kind in NM_PATTERN_ALL_THE_SAME)
        return
    assert why in note
    assert bool(why_no_blocks(network, name)) == bool(why)


def test_the_plan_of_two_in_four_names_layers_that_can_be_replaced_alone() -> None:
    example = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    for kind, (make, _) in MIDDLE.items():
        plan = NM()(structure_input(network_of(make()), example)).plan
        names = plan.layers if isinstance(plan, NMPlan) else ()
        assert ("2" in names) == (kind in REPLACED_BY_NM)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(
    "compute",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        torch.nn.utils.weight_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.3),  # type: ignore[no-untyped-call]
    ],
)
def test_computed_weights_are_nobodys_business(compute: Callable[[nn.Module], nn.Module], structure: str) -> None:
    torch.manual_seed(0)
    network = network_of(compute(nn.Conv2d(WIDTH, WIDTH, 3, padding=1)))
    example = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    assert "2" not in check_card(network, example, STRUCTURES[structure])


class Tied(nn.Module):
    """Two layers with one weight, a third with the bias of a fourth, and a module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3)
        self.one, self.two, self.three, self.four, self.free = (nn.Conv2d(64, 64, 3, padding=1) for _ in range(5))
        self.two.weight = self.one.weight
        self.four.bias = self.three.bias
        self.alias = self.five = nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for layer in (self.one, self.two, self.three, self.four, self.free, self.five, self.alias):
            x = F.relu(layer(x))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


@pytest.mark.parametrize("structure", STRUCTURES)
def test_tied_layers_stay_dense_and_say_so(structure: str) -> None:
    torch.manual_seed(0)
    notes = check_card(Tied().double(), torch.zeros(1, 3, 8, 8, dtype=torch.float64), STRUCTURES[structure])
    others = {"one": "two.weight", "two": "one.weight", "three": "four.bias", "four": "three.bias"}
    assert {name: note.split()[3].rstrip(",") for name, note in notes.items() if note.startswith("its ")} == {
        **others,
        "alias": "five.weight",
    }


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_a_form_holds_the_blocks_unless_it_is_said_why_not(data: st.DataObject) -> None:
    """Blocks of any sizes: `why_not_held` is empty exactly where the executor has a form, which computes the mask."""
    filters, inputs = data.draw(st.integers(2, 6)), data.draw(st.integers(2, 4))
    rows = st.lists(st.integers(0, filters - 1), min_size=0, max_size=filters, unique=True)
    columns = st.lists(st.integers(0, inputs - 1), unique=True)
    drawn = data.draw(st.lists(st.tuples(rows, columns), max_size=4))
    blocks: Sequence[Block] = [
        Block(torch.tensor(sorted(r), dtype=torch.int64), torch.tensor(sorted(c), dtype=torch.int64)) for r, c in drawn
    ]
    layer = nn.Conv2d(inputs, filters, 1).double()
    forms = forms_of(layer, BlockPlan("input_channel", {"": blocks}), "")
    assert bool(forms) == (not why_not_held(blocks, filters))
    mask = torch.zeros(filters, inputs, 1, 1)
    for r, c in drawn:
        for row in r:
            mask[row, c] = 1
    x = torch.randn(2, inputs, 3, 3, dtype=torch.float64)
    for form in forms.values():
        torch.testing.assert_close(form(x), F.conv2d(x, layer.weight * mask, layer.bias), rtol=1e-12, atol=1e-12)
