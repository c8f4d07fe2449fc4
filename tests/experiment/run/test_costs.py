"""What a job will cost is found without training it, whatever its schedule, or refused as the job would be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from omegaconf import DictConfig

from lt_lightning.experiment.run.costs import costs_of
from lt_lightning.experiment.run.job import Job
from tests.runs import REFILL, SMALL

Compose = Callable[..., DictConfig]


def test_a_schedule_with_a_warm_up_is_that_of_the_whole_training(composed: Compose) -> None:
    options = ("trainer.max_epochs=3", "schedule=cosine", "classifier.schedule.warmup_epochs=2")
    costs = costs_of(Job.of(composed(*SMALL, *REFILL, *options, "pruning.rewind=1ep")))
    assert [(cost.trainings, cost.epochs) for cost in costs] == [(2, 3 + 2), (1, 2)]
    assert costs[0].seconds == costs[1].seconds > 0


@pytest.mark.parametrize("rewind", ["3ep", "20ep", "100%"])
def test_a_rewind_point_beyond_the_training_has_no_cost(rewind: str, composed: Compose) -> None:
    job = Job.of(composed(*SMALL, *REFILL, "trainer.max_epochs=3", f"pruning.rewind={rewind}"))
    with pytest.raises(ValueError, match=r"^pruning\.rewind="):
        costs_of(job)
