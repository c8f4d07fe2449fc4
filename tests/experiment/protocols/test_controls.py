"""Controls of tickets: what they share with the ticket and what not, and that they are results of their own."""

from __future__ import annotations

import csv
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import nn

from lt_lightning.execution.cost import flops
from lt_lightning.execution.execute import execute
from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run import run_task as retraining
from lt_lightning.experiment.run.costs import costs_of
from lt_lightning.experiment.run.job import Job
from lt_lightning.models.mobilenet import MobileNet
from lt_lightning.models.resnet import cifar_resnet
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.evaluation import largest_difference
from lt_lightning.pruning.masks import Masks
from lt_lightning.pruning.rewinding import Restart
from lt_lightning.results.job_record import Task
from lt_lightning.results.records import Result
from lt_lightning.structures.base import Structure, StructureInput, Unstructured
from lt_lightning.structures.nm import NM
from lt_lightning.structures.plan import BlockPlan
from lt_lightning.structures.refill import Refill
from lt_lightning.structures.regroup import Regroup
from lt_lightning.tickets.control_tickets import (
    nearest_width,
    randomly_masked,
    reinitialised,
    shuffled,
    small_dense,
)
from lt_lightning.tickets.making import make_ticket
from lt_lightning.tickets.ticket import Ticket
from tests.runs import REFILL, SMALL, run_of

Compose = Callable[..., DictConfig]
EXAMPLE = torch.zeros(1, 3, 8, 8)
STRUCTURES: dict[str, Structure] = {
    "stream": Refill(round_to=1),
    "inner": Refill(round_to=1, coupling="inner"),
    "independent": Refill(round_to=1, coupling="independent"),
    "regroup": Regroup(group_size=4, clustering="random"),
    "regroup_channels": Regroup(group_size=4, granularity="input_channel", clustering="random"),
    "nm": NM(),
}


def network(seed: int = 0, width: int = 8) -> nn.Module:
    torch.manual_seed(seed)
    return cifar_resnet(depth=8, width=width, classes=5, channels=3)


def ticket_of(structure: Structure, net: nn.Module | None = None, density: float = 0.5) -> Ticket:
    """A ticket of a random unstructured mask; the classifier and the stem are not pruned."""
    net = net or network()
    traced = TracedNetwork(net, EXAMPLE)
    layers = list(traced.layers.values())[1:-1]
    generator = torch.Generator().manual_seed(0)
    masks: Masks = {layer.weight: torch.rand(layer.shape, generator=generator) < density for layer in layers}
    values = {name: value.detach().clone() for name, value in net.state_dict().items()}
    card = {"data": "d", "model": "m", "seed": 0, "round": 1}
    return make_ticket("it", structure, StructureInput(traced, masks, values), values, card)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def executed_flops(ticket: Ticket, net: nn.Module) -> tuple[int, float]:
    """Operations of the network that executes a ticket, and how much it differs from the masked one."""
    masked = ticket.apply(net).eval()
    made = execute(masked, ticket.plan, ticket.masks, EXAMPLE)
    assert made is not None
    images = torch.randn(4, 3, 8, 8, generator=generator())
    return flops(made.network.eval(), EXAMPLE), largest_difference(masked, made.network, images)


def counts(masks: Masks) -> dict[str, int]:
    return {name: int(mask.count_nonzero()) for name, mask in masks.items()}


@pytest.mark.parametrize("name", [name for name in STRUCTURES if name != "nm"])
def test_a_shuffled_ticket_is_executed_at_the_same_cost_and_keeps_other_weights(name: str) -> None:
    ticket = ticket_of(STRUCTURES[name])
    control = shuffled(ticket, network(), EXAMPLE, generator())
    before, after = executed_flops(ticket, network()), executed_flops(control, network())
    assert before[0] == after[0] < flops(network(), EXAMPLE)
    assert max(before[1], after[1]) < 1e-4
    assert counts(control.masks) == counts(ticket.masks)
    pruned = [key for key, mask in ticket.masks.items() if mask.dim() > 1 and not mask.all()]
    assert any(not torch.equal(control.masks[key], ticket.masks[key]) for key in pruned)
    assert control.rewind is ticket.rewind
    assert {key: control.card[key] for key in ("density", "flops_ratio")} == {
        key: ticket.card[key] for key in ("density", "flops_ratio")
    }


