"""A density that is asked for comes out exactly, and structures keep to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from lt_lightning.experiment.config.tasks import densities_of, retrained_rounds, rounds_of, search_folder
from lt_lightning.experiment.run.job import Job
from lt_lightning.pruning.masks import kept, size
from lt_lightning.tickets.ticket import Ticket
from tests.runs import SMALL, run_of

Compose = Callable[..., DictConfig]
STRUCTURES = ("refill", "regroup", "fixed_blocks", "filters")
OPTIONS = (
    *SMALL, f"structure=[{','.join(STRUCTURES)}]", "structure.refill.round_to=1", "structure.regroup.group_size=4",
    "structure.regroup.clustering=random", "structure.fixed_blocks.filters=4", "structure.fixed_blocks.channels=1",
    "pruning.rate=0.6", "pruning.density=[0.2,0.1]", "data.limit=0.1",
)  # fmt: skip


def test_rounds_are_as_many_as_reach_the_density(composed: Compose) -> None:
    """At half of the rest a round: 50, 25, 12.5 and 10 %; and what another key says of rounds does not matter."""
    rounds = [rounds_of(composed(f"pruning.density={each}", "pruning.rate=0.5")) for each in (0.5, 0.25, 0.1)]
    assert rounds == [1, 2, 4]
    tasks = [Job.of(composed("pruning.density=0.25", *more)).tasks for more in ((), ("pruning.rounds=9",))]
    assert tasks[0] == tasks[1]


def test_one_search_passes_through_several_densities(composed: Compose) -> None:
    """At half of the rest a round: 50, 30, 15 and 10 %; at once one round each. Their rounds alone are retrained."""
    config = composed("pruning.density=[0.1,0.3,0.3]", "pruning.rate=0.5", "structure=[refill]")
    assert densities_of(config) == [0.5, 0.3, 0.15, 0.1]
    assert retrained_rounds(config) == [2, 4]
    assert [(task.round, str(task.kind)) for task in Job.of(config).tasks[1:]] == [(2, "refill"), (4, "refill")]
    once = composed("pruning=omp", "pruning.density=[0.1,0.3]", "structure=[refill]")
    assert (densities_of(once), retrained_rounds(once)) == ([0.3, 0.1], [1, 2])
    for same in ("[0.3,0.1]", "[0.1,0.3]"):
        assert search_folder(composed(f"pruning.density={same}", "pruning.rate=0.5")) == search_folder(config)
    assert search_folder(composed("pruning.density=[0.3]")) == search_folder(composed("pruning.density=0.3"))


def test_a_density_is_met_to_one_weight_and_no_structure_executes_more(composed: Compose, tmp_path: Path) -> None:
    config = composed(*OPTIONS, "retrain_rounds=[3]")
    results = {(result.round, result.structure): result for result in run_of(config)}
    asked = {}
    for number, share in enumerate((0.4, 0.2, 0.1), start=1):  # each time the last prune before a density takes less
        masks = Ticket.load(tmp_path / "runs" / results[number, "unstructured"].place / "ticket").masks
        asked[number] = kept(masks)
        assert asked[number] == round(share * size(masks))
    prunable = set(masks)
    for name in STRUCTURES:
        ticket = Ticket.load(tmp_path / "runs" / results[3, name].place / "ticket")
        executed = sum(ticket.layers[layer].executed for layer in ticket.card["prunable"])
        assert executed == kept({key: mask for key, mask in ticket.masks.items() if key in prunable})
        assert 0.6 * asked[3] < executed <= asked[3], name  # channels are coarse in so narrow a network
