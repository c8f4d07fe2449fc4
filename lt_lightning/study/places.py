"""Where a result is: a folder named by a hash of what determines it, so that it is found again and not run again.

Everything here follows from the configuration alone, without building anything of it: what is there can be looked up in
no time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lt_lightning.study.options import check_basics

DENSE, UNSTRUCTURED = "dense", "unstructured"  # the callback's names; it is slow to import

# Raised when a change of the algorithms makes earlier results differ from what would come out now.
ALGORITHM = 1

# What says how, not what, is computed: other values give the same result, up to the rounding of float operations. Any
# other key of these groups, one added by the user too, counts as one that determines the result.
OPERATIONAL = {
    "data": ("root", "workers", "eval_batch_size"),
    "classifier": ("channels_last", "compile"),
    "pruning": ("on_collapse",),
    "trainer": (
        "accelerator", "devices", "num_nodes", "strategy", "sync_batchnorm", "num_sanity_val_steps",
        "log_every_n_steps", "default_root_dir", "enable_progress_bar", "enable_model_summary", "enable_checkpointing",
        "profiler", "detect_anomaly", "benchmark",
    ),
}  # fmt: skip


def hash_of(what: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits for what determines a result: JSON values, in any order.

    >>> hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps({"algorithm": ALGORITHM, **what}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Task:
    """What one process does in one go: a whole search, or the retraining of one structured ticket.

    Attributes:
        folder: of the task; what determines the result hashes to its name.
        label: for people.
        number: round whose ticket is retrained; 0 for a search.
        structure: name of the structure; empty for a search.
        parts: folders, each with a result when the task is finished.
    """

    folder: Path
    label: str
    number: int
    structure: str
    parts: tuple[Path, ...]


def tasks_of(config: DictConfig) -> list[Task]:
    """All that a job consists of: the search, then its cells.

    Raises:
        ValueError: if the configuration leaves that open.
    """
    check_basics(config)
    folder = search_folder(config)
    source = str(config.pruning.next_round_from)
    rounds = int(config.pruning.rounds)
    parts = (round_folder(folder, 0) / DENSE, *(round_folder(folder, n) / source for n in range(1, rounds + 1)))
    search = Task(folder, f"search of {rounds} rounds", 0, "", parts)
    cells = [(number, name, cell_folder(config, number, name)) for number, name in cells_of(config)]
    return [search] + [
        Task(place, f"{name}, round {number} of {rounds}", number, name, (place,)) for number, name, place in cells
    ]


def search_folder(config: DictConfig) -> Path:
    """Folder of a job's search, named by a hash of what determines it."""
    keys = ["dataset", "data", "model", "classifier", "pruning", "trainer", "seed"]
    if config.pruning.next_round_from != UNSTRUCTURED:
        keys.append("structure")
    whole: Any = OmegaConf.to_container(config, resolve=True)
    what = {key: _determining(key, whole[key]) for key in keys}
    what["processes"] = _processes(whole["trainer"])
    name = f"{config.labels.data}-{config.labels.model}-s{config.seed}-{hash_of(what)}"
    return Path(config.paths.root) / name


def cells_of(config: DictConfig) -> list[tuple[int, str]]:
    """Tickets that are retrained alone, as (round, structure)."""
    if config.pruning.next_round_from != UNSTRUCTURED:
        return []
    chosen = config.retrain_rounds
    numbers = range(1, int(config.pruning.rounds) + 1) if chosen is None else sorted(set(chosen))
    return [(number, name) for number in numbers for name in config.structure]


def cell_folder(config: DictConfig, number: int, structure: str) -> Path:
    """Folder of a retrained ticket, named by a hash of what determines it besides the search."""
    options = OmegaConf.to_container(config.structure[structure], resolve=True)
    what = {"structure": options, "execution": config.execution}
    return round_folder(search_folder(config), number) / f"{structure}-{hash_of(what)}"


def round_folder(search: Path, number: int) -> Path:
    """Folder of all tickets of a round."""
    return search / f"round_{number:02d}"


def _determining(group: str, values: Any) -> Any:
    left_out = OPERATIONAL.get(group, ())
    return {key: value for key, value in values.items() if key not in left_out} if left_out else values


def _processes(trainer: Mapping[str, Any]) -> Any:
    """Parts of a batch that are normalised each on its own; as it is written where only the machine could tell.

    Nothing else depends on the number of processes: `data.batch_size` counts the images of all of them together, and
    the order and the augmentation are those of one process.
    """
    if trainer.get("sync_batchnorm"):
        return 1
    devices = trainer.get("devices", "auto")
    count = len(devices) if isinstance(devices, list) else devices
    return count * trainer.get("num_nodes", 1) if isinstance(count, int) and count > 0 else devices
