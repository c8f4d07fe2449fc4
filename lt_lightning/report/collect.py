"""What has been run: searches, results, cards and failures under a folder, and what of it is missing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lt_lightning.report.facts import asked_of, rounds_of
from lt_lightning.report.found import Found, Search
from lt_lightning.study.aggregate import settings_of
from lt_lightning.study.bisection import asked_of as tasks_asked
from lt_lightning.study.determining import OPERATIONAL
from lt_lightning.study.failures import Failure
from lt_lightning.study.multirun import JOB
from lt_lightning.study.places import Task
from lt_lightning.study.results import Result
from lt_lightning.study.status import state_of
from lt_lightning.study.sweep import Job

SEARCH_KEYS = ("data", "model", "classifier", "pruning", "trainer", "execution")


def collect(path: Path) -> Found:
    """Reads a search's folder, the folder of a sweep's jobs, or a root with any number of both.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}: name a search, a sweep's jobs or the root of both")
    path = path.resolve()
    missing: list[str] = []
    if (path / "config.yaml").is_file():
        root, folders, only = path.parent, [path], None
    elif not any(path.glob("*/config.yaml")) and any(path.rglob(JOB)):
        root, folders, only = _of_jobs(path, missing)
    else:
        root, only = path, None
        folders = sorted({file.parent for name in ("config.yaml", "round_*") for file in path.glob(f"*/{name}")})
    searches = [_search(root, folder, only, missing) for folder in folders]
    if not searches and not missing:
        missing.append(f"{path}: nothing has been run here")
    return Found(path, root, tuple(_with_settings(searches)), tuple(asked_of(path, root, folders)), tuple(missing))


def _of_jobs(path: Path, missing: list[str]) -> tuple[Path, list[Path], list[Task]]:
    """Root, searches and tasks of a sweep, by the records of its jobs."""
    tasks: dict[Task, None] = {}
    for file in sorted(path.rglob(JOB)):
        try:
            job = Job.load(file.parent)
        except (OSError, ValueError, KeyError, TypeError) as error:
            missing.append(f"{file} cannot be read: {error}")
            continue
        if job.error:
            missing.append(f"job {job.number} failed: {job.error}")
        tasks |= dict.fromkeys(job.asked)
    searches = sorted({task.folder for task in tasks if not task.structure})
    there = [folder for folder in searches if folder.is_dir()]
    missing += [f"{folder}: not begun" for folder in searches if folder not in there]
    return (searches[0].parent if searches else path), there, list(tasks)


def _search(root: Path, folder: Path, only: Sequence[Task] | None, missing: list[str]) -> Search:
    config: Mapping[str, Any] = {}
    try:
        loaded = OmegaConf.load(folder / "config.yaml")
        if not isinstance(loaded, DictConfig):
            raise ValueError("it holds no options by name")
        plain: Any = OmegaConf.to_container(loaded)
        config = plain
        loaded.paths.root = str(root)  # it may have been moved
        loaded.transfer = {"from": None}  # its source may be gone; what came of it is found below
        asked = tasks_asked(loaded) if only is None else only
        tasks = [task for task in asked if task.folder.is_relative_to(folder)]
    except Exception as error:  # whatever a damaged file, or one of another version, makes them raise
        known = isinstance(error, (OSError, ValueError, OmegaConfBaseException))
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        missing.append(
            f"{folder.name}/config.yaml cannot be used: {told if known else f'{type(error).__name__}: {told}'}"
        )
        tasks = []
    results = [
        result
        for file in sorted(folder.glob("round_*/*/result.json"))
        if (result := _result(file, missing)) is not None
    ]
    if only is not None:
        parts = {part.resolve() for task in only for part in task.parts}
        results = [result for result in results if (folder.parent / result.place).resolve() in parts]
    with warnings.catch_warnings(action="ignore"):  # told above
        states = tuple(state_of(task) for task in tasks)
    for state in states:
        if state.kind != "done":
            told = f" ({state.told})" if state.told else ""
            missing.append(f"{folder.name}: {state.task.label}: {state.kind}{told}")
    if only is None:
        missing += _unfinished(folder, {part for task in tasks for part in task.parts})
    return Search(folder, config, tuple(results), states, tuple(rounds_of(folder)))


def _unfinished(folder: Path, known: Set[Path]) -> Iterator[str]:
    """Tickets that other commands began."""
    for place in sorted(folder.glob("round_*/*-????????")):
        if place not in known and not (place / "result.json").is_file():
            failure = Failure.load(place)
            told = "begun, not finished" if failure is None else f"failed ({failure.error})"
            yield f"{place.relative_to(folder.parent)}: {told}"


def _result(file: Path, missing: list[str]) -> Result | None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = Result.load(file.parent)
    missing += [str(warning.message) for warning in caught]
    return result


def _with_settings(searches: Sequence[Search]) -> Iterator[Search]:
    kinds: dict[tuple[str, str], list[Search]] = {}
    for search in searches:
        kinds.setdefault(search.kind, []).append(search)
    for kind in sorted(kinds):
        told = iter(settings_of([_determining(search.config) for search in kinds[kind] if search.config]))
        settings = [next(told) if search.config else "unknown configuration" for search in kinds[kind]]
        paired = sorted(
            zip(settings, kinds[kind], strict=True), key=lambda each: (each[0], each[1].seed or 0, each[1].folder.name)
        )
        for setting, search in paired:
            yield Search(search.folder, search.config, search.results, search.states, search.rounds, setting)


def _determining(config: Mapping[str, Any]) -> dict[str, str]:
    """Values by dotted key, of what may tell searches apart besides the seed."""
    flat: dict[str, str] = {}
    for group in SEARCH_KEYS:
        for key, value in _flat(config.get(group), group):
            part = key.split(".")
            option = part[1] if len(part) > 1 else ""
            if option not in OPERATIONAL.get(group, ()) and part[-1] != "seed":
                flat[key] = str(value)
    return flat


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _flat(each, f"{key}.{name}")
    else:
        yield key, value
