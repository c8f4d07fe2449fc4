"""Finds structured lottery tickets: `python scripts/run.py --help` lists the options."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

CONF = Path(__file__).resolve().parent.parent / "conf"
FULL_ERROR = bool(os.environ.get("HYDRA_FULL_ERROR"))  # asked for by the user
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
    if isinstance(error.__cause__, (ConfigAttributeError, ConfigKeyError)):
        return f"{_first_line(error)} {_first_line(error.__cause__)}{_known_keys(error.__cause__)}"
    if isinstance(error, OverrideParseException):
        return f"the override {error.override!r} cannot be read: {_first_line(error)}"
    if isinstance(error, MissingConfigException):
        told = f"{_first_line(error)}; "
        return told + (f"there is {', '.join(error.options)}" if error.options else "there is no such group")
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


def _known_keys(error: ConfigAttributeError | ConfigKeyError) -> str:
    """What could have been meant."""
    node = error.parent_node
    return f"; there is {', '.join(str(key) for key in node)}" if isinstance(node, DictConfig) else ""


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="run")
def main(config: DictConfig) -> None:
    from lt_lightning.study.run import run  # slow to import, and not needed for `--help`

    quieten()
    try:
        run(config)
    except EXPECTED as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN or FULL_ERROR:
            raise
        sys.exit(f"error: {one_line(error)}")


def run_main() -> None:
    """Runs `main`; an override that cannot be composed ends in one line, too."""
    if FULL_ERROR:
        main()
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra hands the exception on
    try:
        main()
    except (HydraException, *EXPECTED) as error:
        sys.exit(f"error: {one_line(error)}")


if __name__ == "__main__":
    run_main()
