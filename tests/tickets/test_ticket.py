"""Tickets: what is saved comes back; what was touched is refused."""

from __future__ import annotations

import json
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lt_lightning.models.resnet import cifar_resnet
from lt_lightning.network_graph import traced
from lt_lightning.network_graph.graph import ChannelGraph
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.layers import find_layers
from lt_lightning.pruning.masks import digest
from lt_lightning.pruning.selection import prune
from lt_lightning.structures.base import LayerReport, StructureInput, Unstructured
from lt_lightning.structures.plan import Block, BlockPlan, ChannelPlan, Plan
from lt_lightning.structures.refill import Refill
from lt_lightning.tickets.making import make_ticket, ratios, structure_ticket
from lt_lightning.tickets.ticket import Ticket, make_card

Make = Callable[[], nn.Module]

PLANS: dict[str, Plan | None] = {
    "none": None,
    "channels": ChannelPlan({"0": torch.tensor([1, 3]), "1": torch.tensor([1, 3])}, {"3": torch.tensor([0, 2])}),
    "empty channels": ChannelPlan({"0": torch.tensor([], dtype=torch.int64)}, {}),
    "blocks": BlockPlan(
        "kernel_position",
        {
            "3": [Block(torch.tensor([0, 4]), torch.tensor([1, 2, 35])), Block(torch.tensor([5]), torch.tensor([7]))],
        },
    ),
    "whole channels": BlockPlan("input_channel", {"3": [Block(torch.arange(6), torch.tensor([0, 3]))]}),
}


def ticket_of(network: nn.Module, plan: Plan | None = None, trained: bool = True) -> Ticket:
    generator = torch.Generator().manual_seed(0)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    masks = {n: torch.rand(p.shape, generator=generator) > 0.5 for n, p in network.named_parameters() if p.ndim > 1}
    layers = {"0": LayerReport(36, 18, 20, 24, 16, "blocks", 0.75, "padded"), "3": LayerReport(9, 9, 9, 9, 1, "dense")}
    after = {name: value + 1 for name, value in state.items()} if trained else None
    return Ticket(masks, state, after, plan, layers, {"round": 2, "metrics": {"val/accuracy": 0.1}, "data": "digits"})


def same_tensors(a: Mapping[str, Tensor] | None, b: Mapping[str, Tensor] | None) -> bool:
    if a is None or b is None:
        return a is b
    return set(a) == set(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def same_plans(a: Plan | None, b: Plan | None) -> bool:
    if isinstance(a, ChannelPlan) and isinstance(b, ChannelPlan):
        return same_tensors(a.outputs, b.outputs) and same_tensors(a.inputs, b.inputs)
    if isinstance(a, BlockPlan) and isinstance(b, BlockPlan):
        blocks = [
            [
                (name, block.rows.tolist(), block.columns.tolist())
                for name, found in plan.blocks.items()
                for block in found
            ]
            for plan in (a, b)
        ]
        return a.granularity == b.granularity and list(a.blocks) == list(b.blocks) and blocks[0] == blocks[1]
    return a is b


def same(a: Ticket, b: Ticket) -> bool:
    return (
        same_tensors(a.masks, b.masks)
        and same_tensors(a.rewind, b.rewind)
        and same_tensors(a.trained, b.trained)
        and same_plans(a.plan, b.plan)
        and dict(a.layers) == dict(b.layers)
        and dict(a.card) == dict(b.card)
    )


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("plan", PLANS)
def test_what_is_saved_comes_back(conv_net: Make, tmp_path: Path, plan: str, trained: bool) -> None:
    ticket = ticket_of(conv_net(), PLANS[plan], trained)
    ticket.save(tmp_path / "round_01" / "refill")
    assert same(Ticket.load(tmp_path / "round_01" / "refill"), ticket)
    assert same(Ticket.load(tmp_path / "round_01" / "refill.safetensors"), ticket)
    assert sorted(path.name for path in (tmp_path / "round_01").iterdir()) == ["refill.json", "refill.safetensors"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=4).map(tuple), st.integers(0, 99))
