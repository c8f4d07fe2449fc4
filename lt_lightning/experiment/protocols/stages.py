"""The jobs that a job is made of, one after the other, each with tasks and places of its own.

Most jobs are one. One that screens is two: its screening, and what is confirmed of it. Either may need a search that is
another job's, and is run first: that by magnitude whose layer densities it takes, the screening of the seed whose
rounds it confirms.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lt_lightning.experiment.config.tasks import tasks_of
from lt_lightning.experiment.protocols.bisection import asked_of
from lt_lightning.experiment.protocols.layer_densities import magnitude_search_of
from lt_lightning.experiment.protocols.screening import (
    choosing_of,
    chosen_by_another,
    chosen_rounds,
    confirmation_of,
    most_rounds,
    screening_of,
    screens,
)
from lt_lightning.results.paths import Task


@dataclass(frozen=True)
class Stage:
    """One of the jobs that a job is made of.

    Attributes:
        config: of it.
        told: what it is, for people; empty for a job that is only itself.
        own: whether its results are the job's, or another's that it needs.
        screened: epochs of its trainings if it is a screening, else None.
        confirms: how many tickets it confirms, if that is what it does, else None.
        open: whether it may come to less, since what it consists of is not known yet.
    """

    config: DictConfig
    told: str = ""
    own: bool = True
    screened: int | None = None
    confirms: int | None = None
    open: bool = False


def stages_of(config: DictConfig, at_most: bool = False) -> Iterator[Stage]:
    """The jobs that a job is made of, as far as that is known.

    Made one by one, so that what is confirmed follows from a screening that was run meanwhile.

    Args:
        config: of the job.
        at_most: whether what is not known yet is to cost the most that it may come to, instead of being left out.

    Raises:
        ValueError: if the screening is impossible.
    """
    for stage in [Stage(config)] if screens(config) is None else _screened(config, at_most):
        if (search := magnitude_search_of(stage.config)) is not None:
            yield Stage(search, "search by magnitude, whose layer densities are taken", own=False)
        yield stage


def all_tasks_of(config: DictConfig) -> list[Task]:
    """All that a job consists of, as far as is known by now, without what it needs of others."""
    return [task for stage in stages_of(config) if stage.own for task in tasks_of(stage.config)]


def _screened(config: DictConfig, at_most: bool) -> Iterator[Stage]:
    told = f"screening of {screens(config)} epochs"
    choosing = screening = screening_of(config)
    if chosen_by_another(config):
        choosing = choosing_of(config)
        yield Stage(choosing, f"{told} with seed {choosing.seed}, which chooses the rounds", own=False)
    yield Stage(screening, told, screened=screens(config))
    known = chosen_rounds(choosing)
    rounds = most_rounds(config, choosing, known) if at_most else known
    told = f"confirmed in {config.trainer.max_epochs} epochs after {told}"
    count = sum(map(len, rounds.values()))
    yield Stage(confirmation_of(config, rounds), told, confirms=count, open=rounds.keys() != known.keys())


def tasks_under(root: Path) -> list[Task]:
    """The tasks of every search under a root: those of the command that began it, and others that left something.

    A search whose configuration cannot be read, or lacks options, is left out, with a warning.
    """
    tasks: list[Task] = []
    for path in sorted(root.glob("*/config.yaml")):
        try:
            config = OmegaConf.load(path)
            config.paths.root = str(root)  # it may have been moved, or named from elsewhere
            config.transfer = {"from": None}  # its source may be gone; what came of it is found below
            asked = [task for task in asked_of(config) if task.folder.is_relative_to(path.parent)]  # type: ignore[arg-type]
        except (ValueError, OmegaConfBaseException) as error:
            warnings.warn(f"{str(error).splitlines()[0]}; the search of {path} is left out", stacklevel=2)
            continue
        known = {part for task in asked for part in task.parts}
        for folder in sorted(path.parent.glob("round_??/*-????????")):
            if folder not in known:
                name, number = folder.name.rpartition("-")[0], int(folder.parent.name.partition("_")[2])
                asked.append(Task(folder, f"{name}, round {number}", number, name, (folder,)))
        tasks += asked
    return tasks
