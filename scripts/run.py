"""Finds structured lottery tickets: `python scripts/run.py --help` lists the options."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

CONF = Path(__file__).resolve().parent.parent / "conf"
# What a wrong configuration, wrong data or a diverging training raise; anything else is a defect of ours.
EXPECTED = (ValueError, OSError, FloatingPointError, InstantiationException, OmegaConfBaseException)


def quieten() -> None:
    """Leaves the terminal to our own progress and table."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*LeafSpec.*", ".*smaller than the logging interval.*"):
        warnings.filterwarnings("ignore", message)


def one_line(error: BaseException) -> str:
    """What went wrong, without what led there: Hydra and OmegaConf wrap the cause and add lines."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0]


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="run")
def main(config: DictConfig) -> None:
    from lt_lightning.study.run import run  # slow to import, and not needed for `--help`

    quieten()
    try:
        run(config)
    except EXPECTED as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN or os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.exit(f"error: {one_line(error)}")


if __name__ == "__main__":
    main()
