"""The smallest honest run of a job, what tests add to it, and how they run one."""

from __future__ import annotations

from omegaconf import DictConfig
from rich.console import Console

from lt_lightning.experiment.run.job import Job
from lt_lightning.experiment.run.run_job import run_job
from lt_lightning.results.records import Result

SMALL = (
    "model.width=8", "data.limit=0.3", "trainer.max_epochs=2", "trainer.accelerator=cpu", "pruning.rounds=1",
    "measure=null",
)  # fmt: skip
MEASURED = "measure={batch_size:64,samples:2,slot:0.001}"
REFILL = ("structure=[refill]", "structure.refill.round_to=2")
BOTH = ("structure=[refill,regroup]", "structure.refill.round_to=2", "structure.regroup.group_size=4")


def run_of(config: DictConfig) -> list[Result]:
    """Run the job of a configuration, and return its results."""
    return run_job(Job.of(config), Console())
