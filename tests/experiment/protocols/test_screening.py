"""Screening: which tickets are confirmed, where everything is, and that nothing is mixed, or trained twice."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lt_lightning.experiment.protocols.screening import candidates, chosen_rounds
from lt_lightning.experiment.protocols.stages import all_tasks_of, stages_of, tasks_under
from lt_lightning.experiment.run.experiment import Experiment
from lt_lightning.experiment.run.plan import told
from omegaconf import DictConfig, open_dict

from lt_lightning.experiment.config.tasks import tasks_of
from lt_lightning.experiment.protocols.bisection import Bracket, asked, asked_of
from lt_lightning.experiment.run import retraining_task as cells
from lt_lightning.experiment.run.job import _costs, do, objective
from lt_lightning.experiment.run.run import run
from lt_lightning.experiment.sweep.sweep_end import Job, SweepEnd
from lt_lightning.network_graph.graph import TracedNetwork
from lt_lightning.pruning.rewinding import Restart
from lt_lightning.results.paths import Task, is_confirmed, unconfirmed
from lt_lightning.results.records import Result, results_of
from lt_lightning.results.status import state_of
from lt_lightning.tickets.making import structure_ticket
from lt_lightning.tickets.ticket import Ticket
from tests.toys import DENSE

Compose = Callable[..., DictConfig]
SMALL = (
    "model.width=4", "data.limit=0.2", "trainer.accelerator=cpu", "pruning.rounds=2", "measure=null",
    "structure=[refill]", "structure.refill.round_to=2", "report=false",
)  # fmt: skip
CONFIRMED = ", confirmed after screening of 2 epochs"


@pytest.mark.parametrize(
    ("rounds", "holding", "expected"),
    [
        ((1, 2, 3, 4), {1: True, 2: True, 3: False, 4: False}, [2, 3]),
        ((1, 2, 3, 4), {1: True, 2: False, 3: True, 4: False}, [3, 4]),  # the last, whatever earlier ones do
        ((1, 2, 3, 4), {1: True, 2: True, 3: True, 4: True}, [4]),
        ((1, 2, 3, 4), {1: False, 2: False, 3: False, 4: False}, [1]),
        ((2, 5, 9), {2: True, 5: False, 9: False}, [2, 5]),
        ((1, 2, 3, 4, 5, 6), {4: False, 2: True, 3: False}, [2, 3]),  # bisected
        ((4,), {4: False}, [4]),
    ],
)
def test_the_last_that_holds_is_confirmed_and_the_next_sparser(
    rounds: tuple[int, ...], holding: Mapping[int, bool], expected: list[int]
) -> None:
    assert candidates(Bracket(rounds, holding)) == expected


# Tasks, with results that nobody trained


def finish(task: Task, last: int = 99, seed: int = 0) -> None:
    """Leaves what the task would have: tickets of later rounds than `last` are a point below the dense network."""
    for part in task.parts:
        number = int(part.parent.name.partition("_")[2])
        accuracy = 0.9 if number <= last else 0.89
        named = task.structure or ("unstructured" if number else "dense")
        result = replace(DENSE, round=number, structure=named, accuracy=accuracy, dense_accuracy=0.9, place=str(part))
        density = 0.8**number
        replace(result, seed=seed, search=task.folder.name, density=density, executed=density).save(part)


def kinds(tasks: Sequence[Task]) -> list[tuple[int, str, str]]:
    return [(task.number, task.structure.removesuffix(CONFIRMED), task.control) for task in tasks]


def confirming(config: DictConfig) -> list[Task]:
    """Tasks of the second stage."""
    *_, stage = stages_of(config)
    return asked_of(stage.config)


def test_the_screening_is_that_search_and_what_it_comes_to_is_confirmed(composed: Compose) -> None:
    options = ("pruning.rounds=4", "structure=[refill,regroup]", "retrain_rounds=[1,2,4]")
    config = composed(*options, "trainer.max_epochs=9", "screening.epochs=2", "controls=[reinit]")
    first = next(stages_of(config))
    assert tasks_of(first.config) == tasks_of(composed(*options, "trainer.max_epochs=2"))
    search, *tickets = tasks_of(first.config)
    assert kinds(confirming(config)) == [(0, "", "")]
    finish(search, last=3)
    for cell in tickets:
        if (cell.structure, cell.number) != ("refill", 4):
            finish(cell, last=2 if cell.structure == "refill" else 0)
    known = [(1, "regroup"), (3, "unstructured"), (4, "unstructured")]
    assert [each[:2] for each in kinds(confirming(config)) if each[1] and not each[2]] == known  # refill is open
    finish(next(cell for cell in tickets if (cell.structure, cell.number) == ("refill", 4)), last=2)
    dense, *confirmed = confirming(config)
    assert dense == tasks_of(composed("trainer.max_epochs=9", "pruning.rounds=0"))[0]
    assert dense.parts == (dense.folder / "round_00" / "dense",)
    pairs = [(1, "regroup"), (2, "refill"), (3, "unstructured"), (4, "unstructured"), (4, "refill")]
    assert kinds(confirmed) == [(*pair, "") for pair in pairs] + [(*pair, "reinit") for pair in pairs]
    assert len({task.folder for task in confirmed}) == 10
    assert all(task.structure.endswith(CONFIRMED) for task in confirmed)
    other = composed(*options, "trainer.max_epochs=9", "screening.epochs=3")
    assert tasks_of(list(stages_of(other))[1].config)[0] == dense
    assert asked(all_tasks_of(config)) == [*asked(tasks_of(first.config)), dense, *confirmed]  # never bisected


def test_the_plan_counts_the_most_that_may_be_confirmed(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewound to the first epoch: 3 + 4 * 2 of the screening, 4 * 2 of its tickets, 9 of the dense network, 4 * 8."""
    monkeypatch.setattr("lt_lightning.experiment.run.costs.seconds_per_epoch", lambda experiment: 1.0)
    options = ("pruning.rounds=4", "structure=[refill]", "trainer.max_epochs=9", "screening.epochs=3", "model.width=4")
    config = composed(*options)
    assert told(_costs(config)).startswith("at most 14 trainings of 60 epochs")
    fewer = composed(*options, "controls=[reinit,shuffle]", "search=bisect")  # controls of a refill last 9 and 8 epochs
    assert told(_costs(fewer)).startswith(f"at most 19 trainings of {60 - 2 + 4 * 9 + 2 * 8} epochs")
    search, *tickets = tasks_of(next(stages_of(config)).config)
    for task in (search, *tickets):
        finish(task, last=0)
    assert told(_costs(config)).startswith("3 trainings of 25 epochs")  # of both kinds the first round
    for task in confirming(config):
        finish(task)
    assert told(_costs(config)) == "nothing to train: everything is there"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["screening.epochs=12"], "screening.epochs=12: must be less than trainer.max_epochs=12"),
        (["screening.epochs=0"], "screening.epochs=0: must be a whole number of at least 1, or null"),
        (["screening.epochs=few"], "screening.epochs=few: must be a whole number"),
        (["screening.epochs=3", "pruning.rewind=3ep"], "screening.epochs=3: pruning.rewind=3ep must lie within such"),
        (["screening.epochs=3", "pruning.next_round_from=refill", "structure=[refill]"], "needs pruning.next_round_"),
        (["screening.epochs=3", "transfer.from=others"], "screening.epochs=3: .* transfer.from=others .*: set one"),
        (["screening.epochs=3", "pruning.rounds=0"], "pruning.rounds=0 leaves nothing to screen"),
        (["screening=3"], "screening=3: must have epochs and seed"),
        (["screening.epochs=3", "screening.seed=-1"], "screening.seed=-1: must be a seed, or null"),
    ],
)
def test_impossible_screenings_are_refused(overrides: list[str], expected: str, composed: Compose) -> None:
    with pytest.raises(ValueError, match=expected):
        all_tasks_of(composed(*overrides))


