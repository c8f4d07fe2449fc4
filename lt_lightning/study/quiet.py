"""Leaves the terminal to our own progress and table."""

from __future__ import annotations

import logging
import warnings

MESSAGES = (
    ".*does not have many workers.*",
    ".*LeafSpec.*",
    ".*smaller than the logging interval.*",
    ".*in distributed setting to accumulate.*",  # of what is the same in every process: round, density, learning rate
    ".*Grad strides do not match bucket view strides.*",  # of 1x1 convolutions, whose strides can be told in two ways
)


def quieten() -> None:
    """Silences what Lightning tells of each trainer and warns of by design."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    for message in MESSAGES:
        warnings.filterwarnings("ignore", message)