def test_a_shuffle_follows_the_channels_that_depthwise_layers_share() -> None:
    def mobile() -> nn.Module:
        torch.manual_seed(0)
        return MobileNet(classes=5, width=4)

    ticket = ticket_of(Refill(round_to=1), mobile())
    control = shuffled(ticket, mobile(), EXAMPLE, generator())
    before, after = executed_flops(ticket, mobile()), executed_flops(control, mobile())
    assert before[0] == after[0]
    assert after[1] < 1e-4


@pytest.mark.parametrize("name", ["regroup", "regroup_channels"])
def test_shuffled_blocks_are_where_the_mask_is(name: str) -> None:
    control = shuffled(ticket_of(STRUCTURES[name]), network(), EXAMPLE, generator())
    assert isinstance(control.plan, BlockPlan)
    assert control.plan.blocks
    for layer, blocks in control.plan.blocks.items():
        mask = control.masks[f"{layer}.weight"]
        matrix = mask if control.plan.granularity == "input_channel" else mask.flatten(1)
        drawn = torch.zeros_like(matrix)
        for block in blocks:
            drawn[block.rows[:, None], block.columns] = True
        assert not (matrix & ~drawn).any()


def test_a_shuffle_of_n_m_keeps_two_of_four() -> None:
    wide = network(width=32)
    ticket = ticket_of(NM(), wide)
    assert ticket.plan is not None
    control = shuffled(ticket, wide, EXAMPLE, generator())
    changed = 0
    for name, mask in control.masks.items():
        if mask.shape[1] % 4 == 0:
            assert (mask.reshape(len(mask), -1, 4, *mask.shape[2:]).sum(2) == 2).all()
            changed += not torch.equal(mask, ticket.masks[name])
    assert changed


@pytest.mark.parametrize("name", [*STRUCTURES, "unstructured"])
def test_a_randomly_masked_control_has_the_layers_densities_and_no_structure(name: str, tmp_path: Path) -> None:
    structure = STRUCTURES.get(name, Unstructured())
    ticket = ticket_of(structure)
    control = randomly_masked(ticket, network(), EXAMPLE, generator())
    assert control.plan is None
    assert counts(control.masks) == {
        f"{layer}.weight": counts(ticket.masks)[f"{layer}.weight"] for layer in prunable(ticket)
    }
    assert control.card["flops_ratio"] == 1
    assert control.card["target_density"] == ticket.card["target_density"]
    total = sum(mask.numel() for mask in control.masks.values())
    assert control.card["density"] == pytest.approx(sum(counts(control.masks).values()) / total)
    # Independent of the ticket: of what it keeps the control keeps no more than the density, but for chance.
    for key, mask in control.masks.items():
        density = float(mask.float().mean())
        if mask.numel() > 1000 and density < 1:
            overlap = float(mask[ticket.masks[key]].float().mean())
            assert overlap == pytest.approx(density, abs=5 * math.sqrt(density * (1 - density) / int(mask.sum())))
    control.save(tmp_path / "control")
    assert counts(Ticket.load(tmp_path / "control").masks) == counts(control.masks)


def prunable(ticket: Ticket) -> list[str]:
    names: list[str] = ticket.card["prunable"]
    return names


