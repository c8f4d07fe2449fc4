"""What has been run: searches, results, cards and failures under a folder, and what of it is missing."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lt_lightning.files import read_json
from lt_lightning.study.aggregate import settings_of
from lt_lightning.study.failures import Failure
from lt_lightning.study.places import OPERATIONAL, Task, tasks_of
from lt_lightning.study.results import Result
from lt_lightning.study.status import State, state_of
from lt_lightning.study.sweep import FILE as JOB
from lt_lightning.study.sweep import Job

SEARCH_KEYS = ("data", "model", "classifier", "pruning", "trainer", "execution")


@dataclass(frozen=True)
class Search:
    """What is there of one search and the tickets made from it.

    Attributes:
        folder: of the search.
        config: that it was begun with, as plain values; empty if it cannot be read.
        results: of all its finished tickets.
        states: of its tasks.
        rounds: facts of every round that is trained, from `rounds.json`.
        setting: what else tells it apart from searches of the same data and network, besides the seed.
    """

    folder: Path
    config: Mapping[str, Any]
    results: tuple[Result, ...]
    states: tuple[State, ...]
    rounds: tuple[Mapping[str, Any], ...]
    setting: str = ""

    @property
    def kind(self) -> tuple[str, str]:
        """Data set and network, by their labels."""
        labels = self.config.get("labels") or {}
        if labels:
            return str(labels.get("data", "?")), str(labels.get("model", "?"))
        return (self.results[0].data, self.results[0].model) if self.results else ("?", "?")

    @property
    def seed(self) -> int | None:
        """Of the search."""
        seed = self.config.get("seed", self.results[0].seed if self.results else None)
        return seed if isinstance(seed, int) else None


@dataclass(frozen=True)
class Found:
    """What is under a folder.

    Attributes:
        path: that was asked for.
        root: that the searches stand under.
        searches: ordered by data set, network, setting and seed.
        commands: that began the work, as on the command line.
        missing: what is not there or cannot be read, one line each.
    """

    path: Path
    root: Path
    searches: tuple[Search, ...]
    commands: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def results(self) -> list[tuple[str, Result]]:
        """All results, each with the setting that it belongs to."""
        return [(_setting(search, result), _named(result)) for search in self.searches for result in search.results]


TWIN = " twin)"  # ends the name of a control


def _named(result: Result) -> Result:
    """A control has a name of its own, so that it is told apart from its ticket in every figure and table."""
    return replace(result, structure=f"{result.structure} ({result.twin}{TWIN}") if result.twin else result


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
    return Found(path, root, tuple(_with_settings(searches)), tuple(_commands(path, root, folders)), tuple(missing))


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
        tasks |= dict.fromkeys(job.tasks)
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
        asked = tasks_of(loaded) if only is None else only
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
    return Search(folder, config, tuple(results), states, tuple(_rounds(folder)))


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


def _rounds(folder: Path) -> list[Mapping[str, Any]]:
    try:
        facts = read_json(folder / "rounds.json")
    except (OSError, ValueError):
        return []
    return [each for each in facts if isinstance(each, dict)] if isinstance(facts, list) else []


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
            if not (len(part) > 1 and part[1] in OPERATIONAL.get(group, ())) and part[-1] != "seed":
                flat[key] = str(value)
    return flat


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _flat(each, f"{key}.{name}")
    else:
        yield key, value


def _setting(search: Search, result: Result) -> str:
    """That of the search; and of the ticket's options, where the same round has several of that name."""
    key = (result.round, result.structure, result.twin)
    alike = [each for each in search.results if (each.round, each.structure, each.twin) == key]
    name = Path(result.place).name
    return search.setting if len(alike) < 2 else ", ".join(filter(None, (search.setting, f"ticket={name}")))


def _commands(path: Path, root: Path, folders: Sequence[Path]) -> Iterator[str]:
    """Of the jobs that asked for the searches."""
    wanted = {str(folder.resolve()) for folder in folders}
    jobs = path if any(path.rglob(JOB)) else root / "jobs"
    told: dict[str, None] = {}
    for file in sorted(jobs.rglob(".hydra/overrides.yaml")):
        overrides = OmegaConf.to_container(OmegaConf.load(file))
        record = file.parent.parent / JOB
        try:
            job = Job.load(record.parent) if record.is_file() else None
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if job is not None and not any(str(task.folder.resolve()) in wanted for task in job.tasks):
            continue
        shown = " ".join(_quoted(str(override)) for override in overrides or ())
        told[f"python scripts/run.py {shown}".rstrip()] = None
    yield from told


def _quoted(override: str) -> str:
    return f"'{override}'" if any(sign in override for sign in " [](){}$*?") else override


def card_of(folder: Path) -> Mapping[str, Any]:
    """A ticket's card, with its layers; empty if it cannot be read."""
    return _values(folder / "ticket.json")


def environment_of(search: Path) -> Mapping[str, Any]:
    """Hardware and versions that a search ran with last; empty if they were not recorded."""
    return _values(search / "environment.json")


def _values(file: Path) -> Mapping[str, Any]:
    try:
        values = read_json(file)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """The rows of a training's `metrics.csv`; none if it cannot be read."""
    try:
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, AttributeError, csv.Error):
        return []
