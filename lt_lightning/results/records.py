"""Results: a JSON file beside each finished ticket, and `summary.csv` with a row for each of them."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lt_lightning.results.job_record import Task, TicketKind
from lt_lightning.storage.files import read_json, replacing, write_json

FILE = "result.json"
SUMMARY = "summary.csv"


@dataclass(frozen=True)
class Result:
    """What one trained ticket reached.

    Attributes:
        data: name of the data set.
        model: name of the network.
        seed: seed of initialisation, split and order.
        round: pruning round; 0 is the dense network.
        structure: `dense`, `unstructured`, or a structure's name.
        target_density: share of the prunable weights that the round's unstructured mask keeps.
        density: share of the prunable weights that the ticket executes (an unstructured ticket: keeps).
        accuracy: accuracy on the test set, in [0, 1], at the best validation epoch.
        dense_accuracy: accuracy of the same search's dense network.
        params_ratio: number of stored parameters over the dense network's.
        flops_ratio: number of executed multiply-adds over the dense network's.
        train_seconds: wall time of its training.
        val_accuracy: accuracy on the validation set at the best epoch.
        best_epoch: best validation epoch, counted from 0 at the start of its training.
        retained_magnitude: share of the unstructured mask's surviving magnitude that the ticket keeps; NaN for a
            control that keeps other weights.
        time_ratio_inference: measured time of the whole network that executes the ticket over the dense one's, in
            inference at the training batch size; 1 for an unstructured ticket, which runs whole; NaN if not measured.
        time_ratio_training: the same ratio for a training step.
        search: folder of the search, under the root, by which equal rows of different searches differ.
        place: folder of the ticket, under the root.
        executed: share of the prunable weights that are computed with when the plan is executed; 1 without a plan.
        control: name of the control that the ticket is (`reinit`, ...); empty for the ticket itself.
        origin: data set whose search made the ticket's mask; empty where it is the job's own search.
    """

    data: str
    model: str
    seed: int
    round: int
    structure: str
    target_density: float
    density: float
    accuracy: float
    dense_accuracy: float
    params_ratio: float
    flops_ratio: float
    train_seconds: float
    val_accuracy: float
    best_epoch: int
    retained_magnitude: float
    time_ratio_inference: float
    time_ratio_training: float
    search: str
    place: str
    executed: float = 1.0
    control: str = ""
    origin: str = ""

    @property
    def kind(self) -> TicketKind:
        """The kind of the ticket."""
        return TicketKind(self.structure, self.control, self.origin)

    def save(self, folder: Path) -> None:
        """Write the result into a folder, which marks it as finished."""
        write_json(folder / FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Result | None:
        """Return a folder's result; None if it is not finished. A damaged one counts as missing, with a warning."""
        path = folder / FILE
        try:
            return cls._from_json(read_json(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError) as error:
            warnings.warn(f"{error}; {path} counts as missing", stacklevel=2)
            return None

    @classmethod
    def _from_json(cls, values: Any) -> Result:
        if not isinstance(values, dict) or set(values) != {field.name for field in fields(cls)}:
            raise ValueError("not the columns of a result")
        for field in fields(cls):
            kinds = {"str": (str,), "int": (int,), "float": (float, int)}[str(field.type)]
            if not isinstance(values[field.name], kinds):
                raise ValueError(f"{field.name} is {values[field.name]!r}")
        return cls(**values)


def find_results(root: Path) -> list[Result]:
    """Return every finished result under a folder, ordered by data, model, seed, search, round and kind."""
    return _results_in(_files_under(root))


def _files_under(root: Path) -> list[Path]:
    return sorted(root.glob(f"*/round_*/*/{FILE}"))


def _results_in(files: Sequence[Path]) -> list[Result]:
    results = [result for path in files if (result := Result.load(path.parent)) is not None]
    return sorted(results, key=lambda r: (r.data, r.model, r.seed, r.search, r.round, r.kind, r.place))


def results_of(task: Task) -> list[Result] | None:
    """Return the results of a task; None if it is not finished."""
    results = []
    for folder in task.parts:
        if (result := Result.load(folder)) is None:
            return None
        results.append(result)
    return results


def write_summary(root: Path) -> Path:
    """Write `summary.csv` anew from all results under the root, and return its path."""
    path = root / SUMMARY
    written: list[Path] | None = None
    while written != (files := _files_under(root)):  # again, if another process has finished something meanwhile
        write_table(path, _results_in(files))
        written = files
    return path


def write_table(path: Path, results: Sequence[Result]) -> None:
    """Write results as CSV, with a column for each attribute."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Result)])
        writer.writeheader()
        writer.writerows(asdict(result) for result in results)
