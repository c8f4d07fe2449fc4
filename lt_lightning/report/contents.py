"""What there is to report: the searches under a folder with their results, the jobs that asked for them, and gaps."""

from __future__ import annotations

import csv
import hashlib
import re
import shlex
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from lt_lightning.results.aggregate import Row, settings_of, short_setting
from lt_lightning.results.job_record import FILE as JOB
from lt_lightning.results.job_record import JobRecord, Task, jobs_of
from lt_lightning.results.records import Result
from lt_lightning.results.status import state_of, tasks_of, tasks_under
from lt_lightning.storage.files import read_csv, read_json
from lt_lightning.storage.layout import RoundFacts, read_rounds

SEARCH_GROUPS = ("data", "model", "classifier", "pruning", "trainer", "execution", "callbacks")


@dataclass(frozen=True)
class Search:
    """One search and the tickets made from it.

    Attributes:
        folder: folder of the search.
        config: configuration that it was begun with, as plain values; empty if it cannot be read.
        results: results of all its finished tickets.
        rounds: facts of every round that is trained, from `rounds.json`.
        setting: what else tells it apart from searches of the same data and network, besides the seed.
    """

    folder: Path
    config: Mapping[str, Any]
    results: tuple[Result, ...]
    rounds: tuple[RoundFacts, ...]
    setting: str = ""

    @property
    def data_and_model(self) -> tuple[str, str]:
        """Names of the data set and the network."""
        if self.config.get("labels"):
            return data_and_model(self.config)
        return (self.results[0].data, self.results[0].model) if self.results else ("?", "?")

    @property
    def seed(self) -> int | None:
        """Seed of the search; None if it is not known."""
        seed = self.config.get("seed", self.results[0].seed if self.results else None)
        return seed if isinstance(seed, int) else None

    def folder_of(self, result: Result) -> Path:
        """Return the folder of a ticket."""
        return self.folder.parent / result.place

    def settings(self) -> Iterator[tuple[str, Result]]:
        """Yield each result after the search's setting, and its folder where several in a round are of one kind."""
        alike = Counter((result.round, result.kind) for result in self.results)
        for result in self.results:
            ticket = f"ticket={Path(result.place).name}" if alike[result.round, result.kind] > 1 else ""
            yield ", ".join(filter(None, (self.setting, ticket))), result


@dataclass(frozen=True)
class Command:
    """A job that asked for some of the searches.

    Attributes:
        text: command line of the job, or of the sweep that it belongs to.
        config: composed configuration of the job, not resolved.
    """

    text: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Contents:
    """What is under a folder.

    Attributes:
        path: the folder.
        root: folder that holds the searches.
        searches: searches, ordered by data set, network, setting and seed.
        commands: jobs that asked for the searches.
        missing: what is not there or cannot be read, one line each.
    """

    path: Path
    root: Path
    searches: tuple[Search, ...]
    commands: tuple[Command, ...]
    missing: tuple[str, ...]

    @cached_property
    def results(self) -> list[tuple[str, Result]]:
        """Pairs of a setting and a result in it."""
        return [pair for search in self.searches for pair in search.settings()]

    @cached_property
    def shown(self) -> list[Search]:
        """The first search with results of each data set, network and setting, of which details are shown."""
        shown: dict[tuple[tuple[str, str], str], Search] = {}
        for search in self.searches:
            if search.results:
                shown.setdefault((search.data_and_model, search.setting), search)
        return list(shown.values())


@dataclass(frozen=True)
class Group:
    """What stands in one figure: the tickets of one data set, network and setting.

    Attributes:
        rows: tickets over seeds.
        results: results that the rows are made from.
    """

    rows: tuple[Row, ...]
    results: tuple[Result, ...]

    @property
    def title(self) -> str:
        """Names of the data set, the network and the setting."""
        row = self.rows[0]
        return ", ".join(filter(None, (row.data, row.model, short_setting(row.setting))))

    @property
    def file_name(self) -> str:
        """Name of the group's files, without what comes before and after it."""
        return file_name(self.title)


def groups_of(contents: Contents, rows: Sequence[Row]) -> list[Group]:
    """Put rows and results together that belong in one figure."""
    rows_of: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    results_of: dict[tuple[str, str, str], list[Result]] = defaultdict(list)
    for row in rows:
        rows_of[row.data, row.model, row.setting].append(row)
    for setting, result in contents.results:
        results_of[result.data, result.model, setting].append(result)
    return [Group(tuple(each), tuple(results_of[key])) for key, each in rows_of.items()]


