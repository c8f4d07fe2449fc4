"""The example of docs/extending.md, a module and its YAML files, makes an experiment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from lt_lightning.experiment.parts import Experiment

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()


def test_the_parts_of_the_page_make_an_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "".join(re.findall(r"```python\n# my_package\.py\n(.*?)```", PAGE, flags=re.DOTALL))
    files = re.findall(r"```yaml\n# my_conf/(\S+)\n(.*?)```", PAGE, flags=re.DOTALL)
    assert sorted(name for name, _ in files) == ["data/mine.yaml", "model/mine.yaml", "structure/far_apart.yaml"]
    for name, text in [("my_package.py", module), *files]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    (shown,) = re.findall(r"run(?:\.py)? --config-dir my_conf (structure=\S+refill\S*)`", PAGE)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = [
            f"hydra.searchpath=[file://{tmp_path}]", "model=mine", "data=mine", shown,
            "pruning.criterion._target_=my_package.WithinFilter", f"paths.root={tmp_path / 'runs'}",
        ]  # fmt: skip
        config = compose("run", overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        experiment = Experiment.from_config(config)
    HydraConfig.instance().cfg = None
    experiment.data.setup()
    images, _ = next(iter(experiment.data.train_dataloader()))
    assert experiment.classifier()(images).shape == (128, 5)
    assert [type(structure).__name__ for structure in experiment.structures.values()] == ["FarApart", "Refill"]


def test_the_criterion_of_the_page_by_hand() -> None:
    (code,) = re.findall(r"```python\n# my_package\.py\n(from lt_lightning\.pruning\.criteria.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    weights, masks = {"a": torch.tensor([[2.0, -4.0], [1.0, 0.5]])}, {"a": torch.ones(2, 2, dtype=torch.bool)}
    scores = names["WithinFilter"]()(weights, masks, None)
    assert scores["a"].tolist() == [[0.5, 1.0], [1.0, 0.5]]
