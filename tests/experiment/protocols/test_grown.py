"""Grown tickets: each is made from the last one by hand, trained as the smaller network, and goes on after a kill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run.job import Job
from lt_lightning.pruning.masks import density
from lt_lightning.pruning.selection import prune
from lt_lightning.results.records import Result
from lt_lightning.structures.base import StructureInput
from lt_lightning.tickets.ticket import Ticket
from tests.runs import BOTH, SMALL, composing, run_of

Compose = Callable[..., DictConfig]
OPTIONS = (
    *SMALL, "data.limit=0.1", "trainer.max_epochs=2", "pruning.rounds=2", "pruning.rate=0.4", "pruning.rewind=1ep",
    "pruning.mode=learning_rate", "pruning.monitor=null", "trainer.deterministic=true", "report=false",
)  # fmt: skip
REGROUP = ("structure=[regroup]", *(each for each in BOTH if each.startswith("structure.regroup.")))
CHAINS = "grown=[regroup,refill,dense,random]"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DictConfig, list[Result]]]:
    with composing(tmp_path_factory.mktemp("grown")) as composed:
        config = composed(*OPTIONS, *BOTH, CHAINS, "retrain_rounds=[2]")
        OmegaConf.resolve(config)
        yield config, run_of(config)


def ticket(config: DictConfig, results: list[Result], number: int, structure: str, control: str = "") -> Ticket:
    (place,) = [r.place for r in results if (r.round, r.structure, r.control) == (number, structure, control)]
    return Ticket.load(Path(config.paths.root) / place / "ticket")


def test_each_round_structures_what_is_left_of_the_last_ones_trained_weights(
    finished: tuple[DictConfig, list[Result]],
) -> None:
    config, results = finished
    experiment = Experiment.from_config(config)
    for name in ("regroup", "refill"):
        before = ticket(config, results, 0, "dense")
        last = dict(before.trained or {})  # of every weight, when it was last alive
        for number, target in ((1, 0.6), (2, 0.36)):
            made = ticket(config, results, number, f"{name}_grown")
            weights = [experiment.traced.layers[layer].weight for layer in made.card["prunable"]]
            masks = {weight: before.masks[weight] for weight in weights}
            assert before.trained is not None
            scores = {weight: before.trained[weight].abs() for weight in weights}
            left = prune(masks, scores, target)
            assert density(left) == pytest.approx(target, abs=1e-3)
            expected = experiment.structures[name](StructureInput(experiment.traced, left, before.trained))
            assert made.masks.keys() == expected.masks.keys()
            assert all(torch.equal(mask, expected.masks[each]) for each, mask in made.masks.items())
            assert made.card["density"] <= target + 1e-9
            for weight in weights:
                last[weight] = torch.where(before.masks[weight], before.trained[weight], last[weight])
                assert torch.equal(made.rewind[weight], last[weight])
            assert made.trained is not None
            assert not all(torch.equal(made.trained[each], made.rewind[each]) for each in weights)
            before = made


def test_cut_tickets_restart_from_the_values_that_weights_had_when_they_were_last_alive(
    finished: tuple[DictConfig, list[Result]],
) -> None:
    config, results = finished
    before, first, cut = (
        ticket(config, results, number, name) for number, name in ((0, "dense"), (1, "unstructured"), (2, "refill"))
    )
    assert before.trained is not None
    assert first.trained is not None
    for name, mask in first.masks.items():
        assert torch.equal(cut.rewind[name], torch.where(mask, first.trained[name], before.trained[name]))
    refilled = [cut.masks[name] & ~mask for name, mask in ticket(config, results, 2, "unstructured").masks.items()]
    assert any(map(torch.any, refilled))


def test_grown_alone_is_the_same_chain_without_the_search_and_the_cut_tickets(
    finished: tuple[DictConfig, list[Result]], composed: Compose
) -> None:
    config, results = finished
    mine = composed(*OPTIONS, *REGROUP, "recipe=strong", "retrain_rounds=[2]", "controls=[shuffle]")
    OmegaConf.resolve(mine)
    together = run_of(mine)
    assert {(each.round, str(each.kind)) for each in together if each.control} == {
        (1, "regroup_grown (shuffle control)"), (2, "regroup_grown (shuffle control)")
    }  # fmt: skip
    alone = [each for each in together if not each.control]
    assert [(each.round, str(each.kind)) for each in alone] == [
        (0, "dense"), (1, "regroup_grown"), (2, "regroup_grown")
    ]  # fmt: skip
    for number in (1, 2):
        before, after = (ticket(*job, number, "regroup_grown") for job in ((config, results), (mine, alone)))
        assert before.trained is not None
        assert after.trained is not None
        assert all(torch.equal(value, after.trained[name]) for name, value in before.trained.items())
    assert [each.accuracy for each in alone[1:]] == [
        each.accuracy for each in results if str(each.kind) == "regroup_grown"
    ]
    # Other densities, another folder for each round from the first that differs.
    other = Job.of(composed(*OPTIONS, *REGROUP, "recipe=strong", "growing.densities=[0.6,0.3]"))
    same = Job.of(composed(*OPTIONS, *REGROUP, "recipe=strong", "growing.densities=[0.6,0.36]"))
    assert other.tasks[0].folder == same.tasks[0].folder == Job.of(mine).tasks[0].folder
    assert same.tasks[1].folder == other.tasks[1].folder
    assert same.tasks[2].folder != other.tasks[2].folder


def test_every_ticket_that_is_grown_alone_or_beyond_the_search_has_its_controls(composed: Compose) -> None:
    def controlled(*options: str) -> list[int]:
        tasks = Job.of(composed(*OPTIONS, *REGROUP, "controls=[shuffle]", *options)).tasks
        return [task.round for task in tasks if task.kind and (task.kind.structure, task.kind.control) == (
            "regroup_grown", "shuffle")]  # fmt: skip

    assert controlled("recipe=strong") == [1, 2]
    assert controlled("recipe=strong", "growing.densities=[0.6,0.36,0.2]") == [1, 2, 3]
    assert controlled("grown=[regroup]", "retrain_rounds=[2]") == [2]
    assert controlled("grown=[regroup]", "retrain_rounds=[2]", "growing.densities=[0.6,0.36,0.2]") == [2, 3]


def test_a_round_that_is_the_last_of_its_chain_is_another_one_where_a_penalty_spares_the_last(
    composed: Compose,
) -> None:
    def chain(densities: str, penalty: float) -> list[str]:
        options = ("recipe=strong", f"growing.densities={densities}", f"growing.group_penalty={penalty}")
        return [task.folder.name for task in Job.of(composed(*OPTIONS, *REGROUP, *options)).tasks[1:]]

    shorter, longer = chain("[0.5,0.25]", 0.01), chain("[0.5,0.25,0.1]", 0.01)
    assert shorter[0] == longer[0]
    assert shorter[1] != longer[1]
    assert chain("[0.5]", 0.01) == chain("[0.5]", 0.0)  # its one round is the last
    assert chain("[0.5,0.25]", 0.0) == chain("[0.5,0.25,0.1]", 0.0)[:2]
    with pytest.raises(ValueError, match=r"^growing\.group_penalty=0\.01: "):
        Job.of(composed(*OPTIONS, *REGROUP, "growing.group_penalty=0.01"))


def test_controls_prune_nothing_or_at_random_for_as_many_rounds(finished: tuple[DictConfig, list[Result]]) -> None:
    config, results = finished
    for number, target in ((1, 0.6), (2, 0.36)):
        dense = ticket(config, results, number, "unstructured", "dense_cycles")
        random = ticket(config, results, number, "unstructured", "random_cycles")
        magnitude = ticket(config, results, number, "unstructured")
        assert all(mask.all() for mask in dense.masks.values())
        assert density(random.masks) == pytest.approx(target, abs=1e-3)
        assert any(not torch.equal(mask, magnitude.masks[name]) for name, mask in random.masks.items())
        assert dense.card["first_epoch"] == random.card["first_epoch"] == 2 + (number - 1)
    last = ticket(config, results, 1, "unstructured", "random_cycles").masks
    now = ticket(config, results, 2, "unstructured", "random_cycles").masks
    assert all(not bool((now[name] & ~mask).any()) for name, mask in last.items())


def test_everything_is_found_again_and_shared_with_jobs_that_ask_for_less(
    finished: tuple[DictConfig, list[Result]],
) -> None:
    config, results = finished
    assert Job.of(config).is_finished
    assert run_of(config) == results
    assert {(r.round, r.total_epochs) for r in results if "grown" in r.structure or "cycles" in r.control} == {
        (1, 3), (2, 4)
    }  # fmt: skip
    less = config.copy()
    less.grown = ["dense"]
    assert Job.of(less).is_finished
    assert {(r.structure, r.control) for r in Job.of(less).results()} == {
        ("dense", ""), ("unstructured", ""), ("unstructured", "dense_cycles"), ("refill", ""), ("regroup", "")
    }  # fmt: skip


def test_a_chain_of_dense_trainings_is_the_search_that_prunes_nothing(
    finished: tuple[DictConfig, list[Result]], composed: Compose
) -> None:
    config, results = finished
    whole = run_of(composed(*OPTIONS, "structure=[]", "pruning.rate=1e-9"))
    root = Path(composed().paths.root)
    for number in (1, 2):
        one_fit = Ticket.load(root / next(r.place for r in whole if r.round == number) / "ticket")
        chain = ticket(config, results, number, "unstructured", "dense_cycles")
        assert one_fit.trained is not None
        assert chain.trained is not None
        for name, value in one_fit.trained.items():
            torch.testing.assert_close(chain.trained[name], value, rtol=1e-5, atol=1e-6)


def test_a_penalty_leaves_less_in_what_the_next_round_drops_and_touches_no_other_folder(
    finished: tuple[DictConfig, list[Result]],
) -> None:
    config, results = finished
    penalised = config.copy()
    penalised.grown, penalised.growing.group_penalty = ["regroup", "dense"], 0.05
    mine = run_of(penalised)
    plain, less = ticket(config, results, 1, "regroup_grown"), ticket(config, mine, 1, "regroup_grown")
    assert less.card["group_penalty"] == 0.05
    assert "group_penalty" not in ticket(config, mine, 2, "regroup_grown").card  # it is the last
    lasting = {
        name: sum(float((each.trained or {})[name].norm()) for name in plain.masks)
        for name, each in (("plain", plain), ("less", less))
    }
    assert lasting["less"] < lasting["plain"]
    others = {result.place for result in mine if result.structure != "regroup_grown"}
    assert others <= {result.place for result in results}


def test_training_the_smaller_networks_is_training_with_masks(composed: Compose) -> None:
    options = (
        *OPTIONS, *BOTH, "trainer.precision=64-true", "trainer.max_epochs=1", "pruning.rewind=0ep",
        "grown=[regroup,refill]", "retrain_rounds=[2]",
    )  # fmt: skip
    shrunk, masked = (composed(*options, f"execution={execution}") for execution in ("shrunk", "masked"))
    ours, theirs = run_of(shrunk), run_of(masked)
    for structure in ("regroup", "refill"):
        small, large = (
            ticket(config, results, 2, f"{structure}_grown") for config, results in ((shrunk, ours), (masked, theirs))
        )
        assert (small.card["execution"], large.card["execution"]) == ("shrunk", "masked")
        assert small.masks.keys() == large.masks.keys()
        assert all(torch.equal(mask, small.masks[name]) for name, mask in large.masks.items())
        assert small.trained is not None
        assert large.trained is not None
        for name, mask in large.masks.items():
            torch.testing.assert_close(small.trained[name][mask], large.trained[name][mask], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["grown=[regrop]"], ["grown=regrop", "regroup"]),
        (["grown=regroup"], ["grown=", "regroup", "list"]),
        (["grown=[regroup]", "pruning.next_round_from=regroup", "structure=[regroup]"], ["pruning.next_round_from"]),
        (["grown=[regroup]", "pruning.scores_from=dense"], ["pruning.scores_from", "trained"]),
        (["grown=[random]", "+structure.random={_target_:lt_lightning.Regroup}"], ["structure.random", "grown=random"]),
        (["grown=[regroup]", "+structure.regroup_grown={_target_:lt_lightning.Regroup}"], ["structure.regroup_grown"]),
        (["growing.alone=true"], ["growing.alone=True", "grown"]),
        (["growing.densities=[0.5]"], ["growing.densities=", "grown"]),
        (["recipe=strong", "structure=[]"], ["growing.alone=True", "grown"]),
    ],
)
def test_what_cannot_be_grown_is_refused(overrides: list[str], named: list[str], composed: Compose) -> None:
    with pytest.raises(ValueError, match=".*".join(named)):
        run_of(composed(*OPTIONS, "pruning.rounds=1", *overrides))
