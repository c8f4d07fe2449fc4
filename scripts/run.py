"""Finds structured lottery tickets: `python scripts/run.py --help` lists the options."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lt_lightning.experiment.config.shorthand import spelled_out
from lt_lightning.results.failures import EXPECTED, one_line

CONF = Path(__file__).resolve().parent.parent / "conf"
FULL_ERROR = bool(os.environ.get("HYDRA_FULL_ERROR"))  # asked for by the user


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="run")
def main(config: DictConfig) -> float | None:
    from lt_lightning.experiment.run.command import do, do_in_sweep  # not needed for `--help`

    hydra_config = HydraConfig.get()
    overrides, folder = list(hydra_config.overrides.task), Path(hydra_config.runtime.output_dir)
    if hydra_config.mode == RunMode.MULTIRUN:
        return do_in_sweep(config, int(hydra_config.job.num), overrides, folder)
    ending_in_one_line(lambda: do(config, folder, overrides))  # here, or Hydra tells of it, too
    return None


def run_main() -> None:
    """Runs `main`; what goes wrong ends in one line, unless it is a defect of ours."""
    before = os.environ.get("HYDRA_FULL_ERROR", "")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra hands the exception on
    try:
        ending_in_one_line(command)
    finally:
        os.environ["HYDRA_FULL_ERROR"] = before


def command() -> None:
    """Runs `main` with the arguments as Hydra knows them."""
    sys.argv[1:] = spelled_out(sys.argv[1:])
    main()


def ending_in_one_line(work: Callable[[], object]) -> None:
    """Does something; an error that is to be expected ends the process with one line."""
    if FULL_ERROR:
        work()
        return
    try:
        work()
    except EXPECTED as error:
        sys.exit(f"error: {one_line(error)}")
    except ExceptionGroup as group:
        if group.split(EXPECTED)[1] is not None:
            raise
        sys.exit(f"error: {one_line(group)}")


if __name__ == "__main__":
    run_main()
