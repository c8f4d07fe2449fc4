"""The file that a benchmark writes: after every job, so that one that is killed keeps what it has and goes on there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lt_lightning.files import read_json, write_json

Row = Mapping[str, Any]


class Record:
    """Jobs (what was asked), each with the rows that it gave; one JSON file with the environment at its head."""

    def __init__(self, path: Path | None, environment: Mapping[str, Any]) -> None:
        """Reads what is there.

        Args:
            path: of the file; None keeps all in memory.
            environment: of this process.

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
        """Whether a job is done."""
        return any(done["job"] == _plain(job) for done in self.jobs)

    def add(self, job: Mapping[str, Any], rows: Sequence[Row], seconds: float) -> None:
        """Adds a job's rows and writes the file."""
        self.jobs.append(_plain({"job": job, "seconds": seconds, "rows": rows}))
        if self.path is not None:
            write_json(self.path, {"environment": self.environment, "jobs": self.jobs})


def rows_of(jobs: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The rows of all jobs of a kind, each with the number of its job: a machine's speed drifts between jobs."""
    return [{**row, "job": i} for i, done in enumerate(jobs) if done["job"]["kind"] == kind for row in done["rows"]]


def _plain(value: Any) -> Any:
    """As it is read back."""
    return json.loads(json.dumps(value))
