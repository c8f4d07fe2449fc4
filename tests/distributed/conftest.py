"""Jobs small enough for tests, and how to start them in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

Compose = Callable[..., DictConfig]
SMALL = (
    "model.width=8", "data.limit=0.3", "trainer.max_epochs=2", "pruning.rounds=1", "structure=[refill]",
    "structure.refill.round_to=2", "measure=null",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # so that the processes find `tasks.py`


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Compose]:
    """Composes a small job, writing under `tmp_path / NAME`."""
    conf = Path(__file__).resolve().parents[2] / "conf"

    def small(name: str, *overrides: str) -> DictConfig:
        config = compose("run", [f"paths.root={tmp_path / name}", *SMALL, *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        return config

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf), version_base="1.3"):
        yield small
    HydraConfig.instance().cfg = None