def test_a_sweep_keeps_screened_and_confirmed_apart(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    for seed in range(2):
        config = composed("screening.epochs=2", "structure=[refill]", "pruning.rounds=3", f"seed={seed}")
        for stage in stages_of(config):
            for task in tasks_of(stage.config):
                finish(task, 2 if stage.screened else 1, seed)
        Job(seed, {"seed": str(seed)}, tuple(all_tasks_of(config)), screened=2).save(sweep / str(seed))
    with open_dict(config):
        config.hydra = {"sweep": {"dir": str(sweep)}}
        config.report = False
    SweepEnd().on_multirun_end(config)
    printed = capsys.readouterr().out
    with (sweep / "sweep.csv").open() as file:
        rows = {(row["setting"], row["structure"], int(row["round"])): row for row in csv.DictReader(file)}
    short = {("screening of 2 epochs", name, n) for name in ("unstructured", "refill") for n in (1, 2, 3)}
    short.add(("screening of 2 epochs", "dense", 0))
    whole = {("", f"{name}{CONFIRMED}", n) for name in ("unstructured", "refill") for n in (2, 3)}
    assert rows.keys() == short | whole | {("", "dense", 0)}
    assert {row["seeds"] for row in rows.values()} == {"2"}
    verdicts = [line.split("  ") for line in printed.splitlines() if "  by the mean " in line]
    assert {parts[1]: parts[-1].partition(",")[0] for parts in verdicts} == {
        **{f"screening of 2 epochs, {name}": "by the mean 36.0% (round 2)" for name in ("unstructured", "refill")},
        **{f"{name}{CONFIRMED}": "by the mean none" for name in ("unstructured", "refill")},
    }
    assert "only confirmed tickets are compared with the fully trained dense network" in " ".join(printed.split())
    assert "0 missing" in printed


# From end to end


def test_digits_are_screened_and_confirmed(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs"
    config = composed(*SMALL, "trainer.max_epochs=4", "screening.epochs=2")
    with monkeypatch.context() as patch:
        patch.setattr("lt_lightning.experiment.run.scheduler.run_retraining", failing_at(f"refill{CONFIRMED}"))
        with pytest.raises((RuntimeError, ExceptionGroup), match=r"out of luck|tasks failed"):
            run(config)
    before = stamps(root)
    printed = capsys.readouterr().out
    assert "Only the confirmed tickets, trained for 4 epochs, are compared with the dense network of 4" in printed
    results = run(config)
    assert before.items() <= stamps(root).items()  # what was missing is trained, and nothing else
    short, whole = results[:5], results[5:]
    assert [result.place for result in short] == [
        result.place for result in run(composed(*SMALL, "trainer.max_epochs=2"))
    ]
    assert run(composed(*SMALL, "trainer.max_epochs=4", "pruning.rounds=0")) == whole[:1]

    dense, tickets = whole[0], whole[1:]
    assert dense.search != short[0].search
    assert {(result.structure, result.round) for result in tickets} == {
        (f"{name}{CONFIRMED}", number) for name in ("unstructured", "refill") for number in read(root, short, name)
    }
    assert {result.dense_accuracy for result in tickets} == {dense.accuracy}
    restart = Restart.load(root / dense.search / "restart.pt")
    for result in tickets:
        check_confirmed(root, result, short, restart)
    assert objective(results) == pytest.approx(sum(r.val_accuracy for r in short if r.round == 2) / 2)

    after = stamps(root)
    run(config)
    do(composed(*SMALL, "trainer.max_epochs=4", "screening.epochs=2", "status=true"))
    assert f"{3 + 1 + len(tickets)} done, 0 running, 0 failed, 0 missing" in capsys.readouterr().out
    assert {state_of(task).kind for task in tasks_under(root)} == {"done"}
    assert {task.folder for task in all_tasks_of(config)} == {task.folder for task in tasks_under(root)}
    assert stamps(root) == after


def test_another_seeds_screening_chooses_the_rounds(composed: Compose, tmp_path: Path) -> None:
    """Of the job's own seed the search alone is screened, and what was chosen is structured from its masks."""
    options = (*SMALL, "trainer.max_epochs=4", "screening.epochs=2", "screening.seed=0")
    first, second = composed(*options), composed(*options, "seed=1")
    short, dense, *tickets = (result for result in run(second) if result.round == 0 or is_confirmed(result.structure))
    chosen = composed(*SMALL, "trainer.max_epochs=2")
    assert {result.seed for result in (short, dense, *tickets)} == {1}
    assert {(unconfirmed(each.structure), each.round) for each in tickets} == {
        (name, number) for name, numbers in chosen_rounds(chosen).items() for number in numbers
    }
    assert {task.structure for task in tasks_of(next(s for s in stages_of(second) if s.screened).config)} == {""}
    experiment = Experiment.from_config(second)
    for result in tickets:
        ticket = Ticket.load(experiment.root / result.place / "ticket")
        screened = Ticket.load(experiment.root / short.search / f"round_{result.round:02d}" / "unstructured" / "ticket")
        name = unconfirmed(result.structure)
        if name != "unstructured":
            network = experiment.classifier().network
            traced = TracedNetwork(network, experiment.example)
            screened = structure_ticket(screened, name, experiment.structures[name], traced)
        assert all(torch.equal(mask, ticket.masks[key]) for key, mask in screened.masks.items())
        assert ticket.card["screened"]["search"] == short.search
    before = stamps(experiment.root)
    names = [(result.structure, result.round) for result in run(first) if is_confirmed(result.structure)]
    assert names == [(result.structure, result.round) for result in tickets]
    assert before.items() <= stamps(experiment.root).items()


def failing_at(structure: str) -> Callable[..., Result]:
    def run_retraining(experiment: Experiment, number: int, name: str, *rest: Any) -> Result:
        if name == structure:
            raise RuntimeError("out of luck")
        return cells.run_retraining(experiment, number, name, *rest)

    return run_retraining


def stamps(root: Path) -> dict[Path, int]:
    """Of all tickets."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("ticket.*")}


def read(root: Path, short: Sequence[Result], name: str) -> list[int]:
    """The rounds that are to be confirmed, read from the screening's files."""
    found = [json.loads((root / each.place / "result.json").read_text()) for each in short if each.structure == name]
    holding = [each["round"] for each in found if each["accuracy"] > each["dense_accuracy"] - 1e-6]
    last = max(holding, default=0)
    return [number for number in (last, last + 1) if 1 <= number <= 2]


def check_confirmed(root: Path, result: Result, short: Sequence[Result], restart: Restart) -> None:
    """The same masks and plan as were screened, from the dense training's own rewind point, for its whole length."""
    name = result.structure.removesuffix(CONFIRMED)
    (screened,) = [each for each in short if (each.structure, each.round) == (name, result.round)]
    ticket, found = (Ticket.load(root / each.place / "ticket") for each in (result, screened))
    assert ticket.masks.keys() == found.masks.keys()
    assert all(torch.equal(ticket.masks[key], mask) for key, mask in found.masks.items())
    assert (ticket.plan is None) == (found.plan is None)
    assert all(torch.equal(ticket.rewind[key], value) for key, value in restart.point.network.items())
    assert any(not torch.equal(ticket.rewind[key], value) for key, value in found.rewind.items())
    lineage = {"search": screened.search, "epochs": 2, "values": "dense training"}
    assert (ticket.card["screened"], ticket.card["rewind"]) == (lineage, "1ep")
    epochs = [row["epoch"] for row in csv.DictReader((root / result.place / "metrics.csv").read_text().splitlines())]
    assert max(map(float, filter(None, epochs))) == 2  # the last of three
    assert results_of(Task(root, "", 0, "", (root / result.place,))) == [result]
