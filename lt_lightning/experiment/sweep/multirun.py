"""A sweep as each of its jobs sees it: what it is called, how many jobs there are, and how long is left."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict

from lt_lightning.experiment.config.tasks import hash_of
from lt_lightning.files import read_json, write_json
from lt_lightning.results.job_record import FILE as JOB

FILE = "sweep.json"
KEY = "sweep"  # of a job's configuration: the sweep's folder


@dataclass(frozen=True)
class Multirun:
    """A sweep that has begun.

    Attributes:
        folder: of the sweep.
        name: that it has whenever it is started with the same overrides: `cifar10_vgg16-1a2b3c4d`.
        jobs: how many it consists of; None if that cannot be told.
        start: of this attempt, in seconds of the system's clock.
    """

    folder: Path
    name: str
    jobs: int | None
    start: float

    @classmethod
    def begin(cls, config: DictConfig) -> Multirun:
        """Records a sweep in its folder.

        Args:
            config: as Hydra hands it to `on_multirun_start`, with its own part.
        """
        sweeper, task = config.hydra.sweeper, list(config.hydra.overrides.task)
        choices = config.hydra.runtime.choices  # the labels, which name them, cannot be resolved yet
        what = choices.get("experiment") or f"{choices.data}-{choices.model}"
        told = sorted(each for each in task if not each.startswith("paths."))
        sweep = cls(
            Path(config.hydra.sweep.dir), f"{what}-{hash_of({'sweep': told})}", count_jobs(sweeper, task), time.time()
        )
        sweep.save()
        return sweep

    def save(self) -> None:
        """Writes the record."""
        write_json(self.folder / FILE, {"name": self.name, "jobs": self.jobs, "start": self.start})

    @classmethod
    def above(cls, path: Path) -> Multirun | None:
        """The sweep that a path is in."""
        for parent in path.parents:
            if (parent / FILE).is_file():
                return cls(folder=parent, **read_json(parent / FILE))
        return None

    @classmethod
    def of(cls, config: DictConfig) -> Multirun | None:
        """The sweep that a job is of, by its configuration."""
        return None if (folder := config.get(KEY)) is None else cls.above(Path(folder) / JOB)

    def enter(self, config: DictConfig) -> None:
        """Names the sweep in a job's configuration, which goes wherever the job goes: into processes, and to disk."""
        with open_dict(config):
            config[KEY] = str(self.folder)

    def ended(self) -> tuple[int, int]:
        """How many jobs have ended, and how many of them had something to train."""
        records: list[dict[str, Any]] = [read_json(path) for path in self.folder.rglob(JOB)]
        ends = [record["trained"] for record in records if record.get("trained") is not None]
        return len(ends), sum(ends)

    def seconds_left(self, share: float, ended: tuple[int, int]) -> float:
        """Of the whole sweep, if the jobs to come have as much to train as those that trained; NaN if unknown.

        Args:
            share: of the current job that is done.
            ended: see `ended`.
        """
        done = ended[1] + share
        if self.jobs is None or done <= 0:
            return math.nan
        return (time.time() - self.start) / done * max(0.0, self.jobs - ended[0] - share)


def count_jobs(sweeper: Any, overrides: list[str]) -> int | None:
    """Jobs that Hydra's own sweeper or Optuna's makes of these overrides; None if that cannot be told.

    >>> count_jobs({"params": {"seed": "0,1", "model": "a,b"}}, ["seed=range(0,5)", "data=digits"])
    10
    """
    if "n_trials" in sweeper:
        return int(sweeper["n_trials"])
    named = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    counts: dict[str, int] = {}
    try:
        for override in OverridesParser.create().parse_overrides([*named, *overrides]):
            values = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else [None]
            counts[override.get_key_element()] = len(values)
    except (HydraException, ValueError, TypeError):  # a glob, which needs the groups themselves
        return None
    return math.prod(counts.values())