def test_masks_of_any_size_take_a_bit_a_weight(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("ticket")
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5
    Ticket({"w": mask}, {"w": torch.ones(shape)}).save(folder / "t")
    loaded = Ticket.load(folder / "t").masks["w"]
    assert loaded.shape == mask.shape
    assert torch.equal(loaded, mask)
    assert load_file(folder / "t.safetensors")["mask/w"].numel() == -(-mask.numel() // 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_values_of_every_type_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    ticket = Ticket({}, {"w": torch.arange(6).to(dtype), "scalar": torch.tensor(3).to(dtype), "none": torch.empty(0)})
    ticket.save(tmp_path / "t")
    assert same_tensors(Ticket.load(tmp_path / "t").rewind, ticket.rewind)


def test_tied_weights_channels_last_and_odd_names(tmp_path: Path) -> None:
    shared = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    ticket = Ticket({"a/b.weight": shared > 0}, {"a/b.weight": shared, "c": shared, "ü": shared[0]})
    ticket.save(tmp_path / "refill 0.2")
    assert same(Ticket.load(tmp_path / "refill 0.2"), ticket)
    assert (tmp_path / "refill 0.2.json").is_file()


def test_a_card_comes_back_as_json_has_it(tmp_path: Path) -> None:
    card = {"metrics": {"loss": float("inf")}, "by_round": {10: "a", 2: "b"}, "pair": (1, 2), "schema": "mine"}
    Ticket({}, {"w": torch.ones(1)}, card=make_card(card)).save(tmp_path / "t")
    loaded = Ticket.load(tmp_path / "t").card
    assert loaded == {"metrics": {"loss": float("inf")}, "by_round": {"10": "a", "2": "b"}, "pair": [1, 2]}


def test_the_json_beside_it_says_density_by_layer(conv_net: Make, tmp_path: Path) -> None:
    ticket_of(conv_net(), PLANS["blocks"]).save(tmp_path / "t")
    card = json.loads((tmp_path / "t.json").read_text())
    assert card["layers"]["0"] == {
        "target_density": 0.5, "density": pytest.approx(24 / 36), "size": 36, "target": 18, "kept": 20, "executed": 24,
        "positions": 16, "form": "blocks", "retained_magnitude": 0.75, "note": "padded",
    }  # fmt: skip
    assert (card["round"], card["schema"], card["plan"]) == (2, 2, "blocks")


def test_overwriting_a_ticket_that_is_loaded(conv_net: Make, tmp_path: Path) -> None:
    """A round loads its ticket, adds its training and saves it in the same place."""
    ticket_of(conv_net(), trained=False).save(tmp_path / "t")
    loaded = Ticket.load(tmp_path / "t")
    after = {name: value * 2 for name, value in loaded.rewind.items()}
    loaded.with_training(after, best_epoch=3).save(tmp_path / "t")
    again = Ticket.load(tmp_path / "t")
    assert same_tensors(again.trained, after)
    assert same_tensors(again.rewind, loaded.rewind)
    assert again.card["best_epoch"] == 3
    assert loaded.trained is None


# Damage


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ticket]:
    path = tmp_path_factory.mktemp("saved") / "ticket.safetensors"
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    masks = {"0.weight": torch.rand(3, 1, 3, 3) > 0.5}
    ticket = Ticket(masks, network.state_dict(), None, ChannelPlan({"0": torch.tensor([0])}, {}), {}, {"round": 1})
    ticket.save(path)
    return path, ticket


def load_bytes(content: bytes, folder: Path) -> Ticket:
    path = folder / "other.safetensors"
    path.write_bytes(content)
    return Ticket.load(path)


def refused_or_same(content: bytes, folder: Path, ticket: Ticket) -> None:
    told = ""
    try:
        assert same(load_bytes(content, folder), ticket)
    except ValueError as error:
        told = str(error)
    assert "\n" not in told
    assert not told or "other.safetensors" in told


def test_a_flip_of_any_byte_is_noticed(saved: tuple[Path, Ticket]) -> None:
    path, ticket = saved
    whole = path.read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        refused_or_same(bytes(changed), path.parent, ticket)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_other_damage_is_noticed(saved: tuple[Path, Ticket], data: st.DataObject) -> None:
    path, ticket = saved
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + data.draw(st.integers(0, 12))] = data.draw(st.binary(max_size=12))
    refused_or_same(bytes(content), path.parent, ticket)


