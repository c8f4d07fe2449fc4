"""The jobs of a benchmark, and the file that it writes after each: a killed benchmark keeps them and goes on there."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console
from torch import nn

from lt_lightning.execution.machine import environment, keep_freed_memory
from lt_lightning.storage.files import read_json, write_json

MODELS = Path(__file__).resolve().parent.parent / "conf" / "model"

Row = Mapping[str, Any]
Job = tuple[Mapping[str, Any], Callable[[], Sequence[Row]]]
"""The description by which a job is recognised, and the function that measures it."""


class Record:
    """Jobs, each with the rows that it gave, in one JSON file with the environment at its head."""

    def __init__(self, path: Path | None, environment: Mapping[str, Any]) -> None:
        """Read what is there.

        Args:
            path: the file; None keeps everything in memory.
            environment: environment of this process.

        Raises:
            ValueError: if the file is damaged, or was written in another environment: times would not compare.
        """
        self.path = path
        self.environment = _plain(environment)
        self.jobs: list[dict[str, Any]] = []
        if path is not None and path.exists():
            read = read_json(path)
            for key in sorted({*read["environment"], *self.environment}):
                before, now = read["environment"].get(key), self.environment.get(key)
                if before != now:
                    raise ValueError(f"{path} was measured with {key}={before!r}, now it is {now!r}: name another file")
            self.jobs = read["jobs"]

    def has(self, job: Mapping[str, Any]) -> bool:
        """Return whether a job is done."""
        return any(done["job"] == _plain(job) for done in self.jobs)

    def add(self, job: Mapping[str, Any], rows: Sequence[Row], seconds: float) -> None:
        """Add a job's rows and write the file."""
        self.jobs.append(_plain({"job": job, "seconds": seconds, "rows": rows}))
        if self.path is not None:
            write_json(self.path, {"environment": self.environment, "jobs": self.jobs})

    def measure(self, jobs: Iterable[Job]) -> None:
        """Run the jobs that are not done yet, one after the other."""
        console = Console(stderr=True)
        for job, call in jobs:
            if self.has(job):
                continue
            shown = (f"{key} {value}" for key, value in job.items() if not isinstance(value, (list, tuple, dict)))
            console.print(f"{time.strftime('%H:%M:%S')}  {', '.join(shown)}", highlight=False)
            start = time.perf_counter()
            rows = call()
            self.add(job, rows, time.perf_counter() - start)
            torch._dynamo.reset()  # what was compiled is not needed again
            gc.collect()


def open_record(path: Path | None, threads: int | None, **settings: object) -> tuple[Record, str]:
    """Prepare this process for measuring, and open the record.

    Args:
        path: see `Record`.
        threads: threads of the CPU; None leaves one a core.
        settings: further settings of the process, for the environment.

    Returns:
        The record and the device to measure on.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if threads:
        torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True
    return Record(path, environment(device, freed_memory_kept=keep_freed_memory(), **settings)), device


def rows_of(jobs: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return the rows of all jobs of a kind, each with the number of its job: a machine's speed drifts between jobs."""
    return [{**row, "job": i} for i, done in enumerate(jobs) if done["job"]["kind"] == kind for row in done["rows"]]


def jobs_in(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the jobs of several files."""
    return [job for path in paths for job in read_json(path)["jobs"]]


def model_names() -> list[str]:
    """Return the names of the networks that the configuration knows."""
    return sorted(path.stem for path in MODELS.glob("*.yaml"))


def make_network(name: str, classes: int, channels: int) -> nn.Module:
    """Make a network of the configuration, at initial values that are always the same."""
    dataset = {"classes": classes, "channels": channels}
    torch.manual_seed(0)
    network: nn.Module = instantiate(
        OmegaConf.create({"dataset": dataset, "model": OmegaConf.load(MODELS / f"{name}.yaml")}).model
    )
    return network


@dataclass(frozen=True)
class LayerDensities:
    """Densities of layers, and what they are of.

    Attributes:
        name: what tables call them.
        networks: density of every prunable layer by network; a ticket's card, which does not name one, has them at "".
    """

    name: str
    networks: Mapping[str, Mapping[str, float]]

    @classmethod
    def read(cls, path: Path) -> LayerDensities:
        """Read a file of `results/layer_densities_authors.json`'s kind, or the card of a ticket (`ticket.json`).

        Of a card it is the shares that the round's unstructured mask keeps of the prunable layers.

        Raises:
            ValueError: if the file is neither.
        """
        read = read_json(path)
        match read:
            case {"name": str(name), "networks": dict(networks)}:
                return cls(name, networks)
            case {"layers": dict(layers), "prunable": list(prunable)}:
                found = {layer: layers[layer]["target"] / layers[layer]["size"] for layer in prunable}
                return cls(f"found search, {path.parent.parent.name}", {"": found})
        raise ValueError(f"{path}: must be a ticket's card (ticket.json), or hold a name and networks")

    def of(self, network: str) -> Mapping[str, float]:
        """Return the densities of a network's layers.

        Raises:
            ValueError: if there are none.
        """
        if (found := self.networks.get(network, self.networks.get(""))) is None:
            raise ValueError(f"--network={network}: {self.name} has layer densities of {', '.join(self.networks)}")
        return found


def table_console() -> Console:
    """Return a console wide enough for the tables, also where the output is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 240, soft_wrap=True)


def _plain(value: Any) -> Any:
    """Return the value as it is read back from JSON."""
    return json.loads(json.dumps(value))
