"""Studies small enough for tests: digits, a narrow network, two rounds of two epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

Compose = Callable[..., DictConfig]


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Compose]:
    """Composes the main job's configuration, with overrides, writing under `tmp_path`."""
    conf = Path(__file__).resolve().parents[2] / "conf"

    def composed(*overrides: str) -> DictConfig:
        config = compose("run", [f"paths.root={tmp_path / 'runs'}", *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        return config

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf), version_base="1.3"):
        yield composed
    HydraConfig.instance().cfg = None
