"""The file `metrics.csv`: everything that a training logs, a row for each step, whole on disk after every epoch."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from lt_lightning.storage.files import replacing


class MetricsFile(Logger):
    """Writes logged scalars to a CSV file; metrics logged at the same step share a row.

    Attributes:
        rows: metrics by step, beginning with those that the file contains.

    Args:
        path: path of the file, which is written anew at every save, to a temporary name first.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows = _read(path) if path.is_file() else {}
        self._saved = True

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        """Return the training's folder, where Lightning's profiler writes."""
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        row = self.rows.setdefault(len(self.rows) if step is None else step, {})
        row.update({name: float(value) for name, value in metrics.items()})
        self._saved = False

    @rank_zero_only
    def drop_after(self, step: int) -> None:
        """Remove the rows of later steps, since a training goes on after this one."""
        self.rows = {number: row for number, row in self.rows.items() if number <= step}

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration is in a file of its own."""

    @rank_zero_only
    def save(self) -> None:
        if self._saved:
            return
        names = dict.fromkeys(name for row in self.rows.values() for name in row)
        with replacing(self.path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["step", *names])
            writer.writeheader()
            writer.writerows({"step": step, **row} for step, row in sorted(self.rows.items()))
        self._saved = True

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()


def _read(path: Path) -> dict[int, dict[str, float]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
        return {int(row.pop("step")): row for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error):
        raise ValueError(f"{path} is damaged: it is not a table of metrics by step") from None