def test_a_reinitialised_control_has_the_masks_and_the_plan_and_other_values() -> None:
    ticket = ticket_of(STRUCTURES["stream"])
    other = network(seed=5)
    control = reinitialised(ticket, other)
    assert (control.masks, control.plan, control.trained) == (ticket.masks, ticket.plan, None)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(control.rewind[name], value, rtol=0, atol=0)
    assert not torch.equal(control.rewind["stem.conv.weight"], ticket.rewind["stem.conv.weight"])
    other.get_parameter("stem.conv.weight").data.zero_()
    assert control.rewind["stem.conv.weight"].any()  # by value


def test_a_small_dense_control_has_the_width_whose_flops_are_nearest() -> None:
    full = network(width=16)
    ticket = ticket_of(STRUCTURES["stream"], full)
    control = small_dense(ticket, lambda width: network(3, width), 16, EXAMPLE)
    target = flops(full, EXAMPLE) * ticket.card["flops_ratio"]
    costs = {width: flops(network(width=width), EXAMPLE) for width in range(1, 17)}
    assert control.card["width"] == min(costs, key=lambda width: abs(costs[width] - target))
    assert control.card["width"] < 16
    assert control.card["flops_ratio"] == pytest.approx(costs[control.card["width"]] / costs[16])
    small = network(3, control.card["width"])
    assert control.card["params_ratio"] == count(small) / count(full)
    assert (control.masks, control.plan) == ({}, None)
    control.apply(small)


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_nearest_width_is_that_of_a_search_through_all() -> None:
    for target in range(0, 1200, 7):
        widths = range(1, 33)
        best = min(abs(width**2 - target) for width in widths)
        assert abs(nearest_width(lambda width: width**2, target, 32) ** 2 - target) == best


# In a job

OPTIONS = (
    *SMALL, *REFILL, "trainer.max_epochs=3", "pruning.rounds=2", "pruning.rewind=2ep", "retrain_rounds=[2]",
    "checkpoint.seconds=0",
)  # fmt: skip
ALL = "controls=[reinit,shuffle,random,small_dense]"
CONTROLS = {("unstructured", control) for control in ("reinit", "random")} | {
    ("refill", control) for control in ("reinit", "shuffle", "random", "small_dense")
}


def summary(root: Path) -> list[dict[str, str]]:
    with (root / "summary.csv").open() as file:
        return list(csv.DictReader(file))


def trained(printed: str) -> list[str]:
    """What a job says it has trained."""
    lines = " ".join(printed.split()).split("[")
    return [
        re.split(", (?:density|validation)", line.split("] ")[1])[0]
        for line in lines
        if ", validation accuracy" in line
    ]


