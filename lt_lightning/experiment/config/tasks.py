"""The tasks that a configuration asks for, and their folders.

A folder is named by a fingerprint of what determines its result, so that the result is found again and not run again.
Everything here follows from the configuration alone, without building anything of it.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from lt_lightning.experiment.config.checks import naming
from lt_lightning.experiment.config.fingerprint import fingerprint, retraining_fingerprint
from lt_lightning.pruning.densities import densities, descending
from lt_lightning.results.job_record import Task, TicketKind
from lt_lightning.storage.layout import DENSE, UNSTRUCTURED, round_folder


def search_task(config: DictConfig) -> Task:
    """Return the search of a job: the dense network and all rounds of pruning."""
    folder, rounds = search_folder(config), rounds_of(config)
    trained = [(0, DENSE), *((number, str(config.pruning.next_round_from)) for number in range(1, rounds + 1))]
    parts = tuple(round_folder(folder, number) / name for number, name in trained)
    return Task(folder, f"search of {rounds} rounds" if rounds else "dense network", 0, None, parts)


def retraining_tasks(config: DictConfig, search: Task) -> list[Task]:
    """Return the retrainings of the search's structured tickets; none where the search itself trains its structure."""
    if config.pruning.next_round_from != UNSTRUCTURED:
        return []
    return [
        retraining_task(config, search, number, TicketKind(str(name)))
        for number in retrained_rounds(config)
        for name in config.structure
    ]


def retraining_task(
    config: DictConfig, search: Task, number: int, kind: TicketKind, protocol: str = "", **origin: str
) -> Task:
    """Return the retraining of one round's ticket.

    Args:
        config: configuration of the job.
        search: search of the job.
        number: round of the ticket.
        kind: kind of the ticket.
        protocol: name of the protocol that makes the ticket.
        origin: what else determines where the ticket comes from.
    """
    rounds = round_folder(search.folder, number)
    folder = rounds / f"{kind.structure}-{retraining_fingerprint(config, kind.structure, origin)}"
    label = f"{kind}, round {number} of {len(search.parts) - 1}"
    return Task(folder, label, number, kind, (folder,), rounds / UNSTRUCTURED, protocol)


def rounds_of(config: DictConfig) -> int:
    """Return the number of pruning rounds: those asked for, or as many as reach the densities that are asked for."""
    return len(densities_of(config))


def densities_of(config: DictConfig) -> list[float]:
    """Return the density that every pruning round prunes to."""
    pruning = config.pruning
    at_once = pruning.get("scores_from", "trained") != "trained"
    with naming("pruning"):
        return densities(pruning.rounds, pruning.rate, pruning.get("density"), at_once)


def retrained_rounds(config: DictConfig) -> list[int]:
    """Return the rounds whose tickets are retrained: those asked for; else all, or those that reach given densities."""
    if config.retrain_rounds is not None:
        return sorted(set(config.retrain_rounds))
    target, reached = config.pruning.get("density"), enumerate(densities_of(config), start=1)
    return [number for number, density in reached if target is None or density in descending(target)]


def search_folder(config: DictConfig) -> Path:
    """Return the folder of a job's search."""
    name = f"{config.labels.data}-{config.labels.model}-s{config.seed}-{fingerprint(config)}"
    return Path(config.paths.root) / name
