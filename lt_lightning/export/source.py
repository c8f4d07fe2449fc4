"""What is exported: a finished ticket of a search, and the network that it executes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import nn

from lt_lightning.shrink.blocks import DENSE
from lt_lightning.shrink.execute import execute
from lt_lightning.structures.base import Plan
from lt_lightning.ticket import Ticket


@dataclass(frozen=True)
class Source:
    """A ticket and its network.

    Attributes:
        ticket: trained.
        model: configuration of the full network, resolved.
        shape: of one image.
        mean: of the pixels scaled to [0, 1], by channel, which the data module subtracts; None where it does not tell.
        std: that it divides them by, likewise.
        masked: the full network with the ticket's trained weights, in evaluation mode.
    """

    ticket: Ticket
    model: Mapping[str, Any]
    shape: tuple[int, ...]
    mean: Sequence[float] | None
    std: Sequence[float] | None
    masked: nn.Module

    @classmethod
    def read(cls, folder: Path) -> Source:
        """Reads a ticket's folder, `SEARCH/round_NN/STRUCTURE`.

        Raises:
            FileNotFoundError: if there is no ticket, or no `config.yaml` in the search's folder.
            ValueError: if a file is damaged, the ticket is not trained, or it is for another network.
        """
        ticket = Ticket.load(folder / "ticket")
        if ticket.trained is None:
            raise ValueError(f"the ticket in {folder} is not trained yet: there are no weights to export")
        config = folder.resolve().parents[1] / "config.yaml"
        if not config.is_file():
            raise FileNotFoundError(
                f"there is no {config}: the ticket must be in SEARCH/round_NN/STRUCTURE of its search"
            )
        model, shape, data = _read_config(config)
        network: nn.Module = instantiate(model)
        module = get_class(data["_target_"])
        mean, std = getattr(module, "mean", None), getattr(module, "std", None)
        return cls(ticket, model, shape, mean, std, ticket.apply(network, "trained").eval())


def _read_config(path: Path) -> tuple[dict[str, Any], tuple[int, ...], dict[str, Any]]:
    """Configuration of the network, the shape of an image, and configuration of the data module."""
    try:
        whole: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        dataset = whole["dataset"]
        shape = (int(dataset["channels"]), int(dataset["size"]), int(dataset["size"]))
        return whole["model"], shape, whole["data"]
    except Exception as error:  # whatever the parsers stumble over
        told = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} is damaged or no configuration of a search: {told}") from None


@dataclass(frozen=True)
class Executed:
    """The network that executes a ticket.

    Attributes:
        network: on the CPU, in evaluation mode.
        plan: that it executes; None if it is the full network.
        choice: what computes each layer of a plan of blocks, see `shrink.shrunk.Shrunk`.
        unknown: operations that the analysis does not know, around which all channels were kept.
    """

    network: nn.Module
    plan: Plan | None
    choice: Mapping[str, str]
    unknown: tuple[str, ...] = ()

    @property
    def left_dense(self) -> list[str]:
        """Layers of a plan of blocks that run dense."""
        return [name for name, form in self.choice.items() if form == DENSE]


def executed(source: Source, batch_size: int | None = None, choice: Mapping[str, str] | None = None) -> Executed:
    """Makes the network that executes a ticket's plan; the masked one where it has none.

    Args:
        source: the ticket.
        batch_size: a layer of blocks is computed by what is measured fastest, on this machine, at that batch size, the
            dense layer included; None: by blocks wherever it is possible.
        choice: what is to compute each layer, instead of measuring.
    """
    ticket = source.ticket
    shrunk = execute(source.masked, ticket.plan, ticket.masks, torch.zeros(1, *source.shape), batch_size, choice=choice)
    if shrunk is None:
        return Executed(source.masked, None, {})
    return Executed(shrunk.network.eval(), ticket.plan, shrunk.choice, shrunk.unknown)