def data_and_model(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the names of data set and network in a job's configuration."""
    labels = config.get("labels") or {}
    return str(labels.get("data", "?")), str(labels.get("model", "?"))


def file_name(title: str) -> str:
    """Return a title as a part of file names, no longer than file systems allow.

    >>> file_name("digits, resnet8, rate=0.2")
    'digits_resnet8_rate=0.2'
    """
    name = re.sub(r"[^\w.=-]+", "_", title)
    return name if len(name) <= 80 else f"{name[:71]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


# Reading a folder.


def collect(path: Path) -> Contents:
    """Read the folder of a search, the folder of a sweep's jobs, or a root with any number of both.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}: name a search, a sweep's jobs or the root of both")
    path = path.resolve()
    missing: list[str] = []
    parts: set[Path] | None = None
    has_jobs = any(path.rglob(JOB))
    begun = sorted({file.parent for name in ("config.yaml", "round_*") for file in path.glob(f"*/{name}")})
    if (path / "config.yaml").is_file():
        root, folders, tasks = path.parent, [path], _tasks_by(tasks_of, path, missing)
    elif begun or not has_jobs:
        root, folders, tasks = path, begun, _tasks_by(tasks_under, path, missing)
    else:
        root, folders, tasks = _of_jobs(path, missing)
        parts = {part for task in tasks for part in task.parts}
    searches = [_search(folder, parts, missing) for folder in folders]
    finished = {search.folder_of(result) for search in searches for result in search.results}
    missing += _unfinished(tasks, set(folders), finished)
    if not searches and not missing:
        missing.append(f"{path}: nothing has been run here")
    records = (path if has_jobs else root / "jobs").rglob(JOB)
    jobs = jobs_of(path) if folders == [path] else [file.parent for file in records]
    commands = _commands(sorted(jobs), {folder.name for folder in folders})
    return Contents(path, root, tuple(_with_settings(searches)), tuple(commands), tuple(missing))


def _tasks_by(find: Callable[[Path], list[Task]], path: Path, missing: list[str]) -> list[Task]:
    with _warnings_into(missing):
        return find(path)


def _of_jobs(path: Path, missing: list[str]) -> tuple[Path, list[Path], list[Task]]:
    """Return the root, the searches and the tasks that the jobs under a folder asked for."""
    tasks: dict[Task, None] = {}
    for file in sorted(path.rglob(JOB)):
        try:
            job = JobRecord.load(file.parent)
        except (OSError, ValueError) as error:
            missing.append(str(error))
            continue
        if job.error:
            missing.append(f"job {job.number} failed: {job.error}")
        tasks |= dict.fromkeys(job.asked_tasks)
    searches = sorted({task.folder for task in tasks if task.kind is None})
    begun = [folder for folder in searches if folder.is_dir()]
    missing += [f"{folder}: not begun" for folder in searches if folder not in begun]
    return (searches[0].parent if searches else path), begun, list(tasks)


def _search(folder: Path, parts: Set[Path] | None, missing: list[str]) -> Search:
    """Read a search, with all of its results or with those alone that lie in certain folders."""
    config: Any = {}
    try:
        config = read_yaml(folder / "config.yaml")
        if not isinstance(config, dict):
            config = {}
            raise ValueError("it holds no options by name")
    except Exception as error:  # whatever a damaged file makes its reader raise
        known = isinstance(error, (OSError, ValueError, yaml.YAMLError))
        text = (str(error).splitlines() or [""])[0]
        missing.append(
            f"{folder.name}/config.yaml cannot be used: {text if known else f'{type(error).__name__}: {text}'}"
        )
    with _warnings_into(missing):
        results = tuple(_results(folder))
    search = Search(folder, config, results, tuple(read_rounds(folder)))
    if parts is None:
        return search
    return replace(search, results=tuple(each for each in search.results if search.folder_of(each) in parts))


def _results(folder: Path) -> Iterator[Result]:
    """Yield the results of a search, with the places where they are now: its folder may have been renamed."""
    for file in sorted(folder.glob("round_*/*/result.json")):
        if (result := Result.load(file.parent)) is not None:
            place = file.parent.relative_to(folder.parent).as_posix()
            yield replace(result, search=folder.name, place=place)


def _unfinished(tasks: Iterable[Task], searches: Set[Path], finished: Set[Path]) -> Iterator[str]:
    """Yield a line for each task of the searches that is not finished."""
    for task in tasks:
        search = next((folder for folder in (task.folder, *task.folder.parents) if folder in searches), None)
        if search is not None and not finished >= set(task.parts):
            with warnings.catch_warnings(action="ignore"):  # which reading the results gave already
                state = state_of(task)
            if state.kind != "done":
                why = f" ({state.detail})" if state.detail else ""
                yield f"{search.name}: {task.label}: {state.kind}{why}"


@contextmanager
def _warnings_into(lines: list[str]) -> Iterator[None]:
    """Collect the texts of warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    lines += [str(warning.message) for warning in caught]


def _commands(jobs: Iterable[Path], searches: Set[str]) -> Iterator[Command]:
    """Yield those of some jobs that asked for any of these searches, by what Hydra keeps of each."""
    for folder in jobs:
        hydra = folder / ".hydra"
        try:
            names = {task.folder.name for task in JobRecord.load(folder).tasks if task.kind is None}
            if names & searches:
                yield Command(_command_text(hydra), _job_config(hydra))
        except Exception:  # whatever a damaged file, or one of another version, makes its reader raise
            continue


def _command_text(hydra: Path) -> str:
    """Return the command of a job: that of the whole sweep, if Hydra's own sweeper made the job."""
    sweep = hydra.parent.parent / "multirun.yaml"
    if sweep.is_file():
        overrides = ["-m", *read_yaml(sweep)["hydra"]["overrides"]["task"]]
    else:
        overrides = read_yaml(hydra / "overrides.yaml") or []
    return " ".join(["lt-lightning run", *(shlex.quote(str(override)) for override in overrides)])


def _job_config(hydra: Path) -> Mapping[str, Any]:
    """Return the configuration of a job, with the names of its groups put in."""
    config = read_yaml(hydra / "config.yaml")
    choices = read_yaml(hydra / "hydra.yaml")["hydra"]["runtime"]["choices"]
    labels = {key: choices[key] if "${hydra:" in str(value) else value for key, value in config["labels"].items()}
    return {**config, "labels": labels}


# What tells searches apart.


def _with_settings(searches: Sequence[Search]) -> Iterator[Search]:
    """Yield the searches in order, each with what tells it apart from others of the same data and network."""
    for names in sorted({search.data_and_model for search in searches}):
        alike = [search for search in searches if search.data_and_model == names]
        settings = iter(settings_of([_options(search) for search in alike if search.config]))
        named = [replace(each, setting=next(settings) if each.config else "unknown configuration") for each in alike]
        yield from sorted(named, key=lambda each: (each.setting, each.seed or 0, each.folder.name))


def _options(search: Search) -> dict[str, str]:
    """Return the options that may tell searches apart besides the seed, by dotted key."""
    try:
        left_out = set(read_json(search.folder / "operational.json"))
    except (OSError, ValueError, TypeError):
        left_out = set()
    flat = dict(pair for group in SEARCH_GROUPS for pair in _flat(search.config.get(group), group))
    return {key: str(value) for key, value in flat.items() if key not in left_out and not key.endswith(".seed")}


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _flat(each, f"{key}.{name}")
    else:
        yield key, value


# Files that stand beside results; what cannot be read is empty, but for YAML.


def read_yaml(file: Path) -> Any:
    """Read a YAML file by the fast parser, if there is one.

    Raises:
        OSError, yaml.YAMLError: if it cannot be read.
    """
    return yaml.load(file.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def card_of(folder: Path) -> Mapping[str, Any]:
    """Return the card of a ticket, with its layers."""
    return _values(folder / "ticket.json")


def layer_times_of(folder: Path) -> Mapping[str, Any]:
    """Return the times of a ticket's layers."""
    return _values(folder / "layer_times.json")


def environment_of(search: Path) -> Mapping[str, Any]:
    """Return the hardware and versions that a search ran with last."""
    return _values(search / "environment.json")


def data_digest_of(search: Path) -> str:
    """Return the digest of the data that a search was trained on; empty if it is not known."""
    return str(_values(search / "data.json").get("digest", ""))


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """Return the rows of a training's `metrics.csv`."""
    try:
        rows = read_csv(folder / "metrics.csv")
        return [{key: float(value) for key, value in row.items() if value} for row in rows]
    except (OSError, ValueError, TypeError, AttributeError, csv.Error):
        return []


def _values(file: Path) -> Mapping[str, Any]:
    try:
        values = read_json(file)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