def test_every_truncation_is_refused(saved: tuple[Path, Ticket]) -> None:
    path, _ = saved
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        with pytest.raises(ValueError, match=f"^{path.parent}/"):
            load_bytes(whole[:length], path.parent)


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the card alone, and keeps the file well-formed."""
    tensors = load_file(path)
    content = path.read_bytes()
    (header,) = struct.unpack("<Q", content[:8])
    card = json.loads(json.loads(content[8 : 8 + header])["__metadata__"]["card"])
    change(card)
    save_file(tensors, path, metadata={"card": json.dumps(card)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.update(schema=1), "schema 1, "),
        (lambda card: card.update(schema=3), "schema 3, "),
        (lambda card: card.update(schema=10**4000), "schema 1000"),
        (lambda card: card.update(schema="new"), "schema version"),
        (lambda card: card.pop("schema"), "schema version"),
        (lambda card: card.update(round=3), "digest"),
        (lambda card: card.pop("digest"), "digest"),
        (lambda card: card["layers"].clear(), "digest"),
    ],
)
def test_an_altered_card_is_refused(
    conv_net: Make, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = tmp_path / "t.safetensors"
    ticket_of(conv_net()).save(path)
    rewrite(path, lambda card: None)
    assert same(Ticket.load(path), ticket_of(conv_net()))
    rewrite(path, change)
    with pytest.raises(ValueError, match=re.escape(message)) as told:
        Ticket.load(path)
    assert str(path) in str(told.value)
    assert len(str(told.value)) < len(str(path)) + 400


def test_an_altered_value_is_refused(conv_net: Make, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    ticket_of(conv_net()).save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="digest"):
        Ticket.load(path)


class Bomb:
    """What an attacker would pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("exploded").touch, ())


