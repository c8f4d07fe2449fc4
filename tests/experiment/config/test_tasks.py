"""What determines a result changes its place, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from omegaconf import DictConfig

from lt_lightning.experiment.config.tasks import search_folder
from lt_lightning.experiment.run.job import Job
from lt_lightning.results.job_record import Task

Compose = Callable[..., DictConfig]

DETERMINING = [
    "seed=1",
    "model.width=8",
    "model=resnet14",
    "data.batch_size=32",
    "data.limit=0.5",
    "data.augment.pad=2",
    "data.validation=100",
    "classifier.learning_rate=0.2",
    "classifier.nesterov=true",
    "schedule=cosine",
    "pruning.rate=0.3",
    "pruning.rewind=2ep",
    "pruning.scope=layer",
    "pruning.monitor_mode=min",
    "trainer.max_epochs=9",
    "trainer.precision=bf16-mixed",
    "+trainer.accumulate_grad_batches=2",
]
OPERATIONAL = [
    "threads=2",
    "logger=wandb",
    "paths.data=elsewhere",
    "measure=null",
    "measure.samples=3",
    "checkpoint.seconds=60",
    "data.eval_batch_size=100",
    "classifier.compile=true",
    "classifier.channels_last=false",
    "pruning.on_collapse=stop",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer=ddp_sim",
    "trainer.num_sanity_val_steps=2",
    "+trainer.max_time='00:01:00:00'",
    "plan=true",
    "status=true",
    "search=bisect",
]
OF_CELLS = ["execution=masked", "structure.refill.coupling=inner", "structure.refill.extra=0.1"]


def tasks_of(config: DictConfig) -> list[Task]:
    return list(Job.of(config).tasks)


@pytest.mark.parametrize("override", DETERMINING)
def test_what_determines_a_search_changes_its_place(override: str, composed: Compose) -> None:
    assert search_folder(composed(override)) != search_folder(composed())


@pytest.mark.parametrize("override", OPERATIONAL)
def test_how_it_is_computed_changes_no_place(override: str, composed: Compose) -> None:
    assert tasks_of(composed(override)) == tasks_of(composed())


@pytest.mark.parametrize("override", OF_CELLS)
def test_options_of_a_retraining_leave_the_search_where_it_is(override: str, composed: Compose) -> None:
    before, after = tasks_of(composed("structure=[refill]")), tasks_of(composed("structure=[refill]", override))
    assert after[0] == before[0]
    assert {task.folder for task in after[1:]}.isdisjoint(task.folder for task in before)


def test_structures_and_rounds_that_are_retrained_only_add_tasks(composed: Compose) -> None:
    few = tasks_of(composed("structure=[refill]", "retrain_rounds=[2]"))
    assert len(few) == 2
    assert set(few) < set(tasks_of(composed("structure=[refill,regroup]", "retrain_rounds=[2,4]")))


def test_a_group_aware_search_depends_on_its_structure(composed: Compose) -> None:
    options = ("structure=[refill]", "pruning.next_round_from=refill")
    (search,) = tasks_of(composed(*options))
    (other,) = tasks_of(composed(*options, "structure.refill.extra=0.1"))
    assert search.folder != other.folder
    assert [part.name for part in search.parts] == ["dense"] + ["refill"] * 6
