"""Measures stability to the data order, and finds the smallest stable rewind point: see `conf/stability.yaml`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from lt_lightning.results.failures import EXPECTED, one_line

CONF = Path(__file__).resolve().parent.parent / "conf"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="stability")
def main(config: DictConfig) -> None:
    from lt_lightning.experiment.protocols.stability import measure_stability  # not needed for `--help`

    measure_stability(config)


def run_main() -> None:
    """Runs `main`; what goes wrong ends in one line, unless it is a defect of ours."""
    full_error = bool(os.environ.get("HYDRA_FULL_ERROR"))  # asked for by the user
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra hands the exception on
    try:
        main()
    except EXPECTED as error:
        if full_error:
            raise
        sys.exit(f"error: {one_line(error)}")


if __name__ == "__main__":
    run_main()
