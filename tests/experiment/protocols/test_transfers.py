"""Tickets of one data set retrained on another: found, fitted, trained as long as the job's own, told apart."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from lt_lightning.data.tensors import Pairs, TensorData
from lt_lightning.experiment.run.job import Job
from lt_lightning.pruning.rewinding import Restart, RewindPoint
from lt_lightning.results.job_record import TicketKind
from lt_lightning.results.records import Result
from lt_lightning.results.status import tasks_under
from lt_lightning.storage.layout import RoundFacts, write_rounds
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.retraining import restart_for
from tests.runs import REFILL, SMALL, run_of

Compose = Callable[..., DictConfig]
COLOURS = (
    "data._target_=colours.Colours", "labels.data=colours", "dataset.classes=4", "dataset.channels=3",
    "dataset.size=6", "data.validation=40",
)  # fmt: skip


class Colours(TensorData):
    """Images of one channel bright, or none: three channels, four classes, 6x6 pixels."""

    name, classes, channels, size = "colours", 4, 3, 6
    mean, std, files = (0.3, 0.3, 0.3), (0.3, 0.3, 0.3), None

    def _read(self) -> tuple[Pairs, Pairs]:
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(640) % 4
        images = torch.randint(100, (640, 3, 6, 6), generator=generator, dtype=torch.uint8)
        for channel in range(3):
            images[labels == channel, channel] += 100
        return Pairs(images[:600], labels[:600]), Pairs(images[600:], labels[600:])


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("colours")
    module.Colours = Colours  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "colours", module)


def test_tickets_of_digits_are_retrained_on_colours(composed: Compose, tmp_path: Path) -> None:
    first = run_of(composed(*SMALL, *REFILL))
    root, source = tmp_path / "runs", first[0].search
    own = run_of(composed(*SMALL, *REFILL, *COLOURS))
    with_digits = composed(*SMALL, *REFILL, *COLOURS, f"transfer.from={root / source}")
    results = run_of(with_digits)
    kinds = [
        TicketKind("dense"), TicketKind("unstructured"), TicketKind("refill"),
        TicketKind("unstructured", origin="digits"), TicketKind("refill", origin="digits"),
    ]  # fmt: skip
    assert [result.kind for result in results] == kinds
    assert [result.place for result in results[:3]] == [result.place for result in own]
    with (root / "summary.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["data"] == "colours"]
    assert sorted((row["structure"], row["origin"]) for row in rows) == sorted(
        (kind.structure, kind.origin) for kind in kinds
    )

    theirs = {result.structure: _ticket(root, result) for result in first}
    for result in results[3:]:
        _check_lineage(_ticket(root, result), theirs["unstructured"], source)
        assert _trained_epochs(root / result.place) == _trained_epochs(root / results[2].place)
    refilled, original = _ticket(root, results[4]), theirs["refill"]
    for name, mask in original.masks.items():  # the same structure from the same masks and weights
        if refilled.masks[name].shape == mask.shape:
            assert torch.equal(refilled.masks[name], mask), name
    assert results[4].density == pytest.approx(first[2].density)
    # Dense 2, the round 1; then 1 more alone, here as there.
    assert [result.total_epochs for result in results] == [2, 3, 4, 4, 4]

    assert [result.place for result in run_of(with_digits)] == [result.place for result in results]
    job = Job.of(with_digits)
    assert Job.of(composed(*SMALL, *REFILL, *COLOURS, "transfer.from=others")).tasks == job.tasks
    job.record().save(root / "jobs" / "now")
    listed = {task.folder for task in tasks_under(root) if task.folder.is_relative_to(root / results[0].search)}
    assert listed == {task.folder for task in job.tasks}


def _trained_epochs(folder: Path) -> int:
    with (folder / "metrics.csv").open() as file:
        return sum(row["val/accuracy"] != "" for row in csv.DictReader(file))


def _ticket(root: Path, result: Result) -> Ticket:
    return Ticket.load(root / result.place / "ticket")


def _check_lineage(ticket: Ticket, origin: Ticket, source: str) -> None:
    replaced = ["stem.conv.weight", "classifier.weight", "classifier.bias"]
    assert ticket.card["transferred_from"] == {
        "search": source, "data": "digits", "model": "resnet8", "seed": 0, "round": 1, "replaced": replaced,
    }  # fmt: skip
    assert {key: ticket.card[key] for key in ("data", "round", "origin", "starts_from")} == {
        "data": "colours", "round": 1, "origin": "digits", "starts_from": "schedule",
    }  # fmt: skip
    for name, value in origin.rewind.items():
        assert (ticket.rewind[name].shape != value.shape) == (name in replaced)
        assert name in replaced or torch.equal(ticket.rewind[name], value)
    assert ticket.trained is not None


def test_a_ticket_from_elsewhere_has_no_momentum_but_the_same_place_in_the_schedule() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    parameter.grad = torch.ones(2)
    optimizer.step()
    schedule.step()
    module = torch.nn.Module()
    module.weight = parameter
    restart = Restart("weights", RewindPoint.capture(module, [optimizer], [schedule]), 3, [[0.1]])
    assert restart_for(Ticket({}, {}), restart) is restart
    assert restart_for(Ticket({}, {}, card={"starts_from": "initial"}), restart) is None
    elsewhere = restart_for(Ticket({}, {}, card={"starts_from": "schedule"}), restart)
    assert elsewhere is not None
    optimizer.step()
    schedule.step()
    elsewhere.restore([optimizer], [schedule])
    assert not optimizer.state_dict()["state"]
    assert (schedule.last_epoch, optimizer.param_groups[0]["lr"], elsewhere.epochs) == (1, 0.5, 3)


def _a_search(root: Path, name: str, config: DictConfig, rounds: int = 1) -> Path:
    """What of a search is looked at to tell whether its tickets can be taken."""
    folder = root / name
    folder.mkdir(parents=True)
    for number in range(1, rounds + 1):
        place = folder / f"round_{number:02d}" / "unstructured"
        place.mkdir(parents=True)
        (place / "ticket.safetensors").touch()
    write_rounds(
        folder,
        [
            RoundFacts(round=number, density=0.8**number, best_epoch=0, metrics={}, train_seconds=1.0)
            for number in range(rounds + 1)
        ],
    )
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    return folder


def test_others_are_searches_alike_on_other_data_that_are_trained_far_enough(composed: Compose, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for name, rounds, options in (
        ("alike", 1, COLOURS),
        ("untrained", 0, COLOURS),
        ("seed", 1, (*COLOURS, "seed=1")),
        ("rate", 1, (*COLOURS, "pruning.rate=0.3")),
        ("model", 1, (*COLOURS, "model=resnet14")),
        ("width", 1, (*COLOURS, "model.width=16")),
        ("epochs", 1, (*COLOURS, "trainer.max_epochs=3")),
        ("learning rate", 1, (*COLOURS, "classifier.learning_rate=0.9")),
        ("limit", 1, (*COLOURS, "data.limit=0.1")),
        ("same", 1, ()),
    ):
        _a_search(root, name, composed(*SMALL, *REFILL, *options), rounds)
    tasks = Job.of(composed(*SMALL, *REFILL, "transfer.from=others")).tasks
    assert [task.source for task in tasks[2:]] == [root / "alike" / "round_01" / "unstructured"] * 2
    assert [task.kind for task in tasks] == [
        None, TicketKind("refill"),
        TicketKind("unstructured", origin="colours"), TicketKind("refill", origin="colours"),
    ]  # fmt: skip


def test_a_ticket_of_other_data_with_as_many_classes_gets_a_classifier_of_its_own(
    composed: Compose, tmp_path: Path
) -> None:
    """The ten digits are not these ten."""
    options = (*SMALL, "structure=[filters]")
    source = tmp_path / "runs" / run_of(composed(*options))[0].search
    same = run_of(composed(*options, "data.limit=0.1", f"transfer.from={source}"))
    other = run_of(composed(*options, "labels.data=letters", f"transfer.from={source}"))
    replaced = [
        _ticket(tmp_path / "runs", results[-1]).card["transferred_from"]["replaced"] for results in (same, other)
    ]
    assert replaced == [[], ["classifier.weight", "classifier.bias"]]


def test_others_are_those_that_are_there_when_the_job_begins(composed: Compose, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    config = composed(*SMALL, *REFILL, "transfer.from=others")
    assert [task.kind for task in Job.of(config).tasks] == [None, TicketKind("refill")]
    first = _a_search(root, "alike", composed(*SMALL, *REFILL, *COLOURS))
    job = Job.of(config)
    _a_search(root, "decay", composed(*SMALL, *REFILL, *COLOURS, "classifier.weight_decay=0.01"))
    assert job.config.transfer["from"] == [str(first)]
    assert config.transfer["from"] == "others"
    assert Job.of(job.config).tasks == job.tasks


@pytest.mark.parametrize("asked", ["others", "[{root}/decay,{root}/alike]"])
def test_two_sources_that_no_table_could_tell_apart_are_refused(asked: str, composed: Compose, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    _a_search(root, "alike", composed(*SMALL, *REFILL, *COLOURS))
    # Weight decay may differ: presets have a value for each data set.
    _a_search(root, "decay", composed(*SMALL, *REFILL, *COLOURS, "classifier.weight_decay=0.01"))
    with pytest.raises(ValueError, match=rf"transfer\.from={root}/(alike|decay): .*colours.*{root}/(alike|decay)"):
        Job.of(composed(*SMALL, *REFILL, f"transfer.from={asked.format(root=root)}"))


@pytest.mark.parametrize(
    ("rounds", "overrides", "named"),
    [
        (None, [], "config.yaml"),
        (1, ["pruning.rounds=2"], "round 2"),
        (1, ["pruning.next_round_from=refill"], "pruning.next_round_from=unstructured"),
    ],
)
def test_impossible_sources_are_refused(
    rounds: int | None, overrides: list[str], named: str, composed: Compose, tmp_path: Path
) -> None:
    folder = tmp_path / "source"
    if rounds is not None:
        _a_search(tmp_path, "source", composed(*SMALL, *REFILL), rounds)
    with pytest.raises(ValueError, match=f"transfer.from={folder}: .*{named}"):
        run_of(composed(*SMALL, *REFILL, *overrides, f"transfer.from={folder}"))


def test_scores_by_feature_maps_are_refused_before_anything_is_trained(composed: Compose, tmp_path: Path) -> None:
    source = _a_search(tmp_path, "source", composed(*SMALL, *REFILL))
    with pytest.raises(ValueError, match=r"^structure\.refill .*transfer"):
        run_of(composed(*SMALL, *REFILL, "structure.refill.score=feature_l1", f"transfer.from={source}"))


def test_another_network_is_refused_before_anything_is_trained(composed: Compose, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    source = run_of(composed(*SMALL, *REFILL, "retrain_rounds=[]"))[0].search
    with pytest.raises(ValueError, match=f"transfer.from=.*{source}: .*ResNet"):
        run_of(composed(*SMALL, *REFILL, "model=resnet14", f"transfer.from={root / source}"))
    assert [path.name for path in root.glob("digits-*")] == [source]
