"""Transfer (`transfer.from`): tickets of searches on other data sets, retrained on this one beside the job's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from lt_lightning.experiment.config.fingerprint import meanings
from lt_lightning.experiment.config.tasks import retrained_rounds, retraining_task
from lt_lightning.experiment.protocols.protocol import Protocol
from lt_lightning.results.job_record import Task, TicketKind
from lt_lightning.storage.foreign import read_config, targets
from lt_lightning.storage.layout import TICKET, UNSTRUCTURED, is_ticket, round_folder, trained_rounds

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lt_lightning.experiment.parts import Experiment
    from lt_lightning.tickets.ticket import Ticket
    from lt_lightning.tickets.transfer import Transferred

OTHERS = "others"


class Transfers(Protocol):
    """Tickets of other searches, each unstructured and with the job's structures."""

    name = "transfers"

    def wanted(self, config: DictConfig) -> bool:
        """Whether a search is named."""
        for key, value in config.transfer.items():
            if key != "from":
                raise ValueError(f"transfer.{key}={value}: is no option; there is from")
        return config.transfer.get("from") is not None

    def prepared(self, config: DictConfig) -> DictConfig:
        """Name the folders that `others` stands for, so that searches that begin later are left out of the job."""
        if config.transfer["from"] == OTHERS:
            config = config.copy()
            config.transfer["from"] = list(map(str, _sources_of(config, _rounds_of(config)).values()))
        return config

    def tasks(self, config: DictConfig, tasks: Sequence[Task]) -> list[Task]:
        """Return a task for each search, round and structure."""
        rounds = _rounds_of(config)
        return [
            replace(
                retraining_task(
                    config, tasks[0], number, TicketKind(structure, origin=origin), self.name, **{"from": search.name}
                ),
                source=round_folder(search, number) / UNSTRUCTURED,
            )
            for origin, search in _sources_of(config, rounds).items()
            for number in rounds
            for structure in (UNSTRUCTURED, *map(str, config.structure))
        ]

    def check(self, experiment: Experiment) -> None:
        """Look whether the tickets fit the job's network, and can be structured without their data."""
        for name, structure in experiment.structures.items():
            if structure.needs_batches:
                raise ValueError(
                    f"structure.{name} looks at feature maps, and a ticket of other data has none here: with transfer "
                    "let it score by weights or gradients"
                )
        network = experiment.classifier().network
        rounds = retrained_rounds(experiment.config)
        for search in _sources_of(experiment.config, rounds).values():
            try:
                _moved(experiment, search, rounds[0], network)
            except ValueError as error:
                raise ValueError(f"transfer.from={search}: {error}") from None

    def ticket(self, experiment: Experiment, task: Task) -> Ticket:
        """Take a round's ticket of another search, fit it to the job's network and structure it.

        It brings its own values, to which the momentum of the job's dense training does not belong: its schedule alone
        goes back to the rewind point.
        """
        from lt_lightning.structures.base import Unstructured  # slow to import, like all that makes tickets
        from lt_lightning.tickets.making import structure_ticket

        assert task.kind is not None
        search = _sources_of(experiment.config, [task.round])[task.kind.origin]
        theirs = _config_of(search)
        network = experiment.classifier().network
        moved = _moved(experiment, search, task.round, network)
        structure = experiment.structures.get(task.kind.structure, Unstructured())
        gradients = _gradients(search, task.round, moved)
        ticket = structure_ticket(moved.ticket, task.kind.structure, structure, experiment.traced, gradients)
        lineage = {
            "search": search.name, **{key: theirs["labels"][key] for key in ("data", "model")}, "seed": theirs["seed"],
            "round": task.round, "replaced": moved.replaced,
        }  # fmt: skip
        return ticket.with_facts(
            **experiment.labels, origin=task.kind.origin, transferred_from=lineage, starts_from="schedule"
        )


def _rounds_of(config: DictConfig) -> list[int]:
    """The rounds whose tickets are taken: none where the job's own search goes on from a structure."""
    return retrained_rounds(config) if config.pruning.next_round_from == UNSTRUCTURED else []