def test_controls_are_results_of_their_own_and_found_again(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without = run_of(composed(*OPTIONS))
    capsys.readouterr()
    config = composed(*OPTIONS, ALL)
    results = run_of(config)
    first = capsys.readouterr().out
    assert sorted(trained(first)) == sorted(f"{control} of {name}, round 2 of 2" for name, control in CONTROLS)
    assert [result for result in results if not result.control] == without
    assert {(r.structure, r.control) for r in results if r.control} == CONTROLS
    assert all(r.round == 2 and r.dense_accuracy == results[0].accuracy for r in results if r.control)
    root = tmp_path / "runs"
    assert {(row["structure"], row["control"]) for row in summary(root) if row["control"]} == CONTROLS
    assert sum(row["control"] == "" for row in summary(root)) == len(without)
    rows = [line.split()[1] for line in first.splitlines() if "%" in line and line.split()[0] == "2"]
    assert rows == ["unstructured", "reinit", "random", "refill", "reinit", "shuffle", "random", "small_dense"]
    _check_tickets(results, Experiment.from_config(config))

    assert run_of(config) == results
    assert trained(capsys.readouterr().out) == []


def _check_tickets(results: list[Result], experiment: Experiment) -> None:
    last = [result for result in results if result.round == 2]
    tickets = {(r.structure, r.control): Ticket.load(experiment.root / r.place / "ticket") for r in last}
    rewound = Restart.load(experiment.search_folder / "restart.pt").point.network
    initial = experiment.network(experiment.config.seed).state_dict()
    for result in last:
        ticket = tickets[result.structure, result.control]
        assert ticket.trained is not None
        if result.control in ("", "shuffle", "random"):
            assert all(torch.equal(value, rewound[name]) for name, value in ticket.rewind.items())
        elif result.control == "reinit":
            for values in (rewound, initial):
                assert not torch.equal(ticket.rewind["stem.conv.weight"], values["stem.conv.weight"])
        if result.structure == "refill":  # of three epochs two lie before the rewind point
            assert _epochs(experiment.root / result.place) == (3 if result.control in ("reinit", "small_dense") else 1)
    reinit, original = tickets["refill", "reinit"].masks, tickets["refill", ""].masks
    assert all(torch.equal(reinit[name], mask) for name, mask in original.items())
    seeds = [ticket.card["control_seed"] for (_, control), ticket in tickets.items() if control]
    assert len(set(seeds)) == len(seeds)
    by_control = {result.control: result for result in last if result.structure == "refill"}
    assert by_control["shuffle"].executed == by_control[""].executed < 1
    assert by_control["random"].executed == 1
    assert math.isnan(by_control["random"].retained_magnitude)
    # Dense 3, the two rounds 1 each, the ticket itself 1; a control from initial values trains 3 of its own alone.
    totals = {"": 6, "shuffle": 6, "random": 6, "reinit": 3, "small_dense": 3}
    assert {control: result.total_epochs for control, result in by_control.items()} == totals
    plain = {result.control: result.total_epochs for result in last if result.structure == "unstructured"}
    assert plain == {"": 5, "random": 5, "reinit": 3}
    assert by_control["small_dense"].executed == pytest.approx(by_control["small_dense"].density)


def _epochs(folder: Path) -> int:
    with (folder / "metrics.csv").open() as file:
        return sum(row["val/accuracy"] != "" for row in csv.DictReader(file))


def test_controls_of_a_group_aware_search_and_their_folders(composed: Compose) -> None:
    def tasks(*overrides: str) -> tuple[Task, ...]:
        return Job.of(composed(*OPTIONS, *overrides)).tasks

    def controls(*overrides: str) -> list[Task]:
        return [task for task in tasks(*overrides) if task.kind is not None and task.kind.control]

    assert controls() == []
    (task,) = controls("controls=[reinit]", "pruning.next_round_from=refill")
    assert task.source == tasks("pruning.next_round_from=refill")[0].parts[2]
    before, after = controls(ALL), controls(ALL, "structure.refill.extra=0.1")
    assert len(before) == len(after) == 6
    assert {t.folder for t in before} & {t.folder for t in after} == {
        t.folder for t in before if t.kind is not None and t.kind.structure == "unstructured"
    }
    assert len({t.folder for t in before} | {t.folder for t in controls(ALL, "execution=masked")}) == 12


@pytest.mark.parametrize(("value", "named"), [("[again]", "['again']"), ("reinit", "'reinit'"), ("true", "true")])
def test_unknown_controls_are_refused(value: str, named: str, composed: Compose) -> None:
    with pytest.raises(ValueError, match=rf"^controls={re.escape(named)}: "):
        run_of(composed(*OPTIONS, f"controls={value}"))


def test_a_network_without_a_width_has_no_small_dense_control(composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.width"):
        run_of(composed(*OPTIONS, "controls=[small_dense]", "~model.width"))
    assert not list((tmp_path / "runs").rglob("*.safetensors"))


def test_controls_whose_ticket_cannot_be_made_hold_up_nothing(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_ticket(*_: Any) -> Ticket:
        raise RuntimeError("no such ticket")

    config = composed(*OPTIONS, "controls=[reinit]")
    with monkeypatch.context() as patch:
        patch.setattr(retraining, "_structured", no_ticket)
        with pytest.raises(RuntimeError, match="no such ticket"):
            run_of(config)
    labels = trained(capsys.readouterr().out)
    assert "reinit of unstructured, round 2 of 2" in labels
    assert "reinit of refill, round 2 of 2" not in labels
    results = run_of(config)
    assert {(r.structure, r.control) for r in results if r.control} == {
        ("unstructured", "reinit"),
        ("refill", "reinit"),
    }


def test_the_dense_network_is_retrained_as_tickets_are(composed: Compose, tmp_path: Path) -> None:
    root = tmp_path / "runs"

    def again(mode: str) -> tuple[Ticket, Ticket]:
        results = run_of(composed(*SMALL, "structure=[]", "grown=[dense]", f"pruning.mode={mode}"))
        dense, control = (result for result in results if result.structure == "dense" or result.control)
        assert (control.control, control.round) == ("dense_cycles", 1)
        assert (dense.total_epochs, control.total_epochs) == (2, 3)
        one, other = (Ticket.load(root / result.place / "ticket") for result in (dense, control))
        assert all(mask.all() for mask in other.masks.values())
        assert other.trained is not None
        assert all(bool((other.trained[name] != value).any()) for name, value in other.rewind.items())
        return one, other

    dense, control = again("weights")
    assert all(torch.equal(control.rewind[name], value) for name, value in dense.rewind.items())
    dense, control = again("learning_rate")
    assert dense.trained is not None
    assert all(torch.equal(control.rewind[name], value) for name, value in dense.trained.items())


@pytest.mark.parametrize("execution", ["shrunk", "masked"])
def test_soft_labels_of_the_dense_network_train_tickets_and_controls(
    execution: str, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within the training and started again, as if nothing had happened."""
    root = tmp_path / "runs"
    options = (*SMALL, *REFILL, f"execution={execution}", "checkpoint.seconds=0", "trainer.deterministic=true")
    plain = run_of(composed(*options))
    without = {each.structure: Ticket.load(root / each.place / "ticket").trained or {} for each in plain}
    asked = (*options, "retraining.distil=0.5", "grown=[dense]")

    def made() -> list[Ticket]:
        results = [result for result in run_of(composed(*asked)) if result not in plain]
        assert [str(result.kind) for result in results] == ["refill", "unstructured (dense_cycles control)"]
        return [Ticket.load(root / result.place / "ticket") for result in results]

    whole = made()
    for folder in root.glob("*/round_*/*-*"):
        shutil.rmtree(folder)
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "own_callbacks", lambda _: [Crash(3)])
        with pytest.raises(ExceptionGroup):
            run_of(composed(*asked))
    assert len(list(root.glob("*/round_*/*/checkpoints/*.pt"))) >= 2
    for before, after, unlike in zip(whole, made(), (plain[-1], plain[0]), strict=True):
        assert before.card["distillation"] == {"share": 0.5, "temperature": 4.0}
        assert before.trained is not None
        assert after.trained is not None
        assert all(torch.equal(after.trained[name], value) for name, value in before.trained.items())
        assert not torch.equal(without[unlike.structure]["classifier.weight"], before.trained["classifier.weight"])


def test_a_small_dense_network_is_trained_for_as_many_epochs_as_the_ticket_and_its_ancestors(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "runs"
    options = (
        *SMALL, *REFILL, "data.limit=0.1", "trainer.max_epochs=3", "pruning.rewind=1ep", "pruning.monitor=null",
        "trainer.deterministic=true", "grown=[refill]", "controls=[small_dense_cycles]", "report=false",
    )  # fmt: skip
    job = Job.of(composed(*options))
    expected = {task.folder.name: Experiment.from_config(job.config).epochs_of(task) for task in job.tasks[1:]}
    results = {(each.structure, each.control): each for each in run_of(composed(*options))}
    for name, epochs in (("refill", 3 + 2 + 2), ("refill_grown", 3 + 2)):
        ticket, control = results[name, ""], results[name, "small_dense_cycles"]
        assert ticket.total_epochs == control.total_epochs == epochs == expected[Path(control.place).name]
        with (root / control.place / "metrics.csv").open() as file:
            rates = [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]]
        whole = rates[:3]
        assert rates == pytest.approx(whole + whole[1:] * ((epochs - 3) // 2))
    place = root / results["refill", "small_dense_cycles"].place
    before = Ticket.load(place / "ticket").trained or {}
    shutil.rmtree(place)
    for step in (4, 6):  # in the second training, and as the third begins
        with monkeypatch.context() as patch:
            patch.setattr(Experiment, "own_callbacks", lambda _, step=step: [Crash(step)])
            with pytest.raises(ConnectionAbortedError):
                run_of(composed(*options, "checkpoint.seconds=0"))
    run_of(composed(*options))
    after = Ticket.load(place / "ticket").trained or {}
    assert before
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("source", ["refill", "unstructured"])
@pytest.mark.parametrize("mode", ["weights", "none"])
def test_cycles_follow_whatever_the_search_goes_on_from_and_however(
    mode: str, source: str, composed: Compose, tmp_path: Path
) -> None:
    results = run_of(
        composed(
            *SMALL, *REFILL, "data.limit=0.1", "trainer.max_epochs=3", "pruning.rewind=1ep", "pruning.monitor=null",
            "controls=[small_dense_cycles]", "report=false", f"pruning.mode={mode}",
            f"pruning.next_round_from={source}",
        )
    )  # fmt: skip
    ticket, control = ([each for each in results if each.structure == "refill" and bool(each.control) == which][-1]
                       for which in (False, True))  # fmt: skip
    assert ticket.total_epochs == control.total_epochs == 3 + 2 * (1 if source == "refill" else 2)
    with (tmp_path / "runs" / control.place / "metrics.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]]
    goes_back = len(set(rates[3:])) > 1
    assert goes_back is (mode == "weights")


class Crash(pl.Callback):
    """Raises in a training's step of that number."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self._step:
            raise ConnectionAbortedError("crashed")


def test_a_longer_retraining_stretches_the_schedule_for_tickets_and_the_dense_network(
    composed: Compose, tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    longer = ("retraining.length=2", "grown=[dense]", "controls=[reinit]")
    results = run_of(composed(*SMALL, *REFILL, *longer))
    dense = run_of(composed(*SMALL, "trainer.max_epochs=4", "structure=[]", "pruning.rounds=0"))[0]

    def rates(folder: Path) -> list[float]:
        with (folder / "metrics.csv").open() as file:
            return [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]]

    retrained = {(each.structure, each.control): each for each in results if each.place.count("-") > 3}
    assert set(retrained) == {
        ("refill", ""), ("unstructured", "dense_cycles"), ("refill", "reinit"), ("unstructured", "reinit"),
    }  # fmt: skip
    search = root / results[0].search
    point = Restart.load(search / "restart.pt").point
    for (_, control), result in retrained.items():
        assert rates(root / result.place) == rates(root / dense.search)
        assert result.total_epochs == {"": 7, "dense_cycles": 6, "reinit": 4}[control]
        if control != "reinit":
            values = Ticket.load(root / result.place / "ticket").rewind
            assert all(torch.equal(value, point.network[name]) for name, value in values.items())
    job = Job.of(composed(*SMALL, *REFILL, *longer, f"paths.root={tmp_path / 'other'}"))
    assert [cost.epochs for cost in costs_of(job)] == [3, 4, 4, 4, 4]


@pytest.mark.parametrize(
    ("override", "told"), [("retraining.length=0.2", "0.2"), ("pruning.mode=none", "2"), ("retraining.length=0", "0")]
)
def test_lengths_that_cannot_be_are_refused(override: str, told: str, composed: Compose) -> None:
    with pytest.raises(ValueError, match=rf"^retraining\.length={re.escape(told)}(\.0)?: "):
        Experiment.from_config(composed(*SMALL, *REFILL, "retraining.length=2", override))