def test_other_files_are_no_tickets_and_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "t.safetensors"
    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        Ticket.load(tmp_path / "t")
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        Ticket.load(path)
    save_file({"weight": torch.ones(2)}, path, metadata={"card": "[1]"})
    with pytest.raises(ValueError, match="schema version"):
        Ticket.load(path)
    for content in (pickle.dumps(Bomb()), b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            Ticket.load(path)
    torch.save({"a": Bomb()}, path)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        Ticket.load(path)
    assert not (tmp_path / "exploded").exists()


# Applying


def test_applying_puts_values_in_and_pruned_weights_at_zero(conv_net: Make, tmp_path: Path) -> None:
    ticket_of(conv_net()).save(tmp_path / "t")
    ticket = Ticket.load(tmp_path / "t")
    assert ticket.trained is not None
    for kind, state in (("rewind", ticket.rewind), ("trained", ticket.trained)):
        network = conv_net()
        parameters = [id(parameter) for parameter in network.parameters()]
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(9)
        assert ticket.apply(network, kind) is network  # type: ignore[arg-type]
        assert [id(parameter) for parameter in network.parameters()] == parameters
        for name, value in network.state_dict().items():
            expected = torch.where(ticket.masks[name], state[name], 0) if name in ticket.masks else state[name]
            assert torch.equal(value, expected)
    assert same(ticket, ticket_of(conv_net()))


def test_an_untrained_ticket_has_no_trained_values(conv_net: Make) -> None:
    with pytest.raises(ValueError, match="trained"):
        ticket_of(conv_net(), trained=False).apply(conv_net(), "trained")


def test_a_ticket_for_another_network_names_what_differs(conv_net: Make) -> None:
    ticket = ticket_of(conv_net())
    other = nn.Sequential(nn.Conv2d(1, 4, 5, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"\bSequential\b") as told:
        ticket.apply(other)
    for part in (
        "it misses 3.bias",
        "it has besides 4.bias, 4.num_batches_tracked, 4.running_mean, 4.running_var, 4.weight and 2 more",
        "it has in another shape 0.weight (4, 1, 3, 3) instead of (4, 1, 5, 5)",
    ):
        assert part in str(told.value)
    assert "\n" not in str(told.value)
    assert same_tensors(other.state_dict(), before)


# Structuring


def subject_of(network: nn.Module, example: Tensor) -> StructureInput:
    weights = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    layers = find_layers(network, example)
    names = [layer.weight for layer in layers.values() if not layer.roles & {"stem", "classifier"}]
    masks = prune(
        {n: torch.ones_like(weights[n], dtype=torch.bool) for n in names}, {n: weights[n].abs() for n in names}, 0.4
    )
    return StructureInput(TracedNetwork(network, example), masks, weights)


def test_a_structured_ticket_says_what_it_is() -> None:
    torch.manual_seed(0)
    network = cifar_resnet(8, 3, channels=1, width=8)
    example = torch.zeros(1, 1, 8, 8)
    subject = subject_of(network, example)
    rewind = {name: value + 1 for name, value in network.state_dict().items()}
    facts = {"data": "digits", "seed": 4, "round": 2, "colour": "blue"}
    ticket = make_ticket("plain", Unstructured(), subject, rewind, facts)
    assert {key: dict(ticket.card)[key] for key in facts} == facts
    trained = ticket.with_training(network.state_dict(), metrics={"val/accuracy": 0.9})
    refill = structure_ticket(trained, "refill", Refill(round_to=1), TracedNetwork(network, example))
    expected = Refill(round_to=1)(subject)
    assert same_tensors(refill.masks, expected.masks)
    assert same_plans(refill.plan, expected.plan)
    assert same_tensors(refill.rewind, rewind)
    assert refill.trained is None
    assert "metrics" not in refill.card  # those of the unstructured ticket
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    found = ratios(expected.layers, [layer.name for layer in subject.prunable], expected.masks, sizes)
    assert {key: dict(refill.card)[key] for key in vars(found)} == vars(found)
    assert refill.card["mask_digest"] == digest(expected.masks)
    assert {key: dict(refill.card)[key] for key in ("structure", *facts)} == {"structure": "refill", **facts}
    assert refill.card["prunable"] == [layer.name for layer in subject.prunable]


def test_a_network_that_is_known_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = cifar_resnet(8, 3, channels=1, width=8)
    example = torch.zeros(1, 1, 8, 8)
    subject = subject_of(network, example)
    looked: list[str] = []

    def refill(known: traced.TracedNetwork) -> Ticket:
        known_subject = replace(subject, traced=known)
        return make_ticket("refill", Refill(round_to=1), known_subject, network.state_dict())

    def look(what: str, of: Callable[..., Any]) -> Callable[..., Any]:
        def looking(*arguments: Any) -> Any:
            looked.append(what)
            return of(*arguments)

        return looking

    expected = refill(subject.traced)
    monkeypatch.setattr(traced, "find_layers", look("layers", find_layers))
    monkeypatch.setattr(traced, "ChannelGraph", look("channels", ChannelGraph))
    known = traced.TracedNetwork(network, example)
    assert same(refill(known), expected)
    assert same(refill(known), expected)
    assert sorted(looked) == ["channels", "layers"]


def test_structuring_an_untrained_ticket_is_refused(conv_net: Make) -> None:
    traced = TracedNetwork(conv_net(), torch.zeros(1, 1, 6, 6))
    with pytest.raises(ValueError, match=r"'refill' .*trained"):
        structure_ticket(ticket_of(conv_net(), trained=False), "refill", Refill(), traced)


def test_structuring_by_saliency_needs_gradients(conv_net: Make) -> None:
    traced = TracedNetwork(conv_net(), torch.zeros(1, 1, 6, 6))
    with pytest.raises(ValueError, match=r"^gradients=None: .*'refill'"):
        structure_ticket(ticket_of(conv_net()), "refill", Refill(score="saliency"), traced)