def _sources_of(config: DictConfig, rounds: Sequence[int]) -> dict[str, Path]:
    """The folders of the searches that `transfer.from` names, by the data set of each.

    `others` is every search under the root on another data set that is otherwise the job's own, but for weight decay,
    batches and augmentation, and is trained as far as is needed.

    Raises:
        ValueError: if it names what is no search, or one whose rounds are not all trained, or if there are several of
            one data set, which no table could tell apart.
    """
    asked = config.transfer["from"]
    if not rounds:
        raise ValueError(f"transfer.from={asked}: needs pruning.next_round_from=unstructured and retrain_rounds")
    if asked == OTHERS:
        found = sorted(path.parent for path in Path(config.paths.root).glob("*/config.yaml"))
        return _by_data([each for each in found if _is_other(each, config) and not _missing(each, rounds)])
    folders = [Path(str(name)) for name in (asked if OmegaConf.is_list(asked) else [asked])]
    for folder in folders:
        if not (folder / "config.yaml").is_file():
            raise ValueError(f"transfer.from={folder}: is no folder of a search (it has no config.yaml)")
        if missing := _missing(folder, rounds):
            raise ValueError(f"transfer.from={folder}: has no trained unstructured ticket of round {missing[0]}")
    return _by_data(folders)


def _by_data(folders: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        data = str(_config_of(folder)["labels"]["data"])
        first = found.setdefault(data, folder)
        if first != folder:
            raise ValueError(f"transfer.from={folder}: is of the same data set ({data}) as {first}: name one of them")
    return found


def _config_of(search: Path) -> dict[str, Any]:
    """Return what a search was configured with, as plain values; nothing that it names is imported."""
    config = read_config(search / "config.yaml")
    if not all(isinstance(config.get(key), Mapping) for key in ("labels", "data", "dataset")):
        raise ValueError(f"transfer.from={search}: its config.yaml is no configuration of a search")
    return config


def _data_of(config: Mapping[str, Any]) -> tuple[Any, ...]:
    return config["labels"]["data"], config["data"].get("_target_")


def _is_other(folder: Path, config: DictConfig) -> bool:
    try:
        theirs = _config_of(folder)
    except ValueError:
        return False  # damaged, and none that was asked for
    own: Any = OmegaConf.to_container(config, resolve=True)
    return _data_of(theirs) != _data_of(own) and _named_alike(theirs, own) and bool(_trained(theirs) == _trained(own))


def _named_alike(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether a search names, but for its data, only classes of packages that the job itself uses.

    The others cannot be the job's own, and comparing what they mean would import them.
    """
    used = {str(target).partition(".")[0] for target in targets(own)}
    named = targets({key: theirs.get(key) for key in TRAINED})
    return all(isinstance(target, str) and target.partition(".")[0] in used for target in named)


TRAINED = ("model", "classifier", "pruning", "trainer", "seed")


def _trained(config: Mapping[str, Any]) -> Any:
    """What of a search has to be the same on other data; of weight decay and batches presets have a value for each."""
    alike = meanings(config, TRAINED)
    alike["model"] = {key: value for key, value in alike["model"].items() if key not in config["dataset"]}
    for key in (*config["dataset"], "weight_decay"):
        alike["classifier"].pop(key, None)
    return alike | {"limit": config["data"].get("limit")}


def _missing(folder: Path, rounds: Sequence[int]) -> list[int]:
    """The rounds of which a search has no trained unstructured ticket."""
    trained = trained_rounds(folder)
    return [each for each in rounds if each not in trained or not is_ticket(round_folder(folder, each) / UNSTRUCTURED)]


def _moved(experiment: Experiment, search: Path, number: int, network: nn.Module) -> Transferred:
    from lt_lightning.tickets.ticket import Ticket  # slow to import
    from lt_lightning.tickets.transfer import transfer

    ticket = Ticket.load(round_folder(search, number) / UNSTRUCTURED / TICKET)
    other = _data_of(_config_of(search)) != _data_of(experiment.config)
    return transfer(ticket, network, experiment.example, other)


def _gradients(search: Path, number: int, moved: Transferred) -> Mapping[str, Tensor] | None:
    """The gradients of the search's round, zero for what was initialised anew."""
    import torch  # slow to import

    from lt_lightning.tickets.making import load_gradients

    if (gradients := load_gradients(round_folder(search, number))) is None:
        return None
    masks = moved.ticket.masks
    return {
        name: torch.zeros(masks[name].shape) if name in masks and name in moved.replaced else value
        for name, value in gradients.items()
    }
