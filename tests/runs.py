"""The smallest honest run of a job, what tests add to it, and how they run one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from rich.console import Console

from lt_lightning.experiment.run.job import Job
from lt_lightning.experiment.run.run_job import run_job
from lt_lightning.results.records import Result

Compose = Callable[..., DictConfig]
SMALL = (
    "model.width=8", "data.limit=0.3", "trainer.max_epochs=2", "trainer.accelerator=cpu", "pruning.rounds=1",
    "measure=null",
)  # fmt: skip
MEASURED = "measure={batch_size:64,samples:2,slot:0.001}"
REFILL = ("structure=[refill]", "structure.refill.round_to=2")
BOTH = ("structure=[refill,regroup]", "structure.refill.round_to=2", "structure.regroup.group_size=4")


@contextmanager
def composing(root: Path) -> Iterator[Compose]:
    """Compose a script's configuration, with overrides, writing under a folder."""
    conf = Path(__file__).resolve().parents[1] / "conf"

    def composed(*overrides: str, name: str = "run") -> DictConfig:
        config = compose(name, [f"paths.root={root}", *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        return config

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf), version_base="1.3"):
        yield composed
    HydraConfig.instance().cfg = None


def run_of(config: DictConfig) -> list[Result]:
    """Run the job of a configuration, and return its results."""
    return run_job(Job.of(config), Console())
