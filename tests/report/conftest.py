"""Finished runs made by hand: two seeds, one pruning round, an unstructured, a refilled and a regrouped ticket."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from lt_lightning.experiment.run.job import Job
from lt_lightning.results.job_record import Task
from lt_lightning.results.records import Result
from lt_lightning.storage.files import write_json
from lt_lightning.structures.base import Form, LayerReport
from lt_lightning.structures.plan import Block, BlockPlan, ChannelPlan, Plan
from lt_lightning.tickets.ticket import Ticket, make_card
from tests.runs import composing

ACCURACY = {"dense": (0.90, 0.92), "unstructured": (0.91, 0.93), "refill": (0.89, 0.90), "regroup": (0.90, 0.92)}
RATIOS = {"dense": 1.0, "unstructured": 1.0, "refill": 0.5, "regroup": 0.8}

RESULT = Result(
    data="digits", model="resnet8", seed=0, round=0, structure="dense", target_density=1.0, density=1.0, accuracy=0.9,
    dense_accuracy=0.9, params_ratio=1.0, flops_ratio=1.0, train_seconds=10.0, val_accuracy=0.9, best_epoch=1,
    retained_magnitude=1.0, time_ratio_inference=1.0, time_ratio_training=1.0, search="", place="",
)  # fmt: skip


@pytest.fixture
def configs(tmp_path: Path) -> Iterator[list[DictConfig]]:
    """Of two seeds, written under `tmp_path/runs`."""
    made = []
    with composing(tmp_path / "runs") as composed:
        for seed in (0, 1):
            config = composed("pruning.rounds=1", f"seed={seed}")
            OmegaConf.resolve(config)
            made.append(config)
        yield made


@pytest.fixture
def runs(configs: list[DictConfig], tmp_path: Path) -> Path:
    """The root of two finished searches that jobs asked for."""
    for index, config in enumerate(configs):
        job = Job.of(config)
        search, *retrainings = job.tasks
        OmegaConf.save(config, _made(search.folder) / "config.yaml")
        note(job, tmp_path / "runs" / "jobs" / "before" / str(index))
        write_json(
            search.folder / "rounds.json",
            [
                {"round": number, "density": 0.8**number, "best_epoch": 0, "metrics": {}, "train_seconds": seconds}
                for number, seconds in enumerate((10.0, 5.0))
            ],
        )
        if index == 0:
            write_json(search.folder / "environment.json", {"cpu": "a processor", "versions": {"torch": "2"}})
        (search.folder / "metrics.csv").write_text(
            "step,val/accuracy,train/loss,pruning/round\n1,0.5,2.0,0\n2,0.7,1.0,0\n3,0.8,0.9,1\n", encoding="utf-8"
        )
        for number, folder in enumerate(search.parts):
            _finish(search, folder, ("dense", "unstructured")[number], number, index)
        for task in retrainings:
            assert task.kind
            _finish(search, task.folder, task.kind.structure, task.round, index)
    return tmp_path / "runs"


@pytest.fixture
def everything(runs: Path, configs: list[DictConfig]) -> Path:
    """The same with controls, published figures, times of layers, commands, and a measurement of stability."""
    for index, config in enumerate(configs):
        search, *retrainings = Job.of(config).tasks
        with_published = OmegaConf.load(search.folder / "config.yaml")
        with_published.published = {
            "accuracy": {"regroup": [[50.0, 90.0]], "refill": [[50.0, 91.0], [4.0, 80.0]]},
            "extreme_sparsity": {"regroup": [[None, 40]]},
        }
        OmegaConf.save(with_published, search.folder / "config.yaml")
        for task in retrainings:
            assert task.kind
            structure = task.kind.structure
            for control in ("reinit", "shuffle"):
                folder = task.folder.with_name(f"{structure}-{control}-0123abcd")
                _finish(search, folder, structure, 1, index, control)
            choice = {"conv": "dense"} if structure == "regroup" else {}
            times = {"seconds": {"conv": {"dense": 0.004, "ticket": 0.001}}, "choice": choice}
            write_json(task.folder / "layer_times.json", times)
    line = {"network": "dense", "rewind": "1ep", "errors": [0.1, 0.3, 0.2], "barrier": 0.15}
    record = {"options": {"threshold": 0.02}, "lines": [line], "smallest_stable": {}}
    write_json(_made(runs / "stability" / "digits-resnet8") / "stability-01234567.json", record)
    hydra = _made(runs / "jobs" / "now" / ".hydra")
    note(Job.of(configs[0]), hydra.parent)
    OmegaConf.save(configs[0], hydra / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": {"runtime": {"choices": {}}}}), hydra / "hydra.yaml")
    OmegaConf.save(OmegaConf.create(["seed=0", "structure=[refill,regroup]"]), hydra / "overrides.yaml")
    return runs


def note(job: Job, folder: Path) -> None:
    """Writes the record of a job, as the job itself does."""
    job.record().save(_made(folder))
    job.record().note(folder)


def _finish(search: Task, folder: Path, structure: str, number: int, seed: int, control: str = "") -> None:
    ratio = RATIOS[structure]
    replace(
        RESULT, seed=seed, round=number, structure=structure, density=1.0 if number == 0 else 0.5,
        accuracy=ACCURACY[structure][seed], dense_accuracy=ACCURACY["dense"][seed], flops_ratio=ratio,
        time_ratio_inference=ratio, time_ratio_training=ratio, search=search.folder.name,
        place=str(folder.relative_to(search.folder.parent)), control=control,
        retained_magnitude=math.nan if control == "shuffle" else 1.0,
    ).save(_made(folder))  # fmt: skip
    _ticket(structure, number, control).save(folder / "ticket")


@pytest.fixture
def ticket_of() -> Callable[[str], Ticket]:
    """Makes a ticket of the first round, by the name of its structure."""
    return lambda structure: _ticket(structure, 1)


def _ticket(structure: str, number: int, control: str = "") -> Ticket:
    """One layer of 4 filters of 4 weights; the mask of the search is a chessboard."""
    mask = (torch.arange(16).reshape(4, 4, 1, 1) + torch.arange(4).reshape(4, 1, 1, 1)) % 2 == 0
    plan: Plan | None = None
    if structure == "dense":
        mask = torch.ones_like(mask)
    elif structure == "refill":
        mask = torch.zeros_like(mask)
        mask[[1, 3]] = True
        plan = ChannelPlan({"conv": torch.tensor([1, 3])}, {})
    elif structure == "regroup":
        mask = torch.zeros_like(mask)
        mask[[0, 2], :1], mask[[0, 2], 2:3] = True, True
        plan = BlockPlan("kernel_position", {"conv": [Block(torch.tensor([0, 2]), torch.tensor([0, 2]))]})
    kept = int(mask.sum())
    forms: dict[str, Form] = {"refill": "channels", "regroup": "dense"}
    form = forms.get(structure, "unstructured")
    executed = kept if structure == "refill" else 16
    report = LayerReport(16, 8, kept, executed, 10, form, note="too few" if form == "dense" else "")
    card = {"structure": structure, "round": number, "prunable": ["conv"], "control": control}
    masks, values = {"conv.weight": mask}, {"conv.weight": torch.ones(4, 4, 1, 1)}
    return Ticket(masks, values, None, plan, {"conv": report}, make_card(card))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
