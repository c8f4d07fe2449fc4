"""A sweep as each of its jobs sees it: its name, its number of jobs, and the time that is left."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict

from lt_lightning.experiment.config.fingerprint import hash_of
from lt_lightning.results.job_record import FILE as JOB
from lt_lightning.storage.files import read_json, write_json

FILE = "sweep.json"
KEY = "sweep"  # key of the sweep's folder in a job's configuration


@dataclass(frozen=True)
class Multirun:
    """A sweep that has begun.

    Attributes:
        folder: folder of the sweep.
        name: name that all sweeps with the same overrides have, such as `cifar10_vgg16-1a2b3c4d`.
        jobs: number of its jobs; None if it is unknown.
        start: time when this attempt began, in seconds of the system's clock.
    """

    folder: Path
    name: str
    jobs: int | None
    start: float

    @classmethod
    def begin(cls, config: DictConfig) -> Multirun:
        """Record a sweep in its folder.

        Args:
            config: configuration that Hydra gives to `on_multirun_start`, with its own node `hydra`.
        """
        sweeper, task = config.hydra.sweeper, list(config.hydra.overrides.task)
        choices = config.hydra.runtime.choices  # `labels`, which name the choices, cannot be resolved yet
        title = choices.get("experiment") or f"{choices.data}-{choices.model}"
        overrides = sorted(override for override in task if not override.startswith("paths."))
        name = f"{title}-{hash_of({'sweep': overrides})}"
        sweep = cls(Path(config.hydra.sweep.dir), name, count_jobs(sweeper, task), time.time())
        sweep.save()
        return sweep

    def save(self) -> None:
        """Write the record of the sweep into its folder."""
        write_json(self.folder / FILE, {"name": self.name, "jobs": self.jobs, "start": self.start})

    @classmethod
    def above(cls, path: Path) -> Multirun | None:
        """Return the sweep whose folder contains a path; None if there is none."""
        for parent in path.parents:
            if (parent / FILE).is_file():
                return cls(folder=parent, **read_json(parent / FILE))
        return None

    @classmethod
    def of(cls, config: DictConfig) -> Multirun | None:
        """Return the sweep that a job's configuration names; None for a single job."""
        return None if (folder := config.get(KEY)) is None else cls.above(Path(folder) / JOB)

    def enter(self, config: DictConfig) -> None:
        """Name the sweep in a job's configuration, which goes wherever the job goes: into processes, and to disk."""
        with open_dict(config):
            config[KEY] = str(self.folder)

    def ended(self) -> tuple[int, int]:
        """Return how many jobs have ended, and how many of them had something to train."""
        records: list[dict[str, Any]] = [read_json(path) for path in self.folder.rglob(JOB)]
        ends = [record["trained"] for record in records if record.get("trained") is not None]
        return len(ends), sum(ends)

    def seconds_left(self, share: float, ended: tuple[int, int]) -> float:
        """Return the seconds that the sweep still takes, if the jobs to come train as much as the others; NaN: unknown.

        Args:
            share: share of the current job that is done.
            ended: what `ended` has returned.
        """
        done = ended[1] + share
        if self.jobs is None or done <= 0:
            return math.nan
        return (time.time() - self.start) / done * max(0.0, self.jobs - ended[0] - share)


def count_jobs(sweeper: Any, overrides: list[str]) -> int | None:
    """Return the number of jobs that Hydra's own sweeper or Optuna's makes of these overrides; None if it is unknown.

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
