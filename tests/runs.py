"""The smallest honest run of a job, what tests add to it, and how they run one."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict
from rich.console import Console

from lt_lightning.execution.timing import Timing, time_layers
from lt_lightning.experiment.run.job import Job
from lt_lightning.experiment.run.run_job import run_job
from lt_lightning.results.records import Result

Compose = Callable[..., DictConfig]
CONF = Path(__file__).resolve().parents[1] / "conf"
SMALL = (
    "model.width=8", "data.limit=0.3", "trainer.max_epochs=2", "trainer.accelerator=cpu", "pruning.rounds=1",
    "measure=null",
)  # fmt: skip
MEASURED = "measure={batch_size:64,samples:2,slot:0.001}"
REFILL = ("structure=[refill]", "structure.refill.round_to=2")
BOTH = (
    "structure=[refill,regroup]", "structure.refill.round_to=2", "structure.regroup.group_size=4",
    "structure.regroup.clustering=random",
)  # fmt: skip


@contextmanager
def composing(root: Path) -> Iterator[Compose]:
    """Compose a script's configuration, with overrides, writing under a folder."""

    def composed(*overrides: str, name: str = "run") -> DictConfig:
        config = _composed(name, [f"paths.root={root}", *overrides])
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        return config

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield composed
    HydraConfig.instance().cfg = None


def _composed(name: str, overrides: list[str]) -> DictConfig:
    """Do what Hydra does; what takes it longest, to read and merge the groups' files, is done once for all tests."""
    parsed = [_parsed(each) for each in overrides]
    config = copy.deepcopy(_merged(name, tuple(each.input_line or "" for each in parsed if _is_for_hydra(each))))
    ConfigLoaderImpl._apply_overrides_to_config([each for each in parsed if not _is_for_hydra(each)], config)
    config.hydra.overrides.task = overrides
    config.hydra.runtime.cwd = str(Path.cwd())
    config.hydra.runtime.output_dir = f"{config.paths.root}/jobs/now"
    return config


@functools.cache
def _parsed(override: str) -> Override:
    (parsed,) = OverridesParser.create().parse_overrides([override])
    return parsed


def _is_for_hydra(override: Override) -> bool:
    """Whether an override chooses files."""
    key = override.key_or_group
    return "/" in key or key.startswith("hydra") or (CONF / key).is_dir()


@functools.cache
def _merged(name: str, choices: tuple[str, ...]) -> DictConfig:
    return compose(name, list(choices), return_hydra_config=True)


def run_of(config: DictConfig) -> list[Result]:
    """Run the job of a configuration, and return its results."""
    return run_job(Job.of(config), Console())


def timed_in_no_time(*arguments: Any, **options: Any) -> dict[str, Timing]:
    """Time layers where it does not matter which form of a regrouped one is the fastest."""
    return time_layers(*arguments, **{**options, "samples": 1, "slot": 1e-4})
