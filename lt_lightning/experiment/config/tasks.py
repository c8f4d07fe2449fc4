"""Where a result is: a folder named by a hash of what determines it, so that it is found again and not run again.

Everything here follows from the configuration alone, without building anything of it: what is there can be looked up in
no time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lt_lightning.experiment.config.checks import CONTROLS, check_basics
from lt_lightning.experiment.config.fingerprint import determining
from lt_lightning.experiment.protocols.sources import sources_of
from lt_lightning.pruning.densities import densities, descending
from lt_lightning.results.paths import Task, confirmed, parted, round_folder, told, unconfirmed
from lt_lightning.ticket_names import DENSE, UNSTRUCTURED

CONFIRM = "confirm"  # key of a configuration whose job confirms tickets that were screened; see `screening`

# Raised when a change of the algorithms makes earlier results differ from what would come out now.
ALGORITHM = 3


def hash_of(what: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits for what determines a result: JSON values, in any order.

    >>> hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps({"algorithm": ALGORITHM, **what}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def tasks_of(config: DictConfig) -> list[Task]:
    """All that a job consists of: the search, then its cells, then their controls.

    Raises:
        ValueError: if the configuration leaves that open.
    """
    check_basics(config)
    folder = search_folder(config)
    source = str(config.pruning.next_round_from)
    rounds = rounds_of(config)
    parts = (round_folder(folder, 0) / DENSE, *(round_folder(folder, n) / source for n in range(1, rounds + 1)))
    search = Task(folder, f"search of {rounds} rounds" if rounds else "dense network", 0, "", parts)
    cells = [(number, name, _cell_folder(config, folder, number, name)) for number, name in retrainings_of(config)]
    return (
        [search]
        + [Task(place, retraining_label(config, number, name), number, name, (place,)) for number, name, place in cells]
        + [_control_task(config, folder, *control) for control in controls_of(config)]
    )


def rounds_of(config: DictConfig) -> int:
    """Pruning rounds: as many as are asked for, or as reach the densities that are asked for."""
    return len(densities_of(config))


def densities_of(config: DictConfig) -> list[float]:
    """The density that every pruning round prunes to."""
    pruning = config.pruning
    at_once = pruning.get("scores_from", "trained") != "trained"
    return densities(pruning.rounds, pruning.rate, pruning.get("density"), at_once)


def retrained_rounds(config: DictConfig) -> list[int]:
    """Rounds whose tickets are retrained: those asked for; else all, or those that reach the densities asked for."""
    if config.retrain_rounds is not None:
        return sorted(set(config.retrain_rounds))
    asked, found = config.pruning.get("density"), enumerate(densities_of(config), start=1)
    return [number for number, density in found if asked is None or density in descending(asked)]


def search_folder(config: DictConfig) -> Path:
    """Folder of a job's search, named by a hash of what determines it."""
    keys = ["dataset", "data", "model", "classifier", "pruning", "trainer", "seed"]
    if config.pruning.next_round_from != UNSTRUCTURED:
        keys.append("structure")
    trainer: Any = OmegaConf.to_container(config.trainer, resolve=True)
    what = {**determining(config, keys), "processes": _processes(trainer)}
    name = f"{config.labels.data}-{config.labels.model}-s{config.seed}-{hash_of(what)}"
    return Path(config.paths.root) / name


def retrainings_of(config: DictConfig) -> list[tuple[int, str]]:
    """Tickets that are retrained alone, as (round, structure)."""
    if (confirm := config.get(CONFIRM)) is not None:
        found = [(number, name) for name, numbers in confirm.rounds.items() for number in numbers]
        return [(number, confirmed(name, confirm.epochs)) for number, name in sorted(found, key=lambda each: each[0])]
    if config.pruning.next_round_from != UNSTRUCTURED:
        sources_of(config, ())  # refuses tickets from elsewhere
        return []
    numbers = retrained_rounds(config)
    names = [(number, name) for number in numbers for name in config.structure]
    for source in sources_of(config, numbers):
        names += [(n, told(name, source)) for n in numbers for name in (UNSTRUCTURED, *config.structure)]
    return names


def retraining_folder(config: DictConfig, number: int, structure: str) -> Path:
    """Folder of a retrained ticket, named by a hash of what determines it besides the search."""
    return _cell_folder(config, search_folder(config), number, structure)


def _cell_folder(config: DictConfig, search: Path, number: int, structure: str) -> Path:
    structure, source = parted(unconfirmed(structure))
    origin = {"from": source} if source else {"screened": config[CONFIRM].search} if CONFIRM in config else {}
    return round_folder(search, number) / _cell_name(config, structure, origin)


def screened_folder(config: DictConfig, number: int, structure: str) -> Path:
    """Folder of the ticket, of a screening, that a job confirms."""
    structure = unconfirmed(structure)
    rounds = round_folder(Path(config.paths.root) / config[CONFIRM].search, number)
    return rounds / (UNSTRUCTURED if structure == UNSTRUCTURED else _cell_name(config, structure, {}))


def _cell_name(config: DictConfig, structure: str, origin: Mapping[str, str]) -> str:
    options = OmegaConf.to_container(config.structure[structure], resolve=True) if structure in config.structure else {}
    return f"{structure}-{hash_of({'structure': options, 'execution': config.execution, **origin})}"


def retraining_label(config: DictConfig, number: int, structure: str) -> str:
    """Names the retraining of a ticket for people."""
    return f"{structure}, round {number}" + (f" of {rounds_of(config)}" if CONFIRM not in config else "")


def controls_of(config: DictConfig) -> list[tuple[int, str, str]]:
    """Controls that are trained, as (round, structure, control).

    An unstructured ticket runs whole and has no structure that a shuffle could keep, so of it there are `reinit` and
    `random` alone; tickets that come from other searches have none.
    """
    asked = [control for control in CONTROLS if control in config.controls]
    numbers, source = retrained_rounds(config), str(config.pruning.next_round_from)
    names = [source] if source != UNSTRUCTURED else [UNSTRUCTURED, *config.structure]
    tickets = retrainings_of(config) if CONFIRM in config else [(number, name) for number in numbers for name in names]
    return [
        (number, name, control)
        for number, name in tickets
        for control in asked
        if unconfirmed(name) != UNSTRUCTURED or control in ("reinit", "random")
    ]


def _control_task(config: DictConfig, search: Path, number: int, structure: str, control: str) -> Task:
    rounds = round_folder(search, number)
    searched = structure == config.pruning.next_round_from
    source = rounds / structure if searched else _cell_folder(config, search, number, structure)
    what = {"control": control, "of": source.name, "execution": config.execution}
    folder = rounds / f"{unconfirmed(structure)}-{control}-{hash_of(what)}"
    label = f"{control} of {retraining_label(config, number, structure)}"
    return Task(folder, label, number, structure, (folder,), control, source)


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
