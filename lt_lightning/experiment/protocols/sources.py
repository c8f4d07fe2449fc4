"""Where tickets come from that a job retrains beside its own: searches on other data sets, or its screening."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lt_lightning.experiment.config.fingerprint import determining
from lt_lightning.files import read_json

OTHERS = "others"


def sources_of(config: DictConfig, rounds: Sequence[int]) -> list[Path]:
    """Folders of the searches that `transfer.from` names, one for each data set and width.

    `others` is every search under the root on another data set that is otherwise the job's own, but for weight decay,
    batches and augmentation, and is trained as far as is needed: what there is when it is asked.

    Args:
        config: of the job.
        rounds: whose tickets are needed.

    Raises:
        ValueError: if it names what is no search, or one whose rounds are not all trained, or if there are several of
            one data set and width, which no table could tell apart.
    """
    asked = config.transfer["from"]
    if asked is None:
        return []
    if not rounds:
        raise ValueError(f"transfer.from={asked}: needs pruning.next_round_from=unstructured and retrain_rounds")
    if asked == OTHERS:
        found = sorted(path.parent for path in Path(config.paths.root).glob("*/config.yaml"))
        others = [folder for folder in found if _is_other(folder, config) and not _missing(folder, rounds)]
        return _told_apart(others)
    named = list(asked) if OmegaConf.is_list(asked) else [asked]
    folders = [Path(str(name)) for name in named]
    for folder in folders:
        if not (folder / "config.yaml").is_file():
            raise ValueError(f"transfer.from={folder}: is no folder of a search (it has no config.yaml)")
        if missing := _missing(folder, rounds):
            raise ValueError(f"transfer.from={folder}: has no trained unstructured ticket of round {missing[0]}")
    return _told_apart(folders)


def _told_apart(folders: Sequence[Path]) -> list[Path]:
    known: dict[tuple[Any, Any], Path] = {}
    for folder in folders:
        config: Any = OmegaConf.load(folder / "config.yaml")
        first = known.setdefault((config.labels.data, config.model.get("width")), folder)
        if first != folder:
            raise ValueError(
                f"transfer.from={folder}: is of the same data set ({config.labels.data}) and width as {first}: "
                "name one of the two"
            )
    return list(known.values())


def other_data(theirs: Any, config: DictConfig) -> bool:
    """Whether the configuration of a search is of another data set than a job's."""
    return bool(_data_of(theirs) != _data_of(config))


def _data_of(config: Any) -> tuple[Any, ...]:
    return config.labels.data, config.data.get("_target_")


def _is_other(folder: Path, config: DictConfig) -> bool:
    theirs: Any = OmegaConf.load(folder / "config.yaml")
    return other_data(theirs, config) and _trained(theirs) == _trained(config)


def _trained(config: Any) -> Any:
    """What of a search has to be the same on other data; of weight decay and batches presets have a value for each."""
    alike = determining(config, ("model", "classifier", "pruning", "trainer", "seed"))
    alike["model"] = {key: value for key, value in alike["model"].items() if key not in config.dataset}
    for key in (*config.dataset, "weight_decay"):
        alike["classifier"].pop(key, None)
    return alike | {"limit": config.data.get("limit")}


def _missing(folder: Path, rounds: Sequence[int]) -> list[int]:
    try:
        trained = {facts["round"] for facts in read_json(folder / "rounds.json")}
    except (OSError, ValueError, KeyError, TypeError):
        trained = set()
    tickets = {n for n in trained if (folder / f"round_{n:02d}" / "unstructured" / "ticket.safetensors").is_file()}
    return [number for number in rounds if number not in tickets]
