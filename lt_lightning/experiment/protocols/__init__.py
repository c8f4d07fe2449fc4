"""Protocols: what a job may do besides its search and the retraining of its tickets.

Each is one file, and nothing but the list below knows its name. A protocol says which tasks it adds, which tasks a job
asks for given what is finished, how its tickets are made, and what there is to say about the results.
"""

from __future__ import annotations

from omegaconf import DictConfig

from lt_lightning.experiment.protocols.bisection import Bisection
from lt_lightning.experiment.protocols.controls import Controls
from lt_lightning.experiment.protocols.grown import Grown
from lt_lightning.experiment.protocols.layer_densities import LayerDensities
from lt_lightning.experiment.protocols.protocol import Protocol
from lt_lightning.experiment.protocols.transfers import Transfers

PROTOCOLS: tuple[Protocol, ...] = (LayerDensities(), Grown(), Controls(), Transfers(), Bisection())
"""All protocols, in the order in which they add tasks: controls are made of a job's own tickets alone."""


def wanted_by(config: DictConfig) -> list[Protocol]:
    """Return the protocols that a configuration asks for.

    Raises:
        ValueError: if an option of one has an impossible value; the message names the key.
    """
    return [protocol for protocol in PROTOCOLS if protocol.wanted(config)]
