"""The tasks that a configuration asks for, and their folders.

A folder is named by a fingerprint of what determines its result, so that the result is found again and not run again.
Everything here follows from the configuration alone, without building anything of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lt_lightning.experiment.config.fingerprint import determining
from lt_lightning.pruning.densities import densities, descending
from lt_lightning.results.job_record import Task
from lt_lightning.results.paths import round_folder
from lt_lightning.results.ticket_kind import TicketKind
from lt_lightning.ticket_names import DENSE, UNSTRUCTURED

# Raised when a change of the algorithms makes earlier results differ from what would come out now.
ALGORITHM = 3


def hash_of(what: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits for what determines a result: JSON values, in any order.

    >>> hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps({"algorithm": ALGORITHM, **what}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def search_task(config: DictConfig) -> Task:
    """Return the search of a job: the dense network and all rounds of pruning."""
    folder, rounds = search_folder(config), rounds_of(config)
    trained = [(0, DENSE), *((number, str(config.pruning.next_round_from)) for number in range(1, rounds + 1))]
    parts = tuple(round_folder(folder, number) / name for number, name in trained)
    return Task(folder, f"search of {rounds} rounds" if rounds else "dense network", 0, None, parts)


def retraining_tasks(config: DictConfig) -> list[Task]:
    """Return the retrainings of the job's own structured tickets; none where the search itself trains its structure."""
    if config.pruning.next_round_from != UNSTRUCTURED:
        return []
    return [
        retraining_task(config, number, TicketKind(str(name)))
        for number in retrained_rounds(config)
        for name in config.structure
    ]


def retraining_task(config: DictConfig, number: int, kind: TicketKind, protocol: str = "", **origin: str) -> Task:
    """Return the retraining of one round's ticket.

    Args:
        config: configuration of the job.
        number: round of the ticket.
        kind: kind of the ticket.
        protocol: name of the protocol that makes the ticket.
        origin: what else determines where the ticket comes from.
    """
    rounds = round_folder(search_folder(config), number)
    options = config.structure.get(kind.structure)
    structure = {} if options is None else OmegaConf.to_container(options, resolve=True)
    digits = hash_of({"structure": structure, "execution": config.execution, **origin})
    folder = rounds / f"{kind.structure}-{digits}"
    label = f"{kind}, round {number} of {rounds_of(config)}"
    return Task(folder, label, number, kind, (folder,), rounds / UNSTRUCTURED, protocol)


def rounds_of(config: DictConfig) -> int:
    """Return the number of pruning rounds: those asked for, or as many as reach the densities that are asked for."""
    return len(densities_of(config))


def densities_of(config: DictConfig) -> list[float]:
    """Return the density that every pruning round prunes to."""
    pruning = config.pruning
    at_once = pruning.get("scores_from", "trained") != "trained"
    return densities(pruning.rounds, pruning.rate, pruning.get("density"), at_once)


def retrained_rounds(config: DictConfig) -> list[int]:
    """Return the rounds whose tickets are retrained: those asked for; else all, or those that reach given densities."""
    if config.retrain_rounds is not None:
        return sorted(set(config.retrain_rounds))
    target, reached = config.pruning.get("density"), enumerate(densities_of(config), start=1)
    return [number for number, density in reached if target is None or density in descending(target)]


def search_folder(config: DictConfig) -> Path:
    """Return the folder of a job's search."""
    keys = ["dataset", "data", "model", "classifier", "pruning", "trainer", "seed"]
    if config.pruning.next_round_from != UNSTRUCTURED:
        keys.append("structure")
    trainer: Any = OmegaConf.to_container(config.trainer, resolve=True)
    what = {**determining(config, keys), "processes": _processes(trainer)}
    name = f"{config.labels.data}-{config.labels.model}-s{config.seed}-{hash_of(what)}"
    return Path(config.paths.root) / name


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
