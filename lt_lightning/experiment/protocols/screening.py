"""Screening: a whole search with short trainings, of which the tickets that matter are confirmed by whole ones.

`screening.epochs` makes two jobs of one, each with tasks and places of its own. The first is the search, and its
retraining, that there would be with `trainer.max_epochs` of that length. The second trains the dense network for
`trainer.max_epochs` and beside it, of each structure, the last ticket that held in the first, and the next sparser one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from omegaconf import DictConfig, OmegaConf, open_dict

from lt_lightning.experiment.config.checks import check_basics
from lt_lightning.experiment.config.tasks import CONFIRM, rounds_of, search_folder, tasks_of
from lt_lightning.experiment.protocols.bisection import (
    Bracket,
    asked,
    bisects,
    bracket,
    bracket_of,
    retrainings_by_structure,
)
from lt_lightning.results.paths import unconfirmed
from lt_lightning.results.records import results_of
from lt_lightning.ticket_names import UNSTRUCTURED

CANDIDATES = 2  # tickets of a structure that are confirmed at most


def screens(config: DictConfig) -> int | None:
    """Epochs of a job's screening; None if it has none."""
    epochs: int | None = config.screening.epochs if OmegaConf.is_dict(config.screening) else None
    return epochs


def explained(config: DictConfig) -> str:
    """For people: what is compared with what."""
    short, whole = screens(config), config.trainer.max_epochs
    return (
        f"Screened: tickets and dense network were trained for {short} epochs. Only the confirmed tickets, trained for "
        f"{whole} epochs, are compared with the dense network of {whole} epochs."
    )


def screening_of(config: DictConfig) -> DictConfig:
    """The job that screens: an ordinary one, without controls and without figures to compare with.

    Where another seed chooses, it is the search alone.

    Raises:
        ValueError: naming what does not fit.
    """
    _check(config)
    screening = config.copy()
    with open_dict(screening):
        screening.trainer.max_epochs = screens(config)
        screening.screening.epochs = None
        screening.controls, screening.published = [], {}
        if chosen_by_another(config):
            screening.retrain_rounds, screening.search = [], "all"
    return screening


def chosen_by_another(config: DictConfig) -> bool:
    """Whether the screening of another seed than the job's chooses the rounds that are confirmed."""
    seed = config.screening.seed
    return seed is not None and seed != config.seed


def choosing_of(config: DictConfig) -> DictConfig:
    """The screening of the seed that chooses the rounds that are confirmed."""
    other = config.copy()
    other.seed = config.screening.seed
    return screening_of(other)


def confirmation_of(config: DictConfig, rounds: Mapping[str, Sequence[int]]) -> DictConfig:
    """The job that confirms: the dense network alone, and tickets that are taken from the screening.

    Args:
        config: of the whole job.
        rounds: whose tickets are confirmed, by structure.
    """
    confirmation = config.copy()
    search = search_folder(screening_of(config)).name
    with open_dict(confirmation):
        confirmation.screening.epochs = None
        confirmation.search, confirmation.retrain_rounds = "all", []
        confirmation.pruning.rounds, confirmation.pruning.density = 0, None
        told = {name: list(numbers) for name, numbers in rounds.items()}
        confirmation[CONFIRM] = {"search": search, "epochs": screens(config), "rounds": told}
    return confirmation


def chosen_rounds(screening: DictConfig) -> dict[str, list[int]]:
    """Rounds whose tickets are confirmed, by structure; a structure of which not all is screened is left out.

    Args:
        screening: configuration of the job that screens.
    """
    tasks = tasks_of(screening)
    results = results_of(tasks[0])
    if results is None:
        return {}
    rounds = {UNSTRUCTURED: candidates(bracket_of(range(1, len(results)), results[1:]))}
    open_ = {task.structure for task in asked(tasks, bisects(screening)) if results_of(task) is None}
    for name, cells in retrainings_by_structure(tasks).items():
        if name not in open_:
            rounds[name] = candidates(bracket(cells))
    return rounds


def candidates(found: Bracket) -> list[int]:
    """Of one structure: the last round that holds and the next sparser one, or the first round if none holds.

    >>> candidates(Bracket((1, 2, 4, 6), {1: True, 2: False, 4: True, 6: False}))
    [4, 6]
    >>> candidates(Bracket((1, 2), {1: True, 2: True})), candidates(Bracket((1, 2), {1: False, 2: False}))
    ([2], [1])
    """
    if found.holds is None:
        return list(found.rounds[:1])
    place = found.rounds.index(found.holds)
    return list(found.rounds[place : place + CANDIDATES])


def most_rounds(
    config: DictConfig, screening: DictConfig, known: Mapping[str, Sequence[int]]
) -> dict[str, Sequence[int]]:
    """Rounds whose confirmation costs the most that it may: a structure's tickets all train equally long.

    Args:
        config: of the whole job.
        screening: that chooses.
        known: what it has chosen so far.
    """
    every: dict[str, Sequence[int]] = {UNSTRUCTURED: range(1, rounds_of(screening) + 1)}
    every |= {
        name: [cell.number for cell in cells] for name, cells in retrainings_by_structure(tasks_of(screening)).items()
    }
    cells = [task for task in tasks_of(confirmation_of(config, every)) if task.structure and not task.control]
    left = {(unconfirmed(cell.structure), cell.number) for cell in cells if results_of(cell) is None}
    return {
        name: known.get(name) or [number for number in numbers if (name, number) in left][:CANDIDATES]
        for name, numbers in every.items()
    }


def _check(config: DictConfig) -> None:
    from lt_lightning.pruning.rewinding import Step  # slow to import

    check_basics(config)
    epochs, whole, pruning = int(config.screening.epochs), config.trainer.max_epochs, config.pruning
    key = f"screening.epochs={epochs}"
    if epochs >= whole:
        raise ValueError(f"{key}: must be less than trainer.max_epochs={whole}, which confirm what it finds")
    rewind = Step.parse(pruning.rewind).within(epochs)
    if rewind.unit == "ep" and rewind.count >= epochs:
        raise ValueError(f"{key}: pruning.rewind={pruning.rewind} must lie within such a training, too")
    if pruning.next_round_from != UNSTRUCTURED:
        raise ValueError(f"{key}: needs pruning.next_round_from={UNSTRUCTURED}, not {pruning.next_round_from}")
    if (transfer := config.transfer["from"]) is not None:
        raise ValueError(f"{key}: confirms tickets of its own, and transfer.from={transfer} takes others': set one")
    if rounds_of(config) == 0:
        raise ValueError(f"{key}: pruning.rounds=0 leaves nothing to screen")
