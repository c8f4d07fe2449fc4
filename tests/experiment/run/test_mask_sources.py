"""Every mask source of `conf/pruning` with structures, and densities asked for directly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from lt_lightning.execution.execute import execute
from lt_lightning.experiment.config.tasks import rounds_of, search_folder
from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run import scheduler
from lt_lightning.experiment.run.costs import costs_of
from lt_lightning.experiment.run.job import Job
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.results.records import results_of
from lt_lightning.tickets.making import structure_ticket
from lt_lightning.tickets.ticket import Ticket
from tests.cases import slow_but
from tests.runs import SMALL, run_of

Compose = Callable[..., DictConfig]
CONF = Path(__file__).resolve().parents[3] / "conf"
SOURCES, STRUCTURES = (sorted(p.stem for p in (CONF / group).glob("*.yaml")) for group in ("pruning", "structure"))
OPTIONS = (
    *SMALL, "data.limit=0.1", "trainer.max_epochs=1", "pruning.rewind=0ep", "structure.refill.round_to=1", "threads=1",
)  # fmt: skip


QUICK = ("movement",)  # a sparsifier; the rest of the tests have scores by magnitude, and at random


@pytest.mark.parametrize("source", slow_but(QUICK, SOURCES))
def test_source_goes_with_every_structure(source: str, composed: Compose) -> None:
    """Two of them are retrained; of each the network that executes the ticket computes what the masked one does."""
    brief = ("pruning.rate=0.6", "pruning.density=0.4", "structure.regroup.clustering=random")
    config = composed(*OPTIONS, f"pruning={source}", *brief)
    results = run_of(config)
    assert [result.structure for result in results] == ["dense", "unstructured", "refill", "regroup"]
    every = (f"structure=[{','.join(STRUCTURES)}]", "structure.hybrid.budget=flops:0.7")
    experiment = Experiment.from_config(composed(*OPTIONS, *every))
    tickets = {result.structure: Ticket.load(experiment.root / result.place / "ticket") for result in results}
    masks = tickets["unstructured"].masks
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.4 * total)
    for name in ("refill", "regroup"):
        assert tickets[name].plan is not None
        assert tickets[name].trained is not None
    network, images = experiment.classifier().network.eval(), torch.rand(2, *experiment.example.shape[1:])
    for name, structure in experiment.structures.items():
        traced = TracedNetwork(network, experiment.example)
        ticket = structure_ticket(tickets["unstructured"], name, structure, traced)
        ticket.apply(network)
        small = execute(network, ticket.plan, ticket.masks, experiment.example)
        if small is None:  # no layer claims a structure
            assert {report.form for report in ticket.layers.values()} <= {"unstructured", "dense"}, name
        else:
            torch.testing.assert_close(small.network(images), network(images), msg=name)


def test_random_masks_have_the_layer_densities_of_the_search_by_magnitude(composed: Compose, tmp_path: Path) -> None:
    options = (*OPTIONS, "pruning.rate=0.5", "pruning.density=[0.4,0.2]", "structure=[refill]", "retrain_rounds=[]")
    magnitude, random = (composed(*options, f"pruning={source}") for source in ("imp", "random"))
    job = Job.of(random)
    assert [len(costs_of(each)) for each in (*job.needed, job)] == [1, 1]
    found = {result.round: result for result in run_of(random)}
    assert list(found) == [0, 1, 2]  # at once, where magnitude takes rounds: 50, 40, 20 %
    search = Job.of(magnitude).tasks[0]
    assert results_of(search) is not None
    for number, theirs in ((1, 2), (2, 3)):
        mine = Ticket.load(job.tasks[0].folder / f"round_{number:02d}/unstructured/ticket").masks
        masks = Ticket.load(search.folder / f"round_{theirs:02d}/unstructured/ticket").masks
        assert {n: int(m.sum()) for n, m in mine.items()} == {n: int(m.sum()) for n, m in masks.items()}
        assert not any(torch.equal(mine[name], masks[name]) for name in masks)
    before = {path: path.stat().st_mtime_ns for path in search.folder.rglob("*")}
    run_of(composed(*options, "pruning=random", "pruning.criterion.seed=5"))
    assert {path: path.stat().st_mtime_ns for path in search.folder.rglob("*")} == before  # one search serves both
    elsewhere = Job.of(composed(*options, "pruning=random", f"paths.root={tmp_path / 'elsewhere'}"))
    assert elsewhere.tasks[0].folder.name == job.tasks[0].folder.name


def test_without_the_search_nothing_goes_on(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed(*OPTIONS, "pruning=random", "pruning.rounds=1", "structure=[refill]")

    def broken(*arguments: object) -> None:
        raise RuntimeError("no power")

    monkeypatch.setattr(scheduler, "run_search", broken)
    with pytest.raises(RuntimeError, match="no power"):
        run_of(config)
    assert not Job.of(config).tasks[0].folder.exists()


def test_a_density_takes_the_rounds_that_reach_it(composed: Compose) -> None:
    expected = {"imp": {0.5: 4, 0.25: 7, 0.1: 11, 0.64: 2}, "omp": {0.5: 1, 0.1: 1}, "snip": {0.25: 1}}
    for source, counts in expected.items():
        for density, rounds in counts.items():
            options = (f"pruning={source}", f"pruning.density={density}", "model.width=8")
            assert Experiment.from_config(composed(*options, "structure=[]")).pruning().rounds == rounds
            config = composed(*options)
            assert rounds_of(config) == rounds
            search, *retrainings = Job.of(config).tasks
            assert len(search.parts) == rounds + 1
            assert [(t.round, str(t.kind)) for t in retrainings] == [(rounds, "refill"), (rounds, "regroup")]


def test_a_sparsifier_has_a_training_of_its_own_in_every_round(composed: Compose) -> None:
    experiment = Experiment.from_config(composed("pruning=agp", "trainer.max_epochs=5", "pruning.rounds=2"))
    assert experiment.search_lengths() == [[5], [4, 4], [4, 4]]
    assert [experiment.retraining_epochs(whole) for whole in (True, False)] == [5, 4]
    plain = Experiment.from_config(composed("trainer.max_epochs=5", "pruning.rounds=2"))
    assert plain.search_lengths() == [[5], [4], [4]]


def test_rounds_do_not_tell_searches_of_one_density_apart(composed: Compose) -> None:
    place = search_folder(composed("pruning.density=0.1"))
    assert search_folder(composed("pruning.density=0.1", "pruning.rounds=3")) == place
    others = ("pruning.density=0.2", "pruning.rounds=11", "pruning=omp", "pruning.scope=erk")
    assert len({place, *(search_folder(composed(each)) for each in others)}) == 5


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("pruning.density=1.5", "pruning.density=1.5:"),
        ("pruning.density=half", "pruning.density='half':"),
        ("pruning.rate=much", "pruning.rate='much':"),
        ("pruning.rate=1", "pruning.rate=1.0:"),
    ],
)
def test_impossible_densities_are_refused_by_name(override: str, told: str, composed: Compose) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        Job.of(composed(override))
    assert told in str(error.value)
