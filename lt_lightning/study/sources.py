"""Where tickets come from that a job retrains beside its own: searches on other data sets, or its screening."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lt_lightning.files import read_json

FROM = " from "
OTHERS = "others"


def told(structure: str, source: Path) -> str:
    """Names a ticket that is taken from a search: `refill from digits-resnet8-s0-1a2b3c4d`."""
    return f"{structure}{FROM}{source.name}"


def parted(name: str) -> tuple[str, str]:
    """Structure and search of such a name; no search where it is a ticket of the job's own.

    >>> parted("refill from digits-resnet8-s0-1a2b3c4d"), parted("refill")
    (('refill', 'digits-resnet8-s0-1a2b3c4d'), ('refill', ''))
    """
    structure, _, source = name.partition(FROM)
    return structure, source


def confirmed(structure: str, epochs: int) -> str:
    """Names a ticket that was found by a search with trainings of so many epochs, and is trained for more.

    >>> confirmed("refill", 20)
    'refill, confirmed after screening of 20 epochs'
    """
    return f"{structure}, confirmed after screening of {epochs} epochs"


def unconfirmed(name: str) -> str:
    """The structure of such a name; any other is left as it is.

    >>> unconfirmed("refill, confirmed after screening of 20 epochs"), unconfirmed("refill")
    ('refill', 'refill')
    """
    return re.sub(r", confirmed after screening of \d+ epochs$", "", name)


def is_confirmed(name: str) -> bool:
    """Whether it is such a name."""
    return unconfirmed(name) != name


def sources_of(config: DictConfig, rounds: Sequence[int]) -> list[Path]:
    """Folders of the searches that `transfer.from` names.

    `others` is every search under the root with this network, seed and pruning on another data set that is trained as
    far as is needed: what there is when it is asked.

    Args:
        config: of the job.
        rounds: whose tickets are needed.

    Raises:
        ValueError: if it names what is no search, or one whose rounds are not all trained.
    """
    asked = config.transfer["from"]
    if asked is None:
        return []
    if not rounds:
        raise ValueError(f"transfer.from={asked}: needs pruning.next_round_from=unstructured and retrain_rounds")
    if asked == OTHERS:
        found = sorted(path.parent for path in Path(config.paths.root).glob("*/config.yaml"))
        return [folder for folder in found if _is_other(folder, config) and not _missing(folder, rounds)]
    named = list(asked) if OmegaConf.is_list(asked) else [asked]
    folders = [Path(str(name)) for name in named]
    for folder in folders:
        if not (folder / "config.yaml").is_file():
            raise ValueError(f"transfer.from={folder}: is no folder of a search (it has no config.yaml)")
        if missing := _missing(folder, rounds):
            raise ValueError(f"transfer.from={folder}: has no trained unstructured ticket of round {missing[0]}")
    return folders


def _is_other(folder: Path, config: DictConfig) -> bool:
    theirs: Any = OmegaConf.load(folder / "config.yaml")
    alike = (theirs.labels.model, theirs.seed, _plain(theirs.pruning))
    here = (config.labels.model, config.seed, _plain(config.pruning))
    return bool(alike == here and theirs.labels.data != config.labels.data)


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True)


def _missing(folder: Path, rounds: Sequence[int]) -> list[int]:
    try:
        trained = {facts["round"] for facts in read_json(folder / "rounds.json")}
    except (OSError, ValueError, KeyError, TypeError):
        trained = set()
    tickets = {n for n in trained if (folder / f"round_{n:02d}" / "unstructured" / "ticket.safetensors").is_file()}
    return [number for number in rounds if number not in tickets]
