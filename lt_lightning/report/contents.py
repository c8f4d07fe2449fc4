"""What there is to report: searches with their results, cards and failures, and how their tickets are named."""

from __future__ import annotations

import csv
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lt_lightning.experiment.config.fingerprint import operational_options
from lt_lightning.files import read_json
from lt_lightning.results.aggregate import Row, settings_of, short
from lt_lightning.results.failures import Failure
from lt_lightning.results.job_record import FILE as JOB
from lt_lightning.results.job_record import JobRecord, Task
from lt_lightning.results.records import Result
from lt_lightning.results.status import State, state_of, tasks_under


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
            searches = _searches_of(file.parent.parent)
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


def _searches_of(job: Path) -> set[str]:
    """Names of the folders of the searches that a job asked for."""
    return {task.folder.name for task in JobRecord.load(job).tasks if task.kind is None}


def _command_of(file: Path) -> str:
    """What was typed: that of the whole sweep, if Hydra's own sweeper made the job."""
    of_sweep = file.parents[2] / "multirun.yaml"
    if of_sweep.is_file():
        overrides: Any = ["-m", *OmegaConf.load(of_sweep).hydra.overrides.task]
    else:
        overrides = OmegaConf.to_container(OmegaConf.load(file)) or []
    return " ".join(["python scripts/run.py", *(shlex.quote(str(override)) for override in overrides)])


# What is there to report: searches with their results, and how their tickets are named and grouped.


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

    def place_of(self, result: Result) -> Path:
        """Folder of a ticket."""
        return self.folder.parent / result.place

    def setting_of(self, result: Result) -> str:
        """That of the search; and of the ticket's options, where the same round has several of that name."""
        key = (result.round, result.structure, result.control)
        alike = [each for each in self.results if (each.round, each.structure, each.control) == key]
        name = Path(result.place).name
        return self.setting if len(alike) < 2 else ", ".join(filter(None, (self.setting, f"ticket={name}")))


@dataclass(frozen=True)
class Asked:
    """One job that asked for some of the work.

    Attributes:
        command: that began it, or the sweep that it is of, as on the command line.
        config: composed from it, not resolved.
    """

    command: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """What is under a folder.

    Attributes:
        path: that was asked for.
        root: that the searches stand under.
        searches: ordered by data set, network, setting and seed.
        asked: the jobs that asked for the work.
        missing: what is not there or cannot be read, one line each.
    """

    path: Path
    root: Path
    searches: tuple[Search, ...]
    asked: tuple[Asked, ...]
    missing: tuple[str, ...]

    @property
    def results(self) -> list[tuple[str, Result]]:
        """All results, each with the setting that it belongs to."""
        return [(search.setting_of(result), result) for search in self.searches for result in search.results]


@dataclass(frozen=True)
class Group:
    """What stands in one figure: a data set, a network and a setting.

    Attributes:
        rows: tickets over seeds.
        results: that they are made from.
    """

    rows: tuple[Row, ...]
    results: tuple[Result, ...]

    @property
    def title(self) -> str:
        """For people."""
        row = self.rows[0]
        return ", ".join(filter(None, (row.data, row.model, short(row.setting))))


def groups_of(found: Found, rows: Sequence[Row]) -> list[Group]:
    """Rows and results that belong together."""
    results = found.results
    return [
        Group(
            tuple(row for row in rows if (row.data, row.model, row.setting) == key),
            tuple(result for setting, result in results if (result.data, result.model, setting) == key),
        )
        for key in dict.fromkeys((row.data, row.model, row.setting) for row in rows)
    ]


def name_of(ticket: Row | Result) -> str:
    """Of a ticket; that of a control says so.

    >>> name_of(Result(**{**dict.fromkeys(Result.__dataclass_fields__, 0), "structure": "refill", "control": "reinit"}))
    'refill (reinit control)'
    """
    return named(ticket.structure, ticket.control)


def named(structure: str, control: str) -> str:
    """Likewise, from its parts."""
    return f"{structure} ({control} control)" if control else structure


# What has been run: searches, results, cards and failures under a folder, and what of it is missing.

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
            job = JobRecord.load(file.parent)
        except (OSError, ValueError, KeyError, TypeError) as error:
            missing.append(f"{file} cannot be read: {error}")
            continue
        if job.error:
            missing.append(f"job {job.number} failed: {job.error}")
        tasks |= dict.fromkeys(job.asked_tasks)
    searches = sorted({task.folder for task in tasks if task.kind is None})
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
        asked = tasks_under(root) if only is None else only
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
            told = f" ({state.detail})" if state.detail else ""
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
        node = config.get(group)
        left_out = operational_options(node) if isinstance(node, Mapping) else ()
        for key, value in _flat(node, group):
            part = key.split(".")
            option = part[1] if len(part) > 1 else ""
            if option not in left_out and part[-1] != "seed":
                flat[key] = str(value)
    return flat


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _flat(each, f"{key}.{name}")
    else:
        yield key, value
