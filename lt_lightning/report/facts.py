"""Reads what stands in a search's folder beside its results; what cannot be read is as if it were not there."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lt_lightning.files import read_json
from lt_lightning.report.found import Asked
from lt_lightning.study.multirun import JOB
from lt_lightning.study.places import search_folder
from lt_lightning.study.stages import stages_of
from lt_lightning.study.sweep import Job


def card_of(folder: Path) -> Mapping[str, Any]:
    """A ticket's card, with its layers; empty if it cannot be read."""
    return _values(folder / "ticket.json")


def layer_times_of(folder: Path) -> Mapping[str, Any]:
    """Times of a ticket's layers; empty if they were not measured."""
    return _values(folder / "layer_times.json")


def environment_of(search: Path) -> Mapping[str, Any]:
    """Hardware and versions that a search ran with last; empty if they were not recorded."""
    return _values(search / "environment.json")


def _values(file: Path) -> Mapping[str, Any]:
    try:
        values = read_json(file)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def rounds_of(search: Path) -> list[Mapping[str, Any]]:
    """Facts of every round that is trained."""
    try:
        facts = read_json(search / "rounds.json")
    except (OSError, ValueError):
        return []
    return [each for each in facts if isinstance(each, dict)] if isinstance(facts, list) else []


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """The rows of a training's `metrics.csv`."""
    try:
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, AttributeError, csv.Error):
        return []


def asked_of(path: Path, root: Path, folders: Sequence[Path]) -> Iterator[Asked]:
    """The jobs that asked for these searches, by what Hydra keeps of each.

    Args:
        path: that the report is about: of jobs, perhaps.
        root: that the searches stand under.
        folders: of the searches.
    """
    wanted = {folder.name for folder in folders}
    jobs = path if any(path.rglob(JOB)) else root / "jobs"
    for file in sorted(jobs.rglob(".hydra/overrides.yaml")):
        try:
            config = _config_beside(file)
            searches = _searches_of(file.parent.parent, config)
            command = _command_of(file)
        except Exception:  # whatever a damaged file, or one of another version, makes them raise
            continue
        if searches & wanted:
            plain: Any = OmegaConf.to_container(config)
            yield Asked(command, plain)


def _config_beside(file: Path) -> DictConfig:
    """The job's configuration, names of groups put in."""
    config, hydra = (OmegaConf.load(file.with_name(name)) for name in ("config.yaml", "hydra.yaml"))
    assert isinstance(config, DictConfig)
    choices = hydra.hydra.runtime.choices
    plain: Any = OmegaConf.to_container(config.labels)
    config.labels = {key: choices[key] if "${hydra:" in str(value) else value for key, value in plain.items()}
    return config


def _searches_of(job: Path, config: DictConfig) -> set[str]:
    """Names of the folders of the searches that a job asked for."""
    if (job / JOB).is_file():
        return {task.folder.name for task in Job.load(job).tasks if not task.structure}
    return {search_folder(stage.config).name for stage in stages_of(config) if stage.own}


def _command_of(file: Path) -> str:
    """What was typed: that of the whole sweep, if Hydra's own sweeper made the job."""
    of_sweep = file.parents[2] / "multirun.yaml"
    if of_sweep.is_file():
        overrides: Any = ["-m", *OmegaConf.load(of_sweep).hydra.overrides.task]
    else:
        overrides = OmegaConf.to_container(OmegaConf.load(file)) or []
    return " ".join(["python scripts/run.py", *(shlex.quote(str(override)) for override in overrides)])
