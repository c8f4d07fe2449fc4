"""Results: a JSON file beside each finished ticket, and `summary.csv` with a row for each of them.

A finished task adds its rows to the end of the table, whatever the table holds already, so that no task costs more
than the one before. Where a task is repeated after a kill or a damage, the last of several rows of one place counts;
the end of a sweep writes the table anew.
"""

from __future__ import annotations

import fcntl
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from lt_lightning.results.job_record import Task, TicketKind
from lt_lightning.storage.files import csv_text, read_json, write_csv, write_json
from lt_lightning.storage.litter import clear_litter

FILE = "result.json"
SUMMARY = "summary.csv"
LONGEST_LINE = 1 << 16  # bytes
WIDE = 0.2  # spread above which a ratio of times is not relied on: the machine did other work


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
        filters_density: share of the prunable weights in whole filters, where every layer keeps as large a share of its
            filters as the mask keeps of its weights, rounded up (what the paper counts for refill); 0 if unknown.
        control: name of the control that the ticket is (`reinit`, ...); empty for the ticket itself.
        origin: data set whose search made the ticket's mask; empty where it is the job's own search.
        time_spread_inference: distance of the quartiles of the ratios that the turns of the measurement gave, over
            their median; 0 if not measured.
        time_spread_training: the same for a training step.
        time_samples: number of the turns; 0 if not measured.
        total_epochs: number of epochs that the ticket and its ancestors were trained: the dense training, every round
            up to its own, and its retraining; of a control from initial values its own training alone; 0 if not known.
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
    filters_density: float = 0.0
    control: str = ""
    origin: str = ""
    time_spread_inference: float = 0.0
    time_spread_training: float = 0.0
    time_samples: int = 0
    total_epochs: int = 0

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


def is_wide(spread: float) -> bool:
    """Whether a ratio of times has too large a spread to be relied on; one that is not known does not count as such."""
    return spread > WIDE


def find_results(root: Path) -> list[Result]:
    """Return every finished result under a folder, ordered by data, model, seed, search, round and kind."""
    files = root.glob(f"*/round_*/*/{FILE}")
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


# The table of all results under a root.

HEADS = tuple(field.name for field in fields(Result))


def finish(root: Path, results: Sequence[Result]) -> None:
    """Add results to `summary.csv`, and then write each beside its ticket, which marks the ticket as finished.

    The table is written anew only where it is missing or has other columns.
    """
    with _table_of(root) as file:
        if _has_our_heads(file):
            _drop_torn_line(file)
            file.write(csv_text(map(astuple, results)).encode())
            file.flush()
            os.fsync(file.fileno())
        else:
            _write_anew(root, results)
        for result in results:
            result.save(root / result.place)


def write_summary(root: Path) -> None:
    """Write `summary.csv` anew from all results under the root."""
    with _table_of(root):
        _write_anew(root)


def has_summary(root: Path) -> bool:
    """Whether there is a table with our columns."""
    try:
        with (root / SUMMARY).open("rb") as file:
            return _has_our_heads(file)
    except FileNotFoundError:
        return False


def _write_anew(root: Path, more: Sequence[Result] = ()) -> None:
    clear_litter(root, f".{SUMMARY}.")
    write_csv(root / SUMMARY, HEADS, map(astuple, [*find_results(root), *more]))


@contextmanager
def _table_of(root: Path) -> Iterator[BinaryIO]:
    """Open the table for one process at a time; it is made if it is missing."""
    root.mkdir(parents=True, exist_ok=True)
    while True:
        with (root / SUMMARY).open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_there(root / SUMMARY, file):
                continue  # written anew, or removed, while this process was waiting
            yield file
            return


def _is_there(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _has_our_heads(file: BinaryIO) -> bool:
    file.seek(0)
    return file.readline() == csv_text([HEADS]).encode()


def _drop_torn_line(file: BinaryIO) -> None:
    """Remove what a process that was killed while it wrote has left of its last line."""
    start = max(0, file.seek(0, os.SEEK_END) - LONGEST_LINE)
    file.seek(start)
    file.truncate(start + file.read().rfind(b"\n") + 1)
